"""``planish bench promptv-modes``: pass@k of the three modes beside its closed form, with the mutating model over HTTP."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from planish import measure
from planish.bench import Row
from planish_promptv.config import MODES, EvaluationConfig
from planish_promptv.evaluate.run import evaluate
from planish_promptv.evaluate.selection import select
from planish_promptv.evaluate.summary import EvalReport
from planish_promptv.harness import Simulator, load_benchmark
from planish_promptv.models.mutating import MutatingModel, Skill, caught_mutants
from planish_promptv.models.server import ScriptedServer

TASKS = (
    "Prob035_count1to10",
    "Prob067_countslow",
    "Prob068_countbcd",
    "Prob069_truthtable1",
    "Prob072_thermostat",
    "Prob079_fsm3onehot",
)
SKILL = Skill(right_first=0.2, sees=0.3, overrules=0.5, tires=0.5)
KS = (1, 5)


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Measured and expected pass@k of each mode, one attempt a sample; calls a sample beside the worst case."""
    tasks = select(load_benchmark("verilogeval-v2"), TASKS[:2] if quick else TASKS)
    samples = 5 if quick else 20
    with Simulator() as simulator:
        model = MutatingModel(tasks, asyncio.run(caught_mutants(tasks, simulator)), SKILL)
        for mode in MODES:
            with ScriptedServer(model) as server, tempfile.TemporaryDirectory(prefix="promptv-") as out:
                config = EvaluationConfig(
                    base_url=server.url,
                    model="mutating",
                    mode=mode,
                    bench_source="provided",
                    max_restarts=0,
                    samples=samples,
                    k=KS,
                )
                report = asyncio.run(
                    evaluate("verilogeval-v2", config, Path(out), tasks=tasks, simulator=simulator)
                )
            yield from _rows(report, config)


def _rows(report: EvalReport, config: EvaluationConfig) -> Iterator[Row]:
    success = SKILL.success(config.mode, config.rounds, attempts=1)
    about = f"{config.mode}, {len(report.tasks)} tasks, n = {config.samples}"
    for figure in report.functional:
        interval = f"95 % interval {100 * figure.low:.1f} to {100 * figure.high:.1f}"
        yield _row(
            f"pass@{figure.k} of the mutating model, {about}, {interval}",
            100 * figure.value,
            "%",
            "closed form",
            100 * (1 - (1 - success) ** figure.k),
            50 * (figure.high - figure.low),
        )
    calls = report.calls / report.samples
    yield _row(f"model calls a sample, {about}", calls, "calls", "worst case", config.worst_case_calls)


def _row(
    metric: str, value: float, unit: str, peer: str, peer_value: float, spread: float | None = None
) -> Row:
    device = measure.device_name("cpu")
    return Row(metric, value, unit, peer, peer_value, None, device, "planish bench promptv-modes", spread)
