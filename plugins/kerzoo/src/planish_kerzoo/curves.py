"""Curves of a comparison as one SVG: ``python -m planish_kerzoo.curves comparison.json curves.svg``.

The file is what `planish_kerzoo.benchmark.compare` returns, or a result file of the repository that holds it.
"""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.errors import DataError

WIDTH, HEIGHT, LEFT, TOP, GAP = 210, 140, 56, 34, 46
COLOURS = (
    "#222222",
    "#c0392b",
    "#2471a3",
    "#1e8449",
    "#b9770e",
    "#7d3c98",
    "#16a085",
    "#839192",
    "#d35400",
    "#2c3e50",
)
METRICS = (("objective", "training objective, nats"), ("accuracy", "test accuracy"))


def draw(comparison: Mapping[str, Any], model: str) -> str:
    """Objective and accuracy over forward passes, a panel a task and a line an estimator (mean over seeds)."""
    found = comparison[model]
    names = [name for name, entry in found.items() if isinstance(entry, dict) and "curve forwards" in entry]
    tasks = list(found[names[0]]["lr"])
    width, height = (
        len(tasks) * (WIDTH + LEFT) + LEFT,
        2 * (HEIGHT + GAP) + TOP + 24 * ((len(names) + 3) // 4),
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">'
    ]
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for row, (metric, label) in enumerate(METRICS):
        for column, task in enumerate(tasks):
            x, y = LEFT + column * (WIDTH + LEFT), TOP + row * (HEIGHT + GAP)
            lines = [(found[n]["curve forwards"], found[n][f"curve {metric}"][task]) for n in names]
            parts += _panel(
                x, y, f"{task}: {label}", lines, ceiling=lines[0][1][0] if metric == "objective" else 1.0
            )
    for number, name in enumerate(names):
        x, y = LEFT + number % 4 * 260, TOP + 2 * (HEIGHT + GAP) + number // 4 * 24
        parts.append(f'<rect x="{x}" y="{y}" width="18" height="4" fill="{COLOURS[number % len(COLOURS)]}"/>')
        parts.append(f'<text x="{x + 24}" y="{y + 7}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(
    x: int, y: int, title: str, lines: Sequence[tuple[Sequence[float], Sequence[float]]], ceiling: float
) -> list[str]:
    """One chart; what lies above the start of the curves is cut off, so that a diverging run does not flatten the others."""
    last = max(forwards[-1] for forwards, _ in lines)
    low = min(value for _, values in lines for value in values if value == value)
    span = max(ceiling - low, 1e-9)
    parts = [f'<text x="{x}" y="{y - 8}">{html.escape(title)}</text>']
    parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>')
    for value, at in ((ceiling, y + 10), (low, y + HEIGHT)):
        parts.append(f'<text x="{x - 4}" y="{at}" text-anchor="end">{value:.3f}</text>')
    parts.append(f'<text x="{x + WIDTH}" y="{y + HEIGHT + 14}" text-anchor="end">{last} forwards</text>')
    for number, (forwards, values) in enumerate(lines):
        points = [
            f"{x + WIDTH * at / last:.1f},{y + HEIGHT * (ceiling - min(value, ceiling)) / span:.1f}"
            for at, value in zip(forwards, values, strict=True)
        ]
        colour = COLOURS[number % len(COLOURS)]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
    return parts


def main(source: Path, target: Path) -> None:
    """Draw the first model of a comparison. Raises DataError where the file holds none."""
    try:
        data: dict[str, Any] = json.loads(source.read_text())
        comparison = data.get("parts", {}).get("compare", data)
        model = next(
            name for name, value in comparison.items() if isinstance(value, dict) and "grid" in value
        )
    except (OSError, ValueError, AttributeError, StopIteration):
        raise DataError(f"{source}: holds no comparison of estimators") from None
    target.write_text(draw(comparison, model), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
