"""Curves of a comparison as one SVG: ``python -m planish_kerzoo.curves comparison.json curves.svg [MODEL]``.

The file is what `planish_kerzoo.benchmark.compare` returns, or a result file of the repository that holds it.
"""

from __future__ import annotations

import html
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planish.errors import DataError
from planish_kerzoo.contest import ADAMW

WIDTH, HEIGHT, LEFT, TOP, GAP = 210, 140, 56, 34, 46
COLOURS = (
    "#222222",
    "#c0392b",
    "#2471a3",
    "#1e8449",
    "#b9770e",
    "#7d3c98",
    "#e84393",
    "#839192",
    "#d35400",
    "#2c3e50",
)
METRICS = (("objective", "training objective, nats"), ("accuracy", "test accuracy"))


def draw(comparison: Mapping[str, Any], model: str) -> str:
    """Objective and accuracy over forward passes at the first eps, a panel a task and a line an estimator (mean over seeds)."""
    found = comparison[model]
    entries = (name for name, entry in found.items() if isinstance(entry, dict) and "curve forwards" in entry)
    names = [name for name in entries if ", eps " not in name]
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
            shown = [values for n, (_, values) in zip(names, lines, strict=True) if n != ADAMW]
            parts += _panel(x, y, f"{task}: {label}", lines, _bounds(shown, falling=metric == "objective"))
    for number, name in enumerate(names):
        x, y = LEFT + number % 4 * 260, TOP + 2 * (HEIGHT + GAP) + number // 4 * 24
        parts.append(f'<path d="M{x} {y + 3}h20" fill="none" {_stroke(number)}/>')
        parts.append(f'<text x="{x + 24}" y="{y + 7}">{html.escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _bounds(lines: Sequence[Sequence[float]], falling: bool) -> tuple[float, float]:
    """Lowest and highest value of a chart. Of falling curves, what lies above the slowest one's second point is left out: the
    first fall and runs that diverge would flatten the rest. The first-order ceiling does not count."""
    finite = [value for values in lines for value in values if math.isfinite(value)]
    start = max(values[0] for values in lines)
    high = min(start, max(values[1] for values in lines)) if falling else max(finite)
    return min(finite), max(high, min(finite) + 1e-9)


def _panel(
    x: int,
    y: int,
    title: str,
    lines: Sequence[tuple[Sequence[float], Sequence[float]]],
    bounds: tuple[float, float],
) -> list[str]:
    """One chart; lines that leave it run along its edge."""
    last = max(forwards[-1] for forwards, _ in lines)
    low, high = bounds
    parts = [f'<text x="{x}" y="{y - 8}">{html.escape(title)}</text>']
    parts.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>')
    for value, at in ((high, y + 10), (low, y + HEIGHT)):
        parts.append(f'<text x="{x - 4}" y="{at}" text-anchor="end">{value:.3f}</text>')
    parts.append(f'<text x="{x + WIDTH}" y="{y + HEIGHT + 14}" text-anchor="end">{last} forwards</text>')
    for number, (forwards, values) in enumerate(lines):
        heights = ((high - min(max(value, low), high)) / (high - low) for value in values)
        points = [
            f"{x + WIDTH * at / last:.1f},{y + HEIGHT * height:.1f}"
            for at, height in zip(forwards, heights, strict=True)
        ]
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" {_stroke(number)}/>')
    return parts


def _stroke(number: int) -> str:
    """Colour of a line; dashed once all colours are used."""
    again, colour = divmod(number, len(COLOURS))
    return f'stroke="{COLOURS[colour]}" stroke-width="1.5"' + ' stroke-dasharray="5 3"' * again


def main(source: Path, target: Path, model: str | None = None) -> None:
    """Draw one model of a comparison, by default the first. Raises DataError where the file does not hold it."""
    try:
        data: dict[str, Any] = json.loads(source.read_text())
        comparison = data.get("parts", {}).get("compare", data)
        models = [name for name, value in comparison.items() if isinstance(value, dict) and "grid" in value]
        chosen = models[0] if model is None else models[models.index(model)]
    except (OSError, ValueError, AttributeError, IndexError):
        raise DataError(
            f"{source}: holds no comparison of estimators" + f" on {model}" * bool(model)
        ) from None
    target.write_text(draw(comparison, chosen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:4])
