"""Bar charts as inline SVG: no script, no font to load, readable when printed."""

from __future__ import annotations

import html
from collections.abc import Sequence

WIDTH = 860
LABEL = 290
BAR = 18
GAP = 6
VALUE = 210


def bars(title: str, values: Sequence[tuple[str, float, str]], limit: float | None = None) -> str:
    """Horizontal bars.

    Args:
        title: heading, with the unit.
        values: (label, value, text beside the bar).
        limit: value of a full bar; the largest value by default.
    """
    if not values:
        return ""
    full = limit or max(value for _, value, _ in values) or 1.0
    height = len(values) * (BAR + GAP) + GAP
    room = WIDTH - LABEL - VALUE
    rows = []
    for number, (label, value, text) in enumerate(values):
        y = GAP + number * (BAR + GAP)
        width = max(1.0, room * min(value / full, 1.0)) if value > 0 else 0.0
        middle = y + BAR * 0.72
        rows.append(
            f'<text x="{LABEL - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(_short(label))}'
            f"<title>{html.escape(label)}</title></text>"
            f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
            f'<text x="{LABEL + width + 6:.1f}" y="{middle:.1f}" class="value">{html.escape(text)}</text>'
        )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{html.escape(title)}">{"".join(rows)}</svg></figure>'
    )


def _short(label: str, limit: int = 42) -> str:
    return label if len(label) <= limit else "…" + label[1 - limit :]
