"""What agents are shown of code, bench and simulation."""

from __future__ import annotations

from collections.abc import Sequence

from planish_promptv.agents.candidate import Candidate
from planish_promptv.agents.prompts import describe, fenced, numbered
from planish_promptv.harness import render_result, verilog
from planish_promptv.types import Artifact, Task

STATIC = "Not simulated yet: review by reading."
HIDDEN = "The bench belongs to the task and its source is not shown."
FIXED = " (it belongs to the task and stays as it is)"
LONGEST_BENCH = 20_000
"""Characters of a provided bench that are shown; one with thousands of vectors is not."""


def shown(task: Task, code: Artifact, bench: Artifact | None) -> dict[str, str]:
    """Fields of a prompt about code and bench; ``bench`` is None where the task brings its own."""
    text = _provided(task) if bench is None else bench.text
    return {
        **describe(task),
        "code": fenced(code.text),
        "code_numbered": numbered(code.text),
        "bench": fenced(text),
        "bench_numbered": numbered(text) if text else HIDDEN,
        "bench_note": FIXED if bench is None else "",
    }


def _provided(task: Task) -> str:
    """The task's own bench; empty where it holds the reference, which must not reach a model, or is very long."""
    provided = task.provided_testbench
    if provided is None or len(provided.text) > LONGEST_BENCH:
        return ""
    names = {module.name for module in verilog.modules(provided.text)}
    return "" if provided.reference_top in names else provided.text


def simulator_text(last: Candidate | None, advised: Sequence[str], limit: int) -> str:
    """What the simulator said, within ``limit`` characters, and what linters advise."""
    if last is None:
        return "\n".join([STATIC, *advised])
    parts = [render_result(last.sim, limit)]
    if last.quality is not None and last.quality.vacuous:
        stubs = ", ".join(f"{name}: {status.value}" for name, status in last.quality.stubs.items())
        parts.append(
            "\nThe testbench cannot be trusted: a module with constant outputs must fail under it, and does not "
            f"({stubs}). It must compare more."
        )
    return "\n".join([*parts, *advised])
