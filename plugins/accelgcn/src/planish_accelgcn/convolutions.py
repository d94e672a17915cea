"""Convolutions of PyG on this product: same parameters, same outputs, exchanged in place by `accelerate`."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish_accelgcn.ops import spmm
from planish_graph.graph import Graph
from planish_graph.matrices import matrix_of

AGGREGATIONS = {"GCNConv": ("add", "sum"), "SAGEConv": ("mean", "add", "sum"), "GINConv": ("add", "sum")}
"""Layers that are known, and what they may aggregate with."""
PICKLED = tuple(f"Accel{kind}" for kind in AGGREGATIONS)


def accelerate(net: nn.Module) -> int:
    """Let every convolution of PyG in ``net`` that is known here aggregate with `planish_accelgcn.ops.spmm`.

    Known are ``GCNConv``, ``SAGEConv`` (mean, sum) and ``GINConv`` on plain features and edges from source to
    destination. Parameters, their names and the outputs stay; a layer that is used with inputs of another kind, or is
    being explained, runs PyG's own code. Layers change their class in place.

    Returns:
        How many layers were exchanged.
    """
    found = 0
    for layer in net.modules():
        kind = _kind(layer)
        if kind is not None:
            layer.__class__ = _class(type(layer), kind)
            found += 1
    return found


def _kind(layer: Any) -> str | None:
    kind = type(layer).__name__
    if (
        not type(layer).__module__.startswith("torch_geometric.")
        or getattr(layer, "flow", "") != "source_to_target"
    ):
        return None
    known = layer.aggr in AGGREGATIONS.get(kind, ())
    return kind if known and not getattr(layer, "project", False) else None


@cache
def _class(base: type, kind: str) -> type:
    """A subclass of PyG's layer whose forward pass aggregates here."""
    own = {"GCNConv": _gcn, "SAGEConv": _sage, "GINConv": _gin}[kind]

    def forward(self: Any, x: Any, edge_index: Any, *args: Any, **kwargs: Any) -> Any:
        more = [value for value in (*args, *kwargs.values()) if value is not None]
        plain = isinstance(x, Tensor) and x.dim() == 2 and x.layout == torch.strided
        plain = plain and isinstance(edge_index, Tensor) and edge_index.layout == torch.strided
        # Otherwise: a pair of features, features of several graphs at once, a sparse matrix, a size, masks on edges.
        if not plain or self.explain or (more and kind != "GCNConv"):
            return base.forward(self, x, edge_index, *args, **kwargs)  # type: ignore[attr-defined]
        return own(self, x, edge_index, *more)

    # PyG compiles `propagate` for a copy's class again, and takes what it finds for the one that explains, too.
    own_class = {"forward": forward, "propagate": getattr(base, "_orig_propagate", base.propagate)}  # type: ignore[attr-defined]
    return type(f"Accel{kind}", (base,), {**own_class, "__module__": __name__})


def __getattr__(name: str) -> type:
    """The classes of exchanged layers by their names, which is how pickles find them."""
    if name in PICKLED:
        from torch_geometric import nn as pyg

        kind = name.removeprefix("Accel")
        return _class(getattr(pyg, kind), kind)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _gcn(conv: Any, x: Tensor, edges: Any, edge_weight: Tensor | None = None) -> Tensor:
    x = conv.lin(x)
    loops = bool(conv.normalize and conv.add_self_loops)
    if edge_weight is not None or not conv.normalize:
        how = "gcn" if conv.normalize else "sum"
        loop = 2.0 if conv.improved else 1.0
        graph = matrix_of(edges, len(x), how, weight=edge_weight, self_loops=loops, loop=loop)  # type: ignore[arg-type]
        return spmm(graph, x, bias=conv.bias)
    # Without weights PyG's self-loops weigh 1 even where "improved" is set.
    graph = matrix_of(edges, len(x), "sum", self_loops=loops)
    scale = _inverse_root(graph)
    return spmm(graph, x, row_scale=scale, column_scale=scale, bias=conv.bias)


def _inverse_root(graph: Graph) -> Tensor:
    """[N] 1/sqrt of the row sums, 0 where a row has none: what GCN scales both sides with."""

    def build() -> Tensor:
        total = graph.row_sum()
        return total.where(total > 0, float("inf")).rsqrt()

    return graph.kept("inverse root of the row sums", build, values=True)


def _sage(conv: Any, x: Tensor, edges: Any) -> Tensor:
    graph = matrix_of(edges, len(x), "sum")
    mean = conv.aggr == "mean"
    out: Tensor = conv.lin_l(spmm(graph, x, reduce="mean" if mean else "sum"))
    if conv.root_weight:
        out = out + conv.lin_r(x)
    return F.normalize(out, p=2.0, dim=-1) if conv.normalize else out


def _gin(conv: Any, x: Tensor, edges: Any) -> Tensor:
    out: Tensor = conv.nn(spmm(matrix_of(edges, len(x)), x) + (1 + conv.eps) * x)
    return out
