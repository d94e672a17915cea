"""The second oracle: Yosys compares a candidate with the reference for every input over a bounded number of steps."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

from planish_promptv.harness import verilog
from planish_promptv.harness.process import Token
from planish_promptv.harness.simulator import Simulator

STEPS = 24
SECONDS = 20
"""CPU seconds that the solver may take before the answer is unknown."""


@dataclass(frozen=True, slots=True)
class Proof:
    """``different``: some input sequence tells them apart. ``equal``: none of ``steps`` steps does. Else ``unknown``."""

    verdict: Literal["different", "equal", "unknown"]
    steps: int
    why: str = ""


def prove(
    simulator: Simulator,
    reference: str,
    candidate: str,
    top: str,
    *,
    steps: int = STEPS,
    seconds: int = SECONDS,
    token: Token | None = None,
) -> Proof:
    """Compare module ``top`` of both texts, from registers that are all 0, in the simulator's sandbox.

    Outputs that are unknown in the reference match anything. Where all registers run on one edge, a step is a clock cycle;
    otherwise clocks are inputs like others and a step is any change.
    """
    if "yosys" not in simulator.tools:
        return Proof("unknown", 0, "yosys is not installed: apt-get install yosys")
    files = {
        "gold.sv": verilog.rename(reference, _names(reference, top, "gold")),
        "gate.sv": verilog.rename(candidate, _names(candidate, top, "gate")),
    }
    files["prove.ys"] = _script(
        _one_edge(reference) and _edges(reference) == _edges(candidate), steps, seconds
    )
    argv = ["yosys", "-Q", "-T", "-s", "prove.ys"]
    done, written = simulator.run_tool(argv, files, outputs=(_TRACE,), token=token)
    if _TRACE in written:
        return Proof("different", steps)
    if done.code == 0:
        return Proof("equal", steps)
    said = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.startswith("ERROR")]
    why = said[-1][:200] if said else f"yosys ended with {done.stopped or f'exit status {done.code}'}"
    return Proof("unknown", steps, why)


_TRACE = "difference.json"


def _script(one_edge: bool, steps: int, seconds: int) -> str:
    """Yosys commands. The solver writes a trace only when it found a difference, and fails unless it proved there is none."""
    registers = "async2sync" if one_edge else "clk2fflogic"
    return "\n".join(
        [
            "read_verilog -sv gold.sv",
            "read_verilog -sv gate.sv",
            "hierarchy",
            "proc",
            "flatten",
            "memory",
            "opt -keepdc",
            registers,
            "miter -equiv -ignore_gold_x -make_assert -flatten gold gate miter",
            "hierarchy -top miter",
            "opt -keepdc",
            f"sat -seq {steps} -prove-asserts -verify -set-init-zero -set-def-inputs -timeout {seconds} "
            f"-dump_json {_TRACE} miter",
            "",
        ]
    )


def _names(text: str, top: str, prefix: str) -> dict[str, str]:
    """New module names, so that reference and candidate can be read together. Ports keep theirs."""
    ports = {port.name for port in verilog.ports(text, top) or ()}
    found = {module.name for module in verilog.modules(text)} - ports - {top}
    return {name: f"{prefix}_{name}" for name in found} | {top: prefix}


def _edges(text: str) -> set[tuple[str, str]]:
    """(edge, signal) of every event that a register of ``text`` waits for."""
    stream = verilog.tokens(text)
    return {(a.text, b.text) for a, b in itertools.pairwise(stream) if a.text in ("posedge", "negedge")}


def _one_edge(text: str) -> bool:
    """No signal is used on both of its edges."""
    signals = [signal for _, signal in _edges(text)]
    return len(signals) == len(set(signals))
