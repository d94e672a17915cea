"""The backward pass by tiles of destinations, in which what a source gets from a tile is added up on chip."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from planish_graph import nvrtc
from planish_graph.driver import Kernel
from planish_graph.graph import Graph, Plan, found
from planish_maxk.cuda.build import module, power, row_floats, usable
from planish_maxk.cuda.products import Team, aligned, begin, span_of

LEAST_ROWS, MOST_ROWS = 16, 256
"""Destinations of a tile: fewer share too few sources; more do not fit the 8 bits that number them."""
RESERVED = 1 << 10
"""Bytes on chip that the system keeps of every block's."""
LARGEST = 1 << 16
"""Entries of a tile that one block goes through."""
MOST_NODES = 1 << 23
"""Sources whose numbers fit 32 bits together with a row's."""


def tile_rows(width: int, device: int) -> int:
    """Gradient rows of that width that lie on chip at once."""
    if device not in _space:
        _space[device] = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return min(MOST_ROWS, (_space[device] - RESERVED) // (4 * row_floats(width)))


_space: dict[int, int] = {}
"""Bytes on chip that a block may have, by device."""


def fits_tiles(values: Tensor, width: int) -> bool:
    """Whether the pass runs on such values [M, k] of rows of that width."""
    return usable(values) and tile_rows(width, values.device.index) >= LEAST_ROWS


def divide_tiles(graph: Graph, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries by tiles of ``rows`` destinations and, within one, by source; kept on the graph.

    Returns:
        units [U, 4]: first row, rows, first entry, entries; the longest first. packed [E]: 256 source + row within the tile.
        order [E]: the entries' places in A. Of the graph's index type, or int64 where sources do not fit that.
    """
    return graph.checked().kept(("maxk tiles", rows), lambda: _divide(graph, rows))


def forget_tiles(graph: Graph, rows: int) -> None:
    """Free what `divide_tiles` and the pass keep on the graph: 12 to 24 bytes an entry."""
    graph.forget(("maxk tiles", rows))
    graph.forget(("maxk tile values", rows))


def _divide(graph: Graph, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    kind = graph.indptr.dtype if graph.num_cols <= MOST_NODES else torch.int64
    row = graph.rows.long()
    key = row // rows * graph.num_cols + graph.indices
    order = torch.argsort(key, stable=True)
    del key
    packed = (graph.indices.to(kind) * MOST_ROWS + (row % rows).to(kind))[order]
    del row
    first = torch.arange(0, graph.num_rows, rows, device=graph.device)
    last = (first + rows).clamp_max(graph.num_rows)
    start, end = graph.indptr[first].long(), graph.indptr[last].long()
    pieces = (end - start + LARGEST - 1) // LARGEST
    tile = torch.repeat_interleave(pieces)
    within = torch.arange(len(tile), device=graph.device) - (pieces.cumsum(0) - pieces)[tile]
    entry = start[tile] + within * LARGEST
    count = (end[tile] - entry).clamp_max(LARGEST)
    units = torch.stack([first[tile], (last - first)[tile], entry, count], 1)
    units = units[torch.argsort(count, descending=True, stable=True)]
    return units.to(kind).contiguous(), packed, order.to(kind)


def backward_tiles(
    plan: Plan,
    work: tuple[Tensor, ...],
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    wanted: tuple[bool, bool],
    team: Team | None = None,
    rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """As `planish_maxk.cuda.backward`; ``work`` is what `divide_tiles` gave for ``rows``, `tile_rows` of them by default."""
    nodes, k = index.shape
    units, packed, order = work
    grad, of_values, of_weight, atomic = begin(plan, grad, index, wanted)
    if not atomic and not wanted[1]:
        return of_values, of_weight
    width, device = grad.shape[1], grad.device.index
    rows = rows or tile_rows(width, device)
    weight = _values(plan, order, nodes, rows)
    team = team or tile_team(span_of(nodes, k), aligned(k, values, index))
    span = min(span_of(nodes, k), team.lanes * team.vec)
    kernel = _tiles(
        grad.dtype, index.element_size(), packed.element_size(), width, k, device, weight is not None, span, atomic, wanted[1], team
    )  # fmt: skip
    for slot in range(0, k, span):
        kernel(
            len(units), 32 * team.warps, units, packed, order, weight, grad, values, index, of_values, of_weight,
            nvrtc.i32(slot), shared=4 * rows * row_floats(width),
        )  # fmt: skip
    return of_values, of_weight


def tile_team(span: int, vec: int = 4) -> Team:
    """One block of as many warps as fit, since a tile takes all of the space on chip."""
    lanes = min(32, power(-(-span // vec)))
    return Team(vec, lanes, 32 // lanes, 4, 32)


@cache
def _tiles(
    dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, weighted: bool, span: int,
    values: bool, weights: bool, team: Team,
) -> Kernel:  # fmt: skip
    macros = {
        **team.macros(), "WEIGHTED": int(weighted), "SPAN": span, "VALUES": int(values), "WEIGHTS": int(weights),
        "BATCH": max(8, team.lanes), "BLOCKS": 32 // team.warps,
    }  # fmt: skip
    return module("tiles", dtype, position, node, width, k, device, macros)["tiles"]


def _values(plan: Plan, order: Tensor, nodes: int, rows: int) -> Tensor | None:
    """[E] A's values in the order of the tiles; kept as long as they do not change."""
    if plan.value is None:
        return None
    value = plan.value.detach()

    def make() -> Tensor:
        return value.index_select(0, order).float()

    graph = found(plan.indptr, plan.indices, value, nodes)
    return make() if graph is None else graph.kept(("maxk tile values", rows), make, values=True)
