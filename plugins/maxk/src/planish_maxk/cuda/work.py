"""Units of work for a warp: rows of the graph, and pieces of long ones."""

from __future__ import annotations

import torch
from torch import Tensor

from planish_graph.graph import Graph

SMALL = 300_000
"""Entries of a graph that does not fill a GPU."""
LONG = {SMALL: 32, 8_000_000: 128}
LONGEST = 512
"""Longest unit of work on a graph of up to so many entries, and on a larger one; twice that where rows are very long."""
WHOLE = 256
"""Entries of the longest row up to which none is cut: another launch, which adds up the pieces, takes longer than such a row."""
BUSY = (30, 100)
"""Entries a row on average from which rows count as long, and as very long."""
WINDOW = 2048
"""Consecutive rows among which units are sorted by length where the order of rows is worth keeping."""


def divide(graph: Graph, window: int | None = WINDOW, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Units of work; kept on the graph.

    They are sorted by falling length, so that the warps of a block end together: within windows of consecutive rows, so
    that what neighbours read stays cached, or, with None, all of them.

    Returns:
        units [U, 4]: row, first entry, entries, and the number of the piece or -1 for a whole row; cuts [C, 3]: row, its
        first piece, and how many. Of the graph's index type.
    """
    window = window or max(1, graph.num_rows)
    key = "maxk units", longest, window
    return graph.checked().kept(key, lambda: _units(graph, longest or _longest(graph), window))


def _longest(graph: Graph) -> int:
    usual = LONGEST * (2 if busy(graph.num_rows, graph.num_edges) == 2 else 1)
    longest = min([n for most, n in LONG.items() if graph.num_edges <= most], default=usual)
    whole = graph.num_edges and int(graph.degrees.max()) <= WHOLE
    return max(longest, WHOLE) if whole else longest


def busy(rows: int, entries: int) -> int:
    """0, 1 or 2: whether rows are long, or very long, on average; -1 on a graph too small to fill a GPU."""
    if entries <= SMALL:
        return -1
    return (entries >= BUSY[0] * rows) + (entries >= BUSY[1] * rows)


def _units(graph: Graph, longest: int, window: int) -> tuple[Tensor, Tensor]:
    degrees = graph.degrees
    pieces = ((degrees + longest - 1) // longest).clamp_min(1)
    total = int(pieces.sum())
    row = torch.repeat_interleave(pieces, output_size=total)
    within = torch.arange(total, device=graph.device) - (pieces.cumsum(0) - pieces)[row]
    start = graph.indptr[row].long() + within * longest
    count = (graph.indptr[row + 1].long() - start).clamp_max(longest)
    cut = pieces[row] > 1
    piece = torch.where(cut, cut.cumsum(0) - 1, -1)
    order = torch.argsort(count, descending=True, stable=True)
    order = order[torch.argsort(row[order] // window, stable=True)]
    units = torch.stack([row, start, count, piece], 1)[order]
    rows = (pieces > 1).nonzero()[:, 0]
    many = pieces[rows]
    cuts = torch.stack([rows, many.cumsum(0) - many, many], 1)
    return units.to(graph.indptr.dtype).contiguous(), cuts.to(graph.indptr.dtype).contiguous()
