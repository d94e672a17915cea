"""Guard, sandbox, simulation, verdicts and benchmarks: everything that judges generated Verilog."""

from __future__ import annotations

from planish_promptv.harness.benchmarks import BENCHMARKS, BenchmarkError, load_benchmark
from planish_promptv.harness.job import TaskError
from planish_promptv.harness.process import Cancelled, Limits
from planish_promptv.harness.render import render_result
from planish_promptv.harness.sandbox import SandboxError
from planish_promptv.harness.simulator import Simulator, accepted
from planish_promptv.harness.tools import icarus_major, versions

__all__ = [
    "BENCHMARKS",
    "BenchmarkError",
    "Cancelled",
    "Limits",
    "SandboxError",
    "Simulator",
    "TaskError",
    "accepted",
    "icarus_major",
    "load_benchmark",
    "render_result",
    "versions",
]
