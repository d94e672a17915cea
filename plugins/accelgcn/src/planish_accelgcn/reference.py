"""The fused product in plain torch: y = act(R A C x + bias), R and C diagonal. What the kernel is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from planish_graph.graph import Graph


class Fused(NamedTuple):
    """What is done beside A x.

    Attributes:
        row_scale, column_scale, bias: [N], [M], [D], fp32 or fp64; each may be absent.
        mean: divide every row by its number of entries.
        relu: max(y, 0) at the end.
    """

    row_scale: Tensor | None = None
    column_scale: Tensor | None = None
    bias: Tensor | None = None
    mean: bool = False
    relu: bool = False


def product(graph: Graph, x: Tensor, fused: Fused, plain: Callable[[Graph, Tensor], Tensor]) -> Tensor:
    """y [N, D] of x's type, from any ``plain(graph, x)`` for A x. What follows A x is done in fp32 at least."""
    if fused.column_scale is not None:
        x = (x * fused.column_scale[:, None]).to(x.dtype)
    out = plain(graph, x)
    exact = out.to(torch.promote_types(out.dtype, torch.float32))
    if fused.mean:
        exact = exact / graph.degrees.clamp_min(1)[:, None].to(exact.dtype)
    if fused.row_scale is not None:
        exact = exact * fused.row_scale[:, None]
    if fused.bias is not None:
        exact = exact + fused.bias
    return (exact.relu() if fused.relu else exact).to(x.dtype)
