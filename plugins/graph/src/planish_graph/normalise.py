"""The aggregation matrices of the usual graph networks, from a plain adjacency."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph.graph import Graph, row_pointer

Aggregation = Literal["sum", "mean", "gcn"]


def normalised(graph: Graph, how: Aggregation, *, self_loops: bool = False, loop: float = 1.0) -> Graph:
    """The matrix that ``how`` multiplies features with.

    ``"sum"`` (GIN) is the graph itself, ``"mean"`` (GraphSAGE) divides each row by its number of entries, whatever
    their values, and ``"gcn"`` (Kipf and Welling, 2017) is D^-1/2 A D^-1/2 with D the row sums; rows whose sum is not
    positive become zero.

    Args:
        self_loops: first give every node without a self-loop one of weight ``loop``; existing ones keep their weight.

    Raises:
        DataError: ``how`` is unknown, or self-loops or "gcn" are asked for on a rectangular matrix.
    """
    if how not in ("sum", "mean", "gcn"):
        raise DataError(f"aggregation {how!r} is not one of sum, mean, gcn")
    if (self_loops or how == "gcn") and graph.num_rows != graph.num_cols:
        raise DataError(
            f"aggregation {how!r}: the graph is {graph.num_rows} x {graph.num_cols}; valid: square, "
            "because it needs a degree on both sides"
        )
    if self_loops:
        graph = with_self_loops(graph, loop)
    if how == "sum":
        return graph
    value = _values(graph)
    exact = torch.promote_types(value.dtype, torch.float32)  # 16 bits can neither count nor add up a long row
    rows = graph.rows.long()
    if how == "mean":
        return graph.with_values((value.to(exact) / graph.degrees[rows]).to(value.dtype))
    total = graph.row_sum(exact)
    scale = torch.where(total > 0, total, torch.inf).rsqrt()
    return graph.with_values((scale[rows] * value.to(exact) * scale[graph.indices.long()]).to(value.dtype))


def with_self_loops(graph: Graph, loop: float = 1.0) -> Graph:
    """Every node with exactly one self-loop, last in its row: its own weight where it had one, else ``loop``. A graph
    without values gets none where ``loop`` is 1."""
    rows, cols = graph.rows.long(), graph.indices.long()
    own = rows == cols
    node = torch.arange(graph.num_rows, device=graph.device)
    kept = torch.cat([rows[~own], node])
    order = torch.argsort(kept, stable=True)
    counts = torch.bincount(kept, minlength=graph.num_rows)
    value = None
    if graph.value is not None or loop != 1.0:
        given = _values(graph)
        weight = torch.full((graph.num_rows,), loop, dtype=given.dtype, device=graph.device)
        weight = weight.index_put((rows[own],), given[own])
        value = torch.cat([given[~own], weight])[order]
    return Graph(
        row_pointer(counts, graph.indptr.dtype),
        torch.cat([cols[~own], node])[order].to(graph.indptr.dtype),
        value,
        graph.num_cols,
    )


def _values(graph: Graph) -> Tensor:
    return torch.ones(graph.num_edges, device=graph.device) if graph.value is None else graph.value
