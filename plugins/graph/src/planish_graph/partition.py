"""Work for kernels: rows cut into segments of bounded length, in row order or sorted by degree inside windows.

Balancing by a global sort on degree scatters neighbouring rows over the device and with them the reuse of cached
features. Here rows keep their order, or are sorted only inside windows of consecutive rows; that long work starts
first is left to a separate list. Our design.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph.graph import Graph


@dataclass(frozen=True, slots=True)
class Segments:
    """S pieces of rows, each at most ``length`` entries long.

    Attributes:
        row, start, count: [S] of the graph's index type: the row, its first entry in this segment, how many.
        cut: [S] bool, whether the row has other segments, so that results have to be added up.
        schedule: [S] int64, segment numbers with those of cut rows first, each group in row order.
        length: longest segment allowed.
    """

    row: Tensor
    start: Tensor
    count: Tensor
    cut: Tensor
    schedule: Tensor
    length: int


def segments(graph: Graph, length: int = 512, *, window: int = 1, empty: bool = True) -> Segments:
    """Cut the rows of ``graph`` into segments, on its device; kept on the graph until it changes.

    Args:
        length: longest segment.
        window: rows are sorted by falling degree inside windows of so many consecutive rows; 1 keeps their order.
        empty: give a row without entries a segment of length 0, so that a kernel writes its zeros.

    Raises:
        DataError: ``length`` or ``window`` is below 1.
    """
    for name, value in (("length", length), ("window", window)):
        if value < 1:
            raise DataError(f"segments: {name} = {value}; valid: 1 or more")
    key = ("segments", length, window, empty)
    return graph.checked().kept(key, lambda: _cut(graph, length, window, empty))


def _cut(graph: Graph, length: int, window: int, empty: bool) -> Segments:
    degrees = graph.degrees
    pieces = (degrees + length - 1) // length
    if empty:
        pieces = pieces.clamp_min(1)
    order = torch.arange(graph.num_rows, device=graph.device)
    if window > 1:
        order = torch.argsort(degrees, descending=True, stable=True)
        order = order[torch.argsort(order // window, stable=True)]
    pieces = pieces[order]
    total = int(pieces.sum())
    place = torch.repeat_interleave(pieces, output_size=total)
    row = order[place]
    first = pieces.cumsum(0) - pieces
    within = torch.arange(total, device=graph.device) - first[place]
    start = graph.indptr[row].to(torch.int64) + within * length
    count = (graph.indptr[row + 1] - start).clamp_max(length)
    cut = pieces[place] > 1
    schedule = torch.argsort((~cut).to(torch.int8), stable=True)
    index = graph.indptr.dtype
    return Segments(row.to(index), start.to(index), count.to(index), cut, schedule, length)
