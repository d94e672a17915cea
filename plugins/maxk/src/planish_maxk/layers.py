"""Layers of rewritten networks. Each takes dense features or compressed rows, so that one network runs either way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish_graph.convert import as_graph
from planish_graph.matrices import matrix_of
from planish_maxk.cbsr import CBSR, aggregate, drop, maxk

Rows = CBSR | Tensor


def dense(rows: Rows) -> Tensor:
    """Rows of the full width, for what is no aggregation: a root weight, a residual."""
    return rows if isinstance(rows, Tensor) else rows.to_dense()


class MaxK(nn.Module):
    """The k largest entries of each row, compressed; with ``k = None`` it is ReLU.

    Attributes:
        width: columns of the last input; 0 before the first.
    """

    def __init__(self, k: int | None) -> None:
        super().__init__()
        self.k = k
        self.width = 0

    def forward(self, x: Tensor) -> Rows:
        self.width = x.shape[1]
        return F.relu(x) if self.k is None else maxk(x, self.k)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class KeptDropout(nn.Module):
    """Dropout on kept entries, at the rate ``p``, or at the rate and in the mode of the layer that it stands for."""

    def __init__(self, p: float | nn.Dropout) -> None:
        super().__init__()
        self.p = p

    def forward(self, rows: Rows) -> Rows:
        p, training = (
            (self.p.p, self.p.training) if isinstance(self.p, nn.Dropout) else (self.p, self.training)
        )
        return F.dropout(rows, p, training) if isinstance(rows, Tensor) else drop(rows, p, training)


class Product(nn.Module):
    """A x for an adjacency in any accepted form, as it is given; a dense one is multiplied as such.

    A linear layer between the nonlinearity and the product is applied after it, which is the same: A (x W + 1 b) =
    (A x) W + (A 1) b. Its weight and bias are ``linear``'s, or come as ``weight`` [D, out].
    """

    def __init__(self, linear: nn.Linear | None = None) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, adjacency: Any, rows: Rows, weight: Tensor | None = None) -> Tensor:
        if isinstance(adjacency, Tensor) and adjacency.layout == torch.strided:
            x = dense(rows)
            return adjacency @ (self.linear(x) if self.linear else x if weight is None else x @ weight)
        if isinstance(adjacency, Tensor):
            adjacency = matrix_of(adjacency, adjacency.shape[0])
        graph = as_graph(adjacency)
        out = aggregate(graph, rows)
        if weight is not None:
            return out @ weight
        if self.linear is None:
            return out
        out, bias = F.linear(out, self.linear.weight), self.linear.bias
        if bias is None:
            return out
        exact = torch.promote_types(out.dtype, torch.float32)  # 16 bits lose count of long rows
        return out + (graph.row_sum(exact)[:, None] * bias.to(exact)).to(out.dtype)


class EdgeProduct(Product):
    """The same for an ``edge_index`` [2, E] and symmetric normalisation with self-loops (Kipf and Welling, 2017)."""

    def forward(self, edges: Tensor, rows: Rows, weight: Tensor | None = None) -> Tensor:
        nodes = (rows if isinstance(rows, Tensor) else rows.values).shape[0]
        return super().forward(matrix_of(edges, nodes, "gcn", self_loops=True), rows, weight)


class Convolution(nn.Module):
    """A layer of PyG. While it is being explained, and with inputs of another kind, its own code runs, on the kept
    entries."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, rows: Rows, edge_index: Any, *args: Any, **kwargs: Any) -> Tensor:
        more = any(value is not None for value in (*args, *kwargs.values()))
        if self.conv.explain or not isinstance(edge_index, Tensor) or (more and not isinstance(self, GCN)):
            out: Tensor = self.conv(dense(rows), edge_index, *args, **kwargs)
            return out
        return self.aggregated(rows, edge_index, *args, **kwargs)

    def aggregated(self, rows: Rows, edges: Any, *args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError


class GCN(Convolution):
    """A `GCNConv` of PyG, aggregating before its linear layer: (A x) W = A (x W)."""

    def aggregated(self, rows: Rows, edges: Any, edge_weight: Tensor | None = None) -> Tensor:
        conv, nodes = self.conv, _nodes(rows)
        how = "gcn" if conv.normalize else "sum"
        # PyG's "improved" weighs self-loops with 2 only where edges have weights; without, all are 1.
        weighted = edge_weight is not None or edges.layout != torch.strided
        fill = 2.0 if conv.improved and weighted else 1.0
        graph = matrix_of(edges, nodes, how, weight=edge_weight, self_loops=conv.add_self_loops, loop=fill)  # type: ignore[arg-type]
        out: Tensor = conv.lin(aggregate(graph, rows))
        return out if conv.bias is None else out + conv.bias


class SAGE(Convolution):
    """A `SAGEConv` of PyG with mean or sum aggregation."""

    def aggregated(self, rows: Rows, edges: Any, size: None = None) -> Tensor:
        conv = self.conv
        graph = matrix_of(edges, _nodes(rows), "mean" if conv.aggr == "mean" else "sum")
        out: Tensor = conv.lin_l(aggregate(graph, rows))
        if conv.root_weight:
            out = out + conv.lin_r(dense(rows))
        return F.normalize(out, p=2.0, dim=-1) if conv.normalize else out


class GIN(Convolution):
    """A `GINConv` of PyG."""

    def aggregated(self, rows: Rows, edges: Any, size: None = None) -> Tensor:
        graph = matrix_of(edges, _nodes(rows))
        out: Tensor = self.conv.nn(aggregate(graph, rows) + (1 + self.conv.eps) * dense(rows))
        return out


def _nodes(rows: Rows) -> int:
    return int((rows if isinstance(rows, Tensor) else rows.values).shape[0])
