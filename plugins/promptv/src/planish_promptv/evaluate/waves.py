"""Waveforms as inline SVG, drawn from the table around a first mismatch: no script, readable when printed."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby

from planish_promptv.types import FirstMismatch

LABEL = 170
STEP = 74
LANE = 30
HIGH = 6
LOW = 22
SLOPE = 4
STYLE = """
.wave{width:auto;max-width:100%;font-size:11px}.wave path{fill:none;stroke:var(--bar);stroke-width:1.4}
.wave path.dut{stroke:#c2571a}.wave path.unknown{stroke:#c0392b;stroke-dasharray:3 2}
.wave rect.wrong{fill:#c0392b;opacity:.14}.wave text.time,.wave text.bus{fill:var(--soft)}
"""


def waveform(mismatch: FirstMismatch) -> str:
    """One lane a signal; samples in which a reference and a design differ are shaded."""
    if not mismatch.rows or not mismatch.columns:
        return ""
    times = [time for time, _ in mismatch.rows]
    lanes = list(zip(*(values for _, values in mismatch.rows), strict=True))
    width = LABEL + STEP * len(times) + 10
    height = 20 + LANE * len(lanes)
    parts = [_shade(mismatch, height)]
    for column, time in enumerate(times):
        x = LABEL + column * STEP
        mark = " ◂ first" if time == mismatch.time else ""
        parts.append(f'<text class="time" x="{x + 3}" y="12">{time}{mark}</text>')
    for number, (name, values) in enumerate(zip(mismatch.columns, lanes, strict=True)):
        y = 18 + number * LANE
        parts.append(f'<text x="{LABEL - 8}" y="{y + 17}" text-anchor="end">{html.escape(name[:26])}</text>')
        parts.append(_lane(values, y, "dut" if name.endswith("_dut") else ""))
    unit = f", in units of {html.escape(mismatch.timescale)}" if mismatch.timescale else ""
    first = ", ".join(f"{html.escape(name)} at {time}" for name, time in mismatch.outputs.items())
    return (
        f"<figure><figcaption>First mismatches: {first}{unit}</figcaption>"
        f'<svg class="wave" viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="waveform around the first mismatch">{"".join(parts)}</svg></figure>'
    )


def _shade(mismatch: FirstMismatch, height: int) -> str:
    """Behind every sample in which an output differs from its reference; x of the reference means don't care."""
    at = {name: index for index, name in enumerate(mismatch.columns)}
    pairs = [
        (at[f"{o}_ref"], at[f"{o}_dut"]) for o in mismatch.outputs if {f"{o}_ref", f"{o}_dut"} <= at.keys()
    ]
    return "".join(
        f'<rect class="wrong" x="{LABEL + column * STEP}" y="16" width="{STEP}" height="{height - 18}"/>'
        for column, (_, values) in enumerate(mismatch.rows)
        if any(values[dut] != values[ref] and "x" not in values[ref].lower() for ref, dut in pairs)
    )


def _lane(values: Sequence[str], y: int, kind: str) -> str:
    """A level for single bits, hexagons with their value for buses, a dashed line for unknown bits."""
    if all(value.lower() in ("0", "1", "x", "z") for value in values):
        return _levels(values, y, kind)
    parts, column = [], 0
    for value, run in groupby(values):
        length = len(list(run))
        left, right = LABEL + column * STEP, LABEL + (column + length) * STEP
        top, bottom, middle = y + HIGH, y + LOW, y + (HIGH + LOW) / 2
        known = "" if not set(value.lower()) & {"x", "z"} else " unknown"
        parts.append(
            f'<path class="{kind}{known}" d="M{left} {middle}L{left + SLOPE} {top}H{right - SLOPE}L{right} {middle}'
            f'L{right - SLOPE} {bottom}H{left + SLOPE}Z"/>'
            f'<text class="bus" x="{left + SLOPE + 3}" y="{middle + 4}">{html.escape(_fitting(value, length))}</text>'
        )
        column += length
    return "".join(parts)


def _levels(values: Sequence[str], y: int, kind: str) -> str:
    parts, column, before = [], 0, None
    for value, run in groupby(value.lower() for value in values):
        length = len(list(run))
        left, right = LABEL + column * STEP, LABEL + (column + length) * STEP
        level = {"0": y + LOW, "1": y + HIGH}.get(value, y + (HIGH + LOW) // 2)
        start = f"M{left} {before}L{left} {level}" if before is not None else f"M{left} {level}"
        unknown = " unknown" if value in "xz" else ""
        parts.append(f'<path class="{kind}{unknown}" d="{start}H{right}"/>')
        before, column = level, column + length
    return "".join(parts)


def _fitting(value: str, length: int) -> str:
    """As much of a bus value as fits."""
    room = max(3, int((length * STEP - 2 * SLOPE) / 7))
    return value if len(value) <= room else value[: room - 1] + "…"
