"""Where reference and design first differ, read from the value change dump as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path

from planish_promptv.types import FirstMismatch

CAP = 64 << 20
"""Bytes of a dump that are read at most; a difference behind them is not found."""
BEFORE, AFTER = 6, 2


def first_mismatch(path: Path) -> FirstMismatch | None:
    """The first time at which an output ``NAME_dut`` differs from ``NAME_ref``, with the values around it.

    Values are compared at the end of each time step. A bit that is x in the reference matches anything; an x or z of
    the design where the reference has a value is a difference. None when nothing differs, or nothing is dumped.
    """
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as stream:
        lines = _lines(stream.readline)
        timescale, signals = _header(lines)
        names = [name for aliases in signals.values() for name in aliases]
        pairs = sorted(
            name.removesuffix("_ref")
            for name in names
            if name.endswith("_ref") and f"{name.removesuffix('_ref')}_dut" in names
        )
        if not pairs:
            return None
        outputs = [f"{name}{side}" for name in pairs for side in ("_ref", "_dut")]
        columns = [n for n in names if n not in outputs and n != "tb_mismatch"]
        columns += outputs
        return _search(lines, signals, pairs, columns, timescale)


def _search(
    lines: Iterator[str], signals: dict[str, list[str]], pairs: list[str], columns: list[str], timescale: str
) -> FirstMismatch | None:
    values = {name: "x" for names in signals.values() for name in names}
    recent: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=BEFORE)
    first: dict[str, int] = {}
    rows: list[tuple[int, tuple[str, ...]]] = []
    found_at, after = -1, 0
    for time, changes in _steps(lines):
        for code, value in changes:
            for name in signals.get(code, ()):
                values[name] = value
        for name in pairs:
            if name not in first and _differ(values[f"{name}_ref"], values[f"{name}_dut"]):
                first[name] = time
        row = (time, tuple(_show(values[name]) for name in columns))
        if first and found_at < 0:
            found_at, rows = time, [*recent, row]
        elif found_at >= 0 and after < AFTER:
            after += 1
            rows.append(row)
        recent.append(row)
        if len(first) == len(pairs) and after >= AFTER:
            break
    if not first:
        return None
    return FirstMismatch(
        time=found_at, timescale=timescale, outputs=first, columns=tuple(columns), rows=tuple(rows)
    )


def _lines(readline: object) -> Iterator[str]:
    left = CAP
    while left > 0:
        line = readline(1 << 20)  # type: ignore[operator]
        if not line:
            return
        left -= len(line)
        yield line.decode("ascii", "replace").strip()


def _header(lines: Iterator[str]) -> tuple[str, dict[str, list[str]]]:
    """Time unit, and identifier code -> names of the signals it stands for.

    Signals of the bench itself count; those of scopes inside it only where no other has the name.
    """
    timescale, depth, words = "", 0, []
    places: dict[str, tuple[int, str]] = {}
    for line in lines:
        words += line.split()
        if "$end" not in words:
            continue
        if words[0] == "$enddefinitions":
            break
        if words[0] == "$timescale":
            timescale = "".join(words[1:-1])
        elif words[0] == "$scope":
            depth += 1
        elif words[0] == "$upscope":
            depth -= 1
        elif words[0] == "$var" and len(words) >= 6:
            code, name = words[3], words[4]
            if name not in places or depth < places[name][0]:
                places[name] = (depth, code)
        words = []
    signals: dict[str, list[str]] = {}
    top = min((depth for depth, _ in places.values()), default=0)
    for name, (depth, code) in places.items():
        if depth == top or name == "clk":
            signals.setdefault(code, []).append(name)
    return timescale, signals


def _steps(lines: Iterator[str]) -> Iterator[tuple[int, list[tuple[str, str]]]]:
    """(time, changes in it) for each time step with a change."""
    time = 0
    changes: list[tuple[str, str]] = []
    for line in lines:
        if not line or line[0] == "$":
            continue
        if line[0] == "#":
            now = int(line[1:]) if line[1:].isdigit() and len(line) < 24 else time
            if changes and now != time:
                yield time, changes
                changes = []
            time = now
        elif line[0] in "bB":
            value, _, code = line[1:].partition(" ")
            changes.append((code, value.lower()))
        elif line[0] in "01xzXZ":
            changes.append((line[1:], line[0].lower()))
    if changes:
        yield time, changes


def _differ(reference: str, design: str) -> bool:
    if reference == design:
        return False
    width = max(len(reference), len(design))
    pairs = zip(_extend(reference, width), _extend(design, width), strict=True)
    return any(r != d for r, d in pairs if r in "01")


def _extend(value: str, width: int) -> str:
    """A dump leaves leading zeros out, and leading x or z where the first digit is one."""
    fill = value[0] if value[:1] in ("x", "z") else "0"
    return value.rjust(width, fill)


def _show(value: str) -> str:
    if len(value) == 1 or value.strip("01") != "":
        return value
    return f"{int(value, 2):x}h"
