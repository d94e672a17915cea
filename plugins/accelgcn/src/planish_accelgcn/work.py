"""Work lists of the CUDA kernels: chunks of consecutive rows, a thread block each. Our design.

Rows keep their order, so that the rows of a chunk find each other's neighbours in the caches. Balance comes from
chunks of about equal work, from starting long tasks first inside a chunk, and from cutting long rows: into segments
whose sums meet in the block's shared memory, and gigantic ones into pieces, a chunk each, that a second kernel adds up.
All sums are taken in a fixed order. The lists are built by one kernel, in about the time of a small product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.errors import DataError
from planish_accelgcn.sources import source
from planish_graph import check, nvrtc
from planish_graph.graph import Graph

ROW_COST = 4
"""Work of a row beyond its entries, in entries."""
THREADS = 256
LISTS = "accelgcn work"
"""First word of the keys of lists that are kept on a graph."""


@dataclass(frozen=True, slots=True)
class Work:
    """Lists as the kernels read them, all int32 on the graph's device. Between what is used there are gaps.

    Attributes:
        tasks: [_, 4] row, first entry after the chunk's first, entries, slot for the sum (-1: the row is whole). In
            each chunk those that a warp takes alone come first, then short rows; both by falling length, roughly.
        chunks: [C, 8] first entry (low and high half), first task, tasks of a whole warp, tasks, first cut, cuts, piece
            (-1: none).
        cuts: [_, 4] row, first slot, slots, entries of the row.
        giants: [G, 4] row, first piece, pieces, entries.
        slots: most slots that a chunk needs.
    """

    tasks: Tensor
    chunks: Tensor
    cuts: Tensor
    giants: Tensor
    slots: int

    @property
    def pieces(self) -> int:
        """Places for sums of pieces, one a chunk; none where no row is gigantic."""
        return len(self.chunks) if len(self.giants) else 0


def work(graph: Graph, chunk: int, segment: int, short: int) -> Work:
    """Work lists of ``graph``, kept on it.

    Args:
        chunk: work of a thread block, in entries; rows of more than twice as many are gigantic.
        segment: most entries that a warp takes at once; a multiple of 32.
        short: rows up to so many entries share a warp.

    Raises:
        DataError: more rows or columns, or more entries in a row, than 32 bits can count.
    """
    key = (LISTS, chunk, segment, short)
    return graph.checked().kept(key, lambda: _build(graph, chunk, segment, short))


def within(graph: Graph, chunk: int, segment: int, short: int, slots: int) -> Work:
    """As `work`, with segments long enough that no chunk needs more than ``slots``, which must be positive."""
    # It ends: segments longer than two chunks cut gigantic rows alone, and each piece of these is one segment.
    while (lists := work(graph, chunk, segment, short)).slots > slots:
        segment *= 2
    return lists


def _build(graph: Graph, chunk: int, segment: int, short: int) -> Work:
    check.fits(torch.int32, graph.num_rows, graph.num_cols, 0)
    if graph.longest_row > check.INT32_MAX:
        raise DataError(f"graph: a row of {graph.longest_row} entries; valid: at most {check.INT32_MAX}")
    edges, rows = graph.num_edges, graph.num_rows
    chunks = (edges + ROW_COST * rows) // chunk + 1
    row_cuts = edges // segment + 1
    tasks, records, cuts, giants = (
        torch.empty(number, width, dtype=torch.int32, device=graph.device)
        for number, width in (
            (rows + row_cuts, 4),
            (chunks, 8),
            (row_cuts + chunks, 4),
            (edges // (2 * chunk) + 1, 4),
        )
    )
    cut = graph.longest_row > min(segment, 2 * chunk)
    totals = torch.zeros(2, dtype=torch.int32, device=graph.device) if cut else None
    macros = {
        "INDEX": "int" if graph.indptr.dtype == torch.int32 else "long long",
        "CHUNK": chunk,
        "SEGMENT": segment,
        "SHORT": short,
        "ROW_COST": ROW_COST,
    }
    kernel = nvrtc.compile(source("work"), defines=macros, device=graph.device)["work"]
    kernel(chunks, THREADS, graph.indptr, nvrtc.i32(rows), tasks, records, cuts, row_cuts, giants, totals)
    # Waiting for the device takes longer than a small product, and nothing is waited for where no row is cut.
    slots, gigantic = (0, 0) if totals is None else totals.tolist()
    return Work(tasks, records, cuts, giants[:gigantic], slots)
