"""A result as text for an agent: what the tools said, cut to a length, with the first differing samples."""

from __future__ import annotations

from planish_promptv.harness.job import tail
from planish_promptv.types import SimResult, Stage, Status

_MEANING = {
    Status.PASS: "passed",
    Status.FAIL: "the outputs differ from what the bench expects",
    Status.SYNTAX_ERROR: "syntax error",
    Status.ELAB_ERROR: "the design and the bench do not elaborate together",
    Status.UNSUPPORTED: "the simulator does not support a construct that is used",
    Status.TIMEOUT_CPU: "the run used up its CPU time (an endless loop, or a bench that never finishes)",
    Status.TIMEOUT_WALL: "the run did not end",
    Status.OOM: "the run used up its memory",
    Status.OUTPUT_LIMIT: "the run printed or wrote too much",
    Status.NO_VERDICT: "the bench ended without one valid verdict line",
    Status.GUARD_REJECT: "the text holds constructs that are not allowed",
    Status.TOOL_MISSING: "a tool is missing",
}


def render_result(sim: SimResult, limit: int = 4000) -> str:
    """Stage, status, counts, messages with file and line, and the table around the first mismatch.

    ``dut.sv`` is the design and ``tb.sv`` the bench. At most ``limit`` characters; the table is kept whole as long as it
    takes less than half of them.
    """
    lines = [f"stage: {sim.stage}", f"status: {sim.status} ({_MEANING[sim.status]})"]
    if sim.samples is not None:
        lines.append(f"mismatches: {sim.mismatches} in {sim.samples} samples")
    if sim.timeout_flag:
        lines.append("the bench printed TIMEOUT")
    lines += [
        f"{d.file}:{d.line}: {d.severity}: {d.message}" if d.file else f"{d.severity}: {d.message}"
        for d in sim.diagnostics
    ]
    table = ""
    if sim.first_mismatch:
        times = ", ".join(f"{name} at {time}" for name, time in sim.first_mismatch.outputs.items())
        unit = f" (times in units of {sim.first_mismatch.timescale})" if sim.first_mismatch.timescale else ""
        table = f"\nfirst mismatches: {times}{unit}\n{sim.first_mismatch.table()}"
        table = tail(table, max(limit // 2, 200))
    if sim.stage is Stage.SIMULATE and sim.output.strip():
        lines += ["output:", sim.output.strip()]
    return tail("\n".join(lines), max(limit - len(table), 200)) + table
