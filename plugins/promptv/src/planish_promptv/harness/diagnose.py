"""What ``planish verilog doctor`` looks at: programs, the sandbox that really runs, and whether the whole path works."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from typing import Any

from planish import measure
from planish_promptv.harness import sandbox
from planish_promptv.harness.process import Limits, Pool
from planish_promptv.harness.simulator import Simulator
from planish_promptv.harness.tools import PROGRAMS, tool_folders, versions
from planish_promptv.types import Bench, Status, Task

# A design that counts, and one that must not pass the same bench.
_GOOD = "module top(input clk, output reg [3:0] q = 0); always @(posedge clk) q <= q + 1; endmodule\n"
_BAD = _GOOD.replace("q + 1", "q + 2")
_BENCH = """module tb;
  reg clk = 0; wire [3:0] q; integer i, bad = 0;
  top dut(.clk(clk), .q(q));
  initial begin
    for (i = 0; i < 20; i = i + 1) begin
      if (q !== i[3:0]) bad = bad + 1;
      #1 clk = 1; #1 clk = 0;
    end
    $display("@NONCE@ Mismatches: %0d in %0d samples", bad, i);
    $finish;
  end
endmodule
"""
_ESSENTIAL = ("iverilog", "vvp")


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is there and what is not.

    Attributes:
        programs: name -> version, empty where missing.
        tier: the sandbox that works, or empty; tiers: what each better one said when it was tried.
        works: a good design passes and a bad one fails, in that sandbox.
        problems: what keeps the harness from working, with the remedy; hints: what would make it better.
    """

    programs: dict[str, str]
    tier: str
    tiers: dict[str, str]
    works: bool
    user: str
    slots: int
    problems: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        lines = [f"{name:10} {version or 'missing'}" for name, version in self.programs.items()]
        lines.append(f"{'sandbox':10} {self.tier or 'none'} (as {self.user})")
        lines += [f"{'':10} {tier} does not work: {why}" for tier, why in self.tiers.items()]
        lines.append(f"{'slots':10} {self.slots} simulations at one time")
        lines.append(
            f"{'self-test':10} {'a good design passes, a bad one fails' if self.works else 'FAILED'}"
        )
        lines += [f"optional   {hint}" for hint in self.hints]
        lines += [f"PROBLEM    {problem}" for problem in self.problems]
        return "\n".join(lines)


def diagnose() -> Diagnosis:
    """Look at the machine and run one good and one bad design."""
    installed = versions()
    programs = {name: installed.get(name, "") for name in PROGRAMS}
    problems = [f"{name} is missing: {PROGRAMS[name]}" for name in _ESSENTIAL if not programs[name]]
    hints = [
        f"{name} is missing ({use}): {PROGRAMS[name]}"
        for name, use in (("verilator", "lint"), ("yosys", "equivalence, cell counts"), ("bwrap", "sandbox"))
        if not programs[name]
    ]
    if programs["iverilog"] and int(programs["iverilog"].partition(".")[0] or 0) >= 13:
        hints.append("Icarus Verilog 13 rejects every bench of VerilogEval: use 11 or 12 for that benchmark")
    pool = Pool(1)
    try:
        probe = sandbox.probe(pool, tool_folders())
    finally:
        pool.close()
    tier = probe.sandbox.tier if probe.sandbox else ""
    if not tier:
        problems.append(
            "no sandbox works: install bubblewrap (apt-get install bubblewrap) and allow user namespaces "
            "(on Ubuntu 24.04 an AppArmor profile for bwrap; in Docker --security-opt seccomp=unconfined), "
            "or accept limits alone with --allow-unsandboxed"
        )
    works = bool(tier) and all(programs[name] for name in _ESSENTIAL) and _self_test(tier)
    if tier and not works and not problems:
        problems.append("the self-test failed: a good design must pass and a bad one must fail")
    dropped = probe.sandbox is not None and probe.sandbox.drop
    user = "nobody" if dropped else "root" if os.geteuid() == 0 else "the calling user"
    return Diagnosis(programs, tier, probe.failures, works, user, measure.cores(), problems, hints)


def _self_test(tier: str) -> bool:
    task = Task(id="self-test", description="counts", top_name="top", provided_testbench=Bench(text=_BENCH))
    with Simulator(slots=1, tier=tier, limits=Limits(cpu_s=10)) as simulator:
        good = simulator.simulate_sync(task, _GOOD)
        bad = simulator.simulate_sync(task, _BAD)
    return good.status is Status.PASS and bad.status is Status.FAIL
