"""``planish bench promptv``: verdicts beside the record, mutants beside the bench alone, the sandbox beside none, cell counts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from planish import measure
from planish.bench import Row
from planish_promptv.hardware.cells import count
from planish_promptv.hardware.mac import TOP, rtl
from planish_promptv.harness import Limits, Simulator, golden, load_benchmark
from planish_promptv.harness.mutants import score
from planish_promptv.types import Task

COMMAND = "planish bench promptv"
QUICK = 12
"""Tasks of each set that ``--quick`` takes, evenly spread."""


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Golden agreement, time with and without the sandbox, mutants caught, cells of a sparse unit beside the dense one."""
    verilogeval = _chosen("verilogeval-v2", quick)
    yield from _golden(verilogeval)
    rtllm = _chosen("rtllm-v2", quick)
    yield from _mutants(verilogeval, rtllm, 2 if quick else 8)
    if shutil.which("yosys"):
        yield from _cells()


def _chosen(name: str, quick: bool) -> list[Task]:
    tasks = load_benchmark(name)
    return tasks[:: max(1, len(tasks) // QUICK)] if quick else tasks


def _golden(tasks: Sequence[Task]) -> Iterator[Row]:
    with Simulator() as simulator:
        confined = golden.run(tasks, simulator)
        tier, slots = simulator.tier, simulator.slots
    with Simulator(tier="rlimits", allow_unsandboxed=True) as simulator:
        free = golden.run(tasks, simulator)
    known = [outcome for outcome in confined.outcomes if outcome.agrees is not None]
    yield _row(
        "VerilogEval v2 references whose verdict is the one on record",
        sum(bool(outcome.agrees) for outcome in known),
        "designs",
        "verdicts measured without this harness",
        len(known),
        (">=", 1.0),
    )
    yield _row(
        f"golden pass over {len(tasks)} designs of VerilogEval v2, {tier}, {slots} at once",
        confined.seconds,
        "s",
        "the same with resource limits alone",
        free.seconds,
        None,
    )


def _mutants(verilogeval: Sequence[Task], rtllm: Sequence[Task], limit: int) -> Iterator[Row]:
    with Simulator(limits=Limits(cpu_s=20, memory_mb=1024)) as simulator:
        first = score(verilogeval, simulator, limit=limit)
        second = score(rtllm, simulator, limit=limit, prove="yosys" in simulator.tools)
    yield _row(
        "mutants caught by the benches of VerilogEval v2",
        first.caught,
        "mutants",
        "all that ran",
        len(first.counted),
        (">=", 0.95),
    )
    yield _row(
        "mutants caught by the benches of RTLLM v2",
        second.caught,
        "mutants",
        "all that ran",
        len(second.counted),
        (">=", 0.60),
    )
    yield _row(
        "mutants of RTLLM v2 caught or proven different by Yosys",
        second.found,
        "mutants",
        "all that ran",
        len(second.counted),
        (">=", 0.80),
    )


def _cells() -> Iterator[Row]:
    with Simulator(slots=1) as simulator:
        sparse, dense = (count(simulator, rtl(n, 4), TOP).total for n in (2, 4))
    yield _row(
        "cells of the int8 multiply-accumulate unit, 2:4",
        sparse,
        "cells",
        "dense, 4 products a cycle",
        dense,
        None,
    )


def _row(
    metric: str, value: float, unit: str, peer: str, peer_value: float, bar: tuple[str, float] | None
) -> Row:
    return Row(
        metric=metric,
        value=value,
        unit=unit,
        peer=peer,
        peer_value=peer_value,
        bar=bar,
        device=measure.device_name(),
        command=COMMAND,
    )
