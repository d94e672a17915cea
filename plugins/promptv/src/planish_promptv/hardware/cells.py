"""Cell counts from Yosys: generic gates after synthesis, flattened."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from planish_promptv.harness.simulator import Simulator

_SCRIPT = """read_verilog -sv dut.sv
synth -flatten -top {top}
check
tee -q -o stat.json stat -json
"""


@dataclass(frozen=True, slots=True)
class Cells:
    """What synthesis made of a design.

    Attributes:
        total: cells; by_type: Yosys cell type -> how many. Both empty where there was no result.
        why: the reason when there was none.
    """

    total: int = 0
    by_type: dict[str, int] = field(default_factory=dict)
    why: str = ""

    @property
    def registers(self) -> int:
        """Flip-flops, one a bit."""
        return sum(number for kind, number in self.by_type.items() if "DFF" in kind)

    @property
    def latches(self) -> int:
        """Latches, one a bit: mostly a mistake."""
        return sum(number for kind, number in self.by_type.items() if "LATCH" in kind)

    def as_dict(self) -> dict[str, object]:
        """For records and reports."""
        if self.why:
            return {"status": self.why}
        return {
            "cells": self.total,
            "registers": self.registers,
            "latches": self.latches,
            "by_type": self.by_type,
        }


def count(simulator: Simulator, code: str, top: str) -> Cells:
    """Synthesise module ``top`` of ``code`` in the simulator's sandbox and count its cells."""
    if "yosys" not in simulator.tools:
        return Cells(why="yosys is not installed: apt-get install yosys")
    files = {"dut.sv": code, "synth.ys": _SCRIPT.format(top=top)}
    done, written = simulator.run_tool(
        ["yosys", "-Q", "-T", "-q", "-s", "synth.ys"], files, outputs=("stat.json",)
    )
    if done.code or "stat.json" not in written:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("ERROR")]
        return Cells(
            why=lines[-1][:200] if lines else f"yosys ended with {done.stopped or f'exit status {done.code}'}"
        )
    design = json.loads(written["stat.json"])["design"]
    by_type = {
        kind: int(number) for kind, number in sorted(design.get("num_cells_by_type", {}).items()) if number
    }
    return Cells(int(design["num_cells"]), by_type)
