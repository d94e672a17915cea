"""Designs that do nothing, to find benches that cannot fail."""

from __future__ import annotations

from planish.errors import PlanishError
from planish_promptv.harness import verilog
from planish_promptv.types import Port, Task

VALUES = {"zeros": "'0", "ones": "'1", "unknown": "'x"}


def known_ports(task: Task) -> tuple[Port, ...]:
    """The ports of the task's design, from the task, its header or its reference.

    Raises:
        PlanishError: none of them names the ports.
    """
    found = task.ports
    if not found and task.header:
        found = verilog.ports(task.header, task.top_name)
    if not found and task.reference:
        found = verilog.ports(task.reference, task.top_name)
    if not found:
        raise PlanishError(
            f"task {task.id}: the ports of {task.top_name!r} are not known (give ports or a header)"
        )
    return found


def stubs(task: Task) -> dict[str, str]:
    """Name -> source of designs with the task's header whose outputs are constant: 0, all ones, unknown."""
    outputs = [port.name for port in known_ports(task) if port.direction == "output"]
    source = task.header or (verilog.header(task.reference, task.top_name) if task.reference else None)
    head = source and verilog.header(source, task.top_name)
    if not head or not any(word in head for word in ("output", "inout")):  # not ANSI: only names stand in it
        head = _header(task)
    return {name: _stub(head, outputs, value) for name, value in VALUES.items()}


def _stub(head: str, outputs: list[str], value: str) -> str:
    # A procedural assignment in an initial block fits outputs that are registers; nets take a continuous one.
    nets = _nets(head, outputs)
    lines = [f"assign {name} = {value};" for name in outputs if name in nets]
    registers = [f"{name} = {value};" for name in outputs if name not in nets]
    if registers:
        lines.append("initial begin " + " ".join(registers) + " end")
    return "\n".join([head, *lines, "endmodule", ""])


def _nets(head: str, outputs: list[str]) -> set[str]:
    """Those of ``outputs`` that the header declares as nets, not as variables."""
    nets, variable = set(outputs), False
    stream = verilog.tokens(head)
    for token in stream:
        if token.text in ("input", "output", "inout"):
            variable = False
        elif token.text in ("reg", "logic", "integer", "int", "bit"):
            variable = True
        elif token.text in nets and variable:
            nets.discard(token.text)
    return nets


def _header(task: Task) -> str:
    declared = []
    for port in known_ports(task):
        width = f"[{port.width - 1}:0] " if port.width and port.width > 1 else ""
        declared.append(f"{port.direction} {'signed ' if port.signed else ''}{width}{port.name}")
    return f"module {task.top_name}({', '.join(declared)});"
