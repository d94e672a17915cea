"""The fused product in plain torch: y = act(R A C x + bias), R and C diagonal. What the kernel is compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planish_graph.graph import Graph


def fused(
    graph: Graph,
    x: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    bias: Tensor | None,
    mean: bool,
    relu: bool,
    product: Callable[[Graph, Tensor], Tensor],
) -> Tensor:
    """y [N, D] of x's type, from any ``product(graph, x)`` for A x. What follows the product is done in fp32 at least.

    Args:
        row_scale, column_scale, bias: [N], [M], [D], each of which may be absent.
        mean: divide every row by its number of entries.
        relu: max(y, 0) at the end.
    """
    if column_scale is not None:
        x = (x * column_scale[:, None]).to(x.dtype)
    out = product(graph, x)
    exact = out.to(torch.promote_types(out.dtype, torch.float32))
    if mean:
        exact = exact / graph.degrees.clamp_min(1)[:, None].to(exact.dtype)
    if row_scale is not None:
        exact = exact * row_scale[:, None]
    if bias is not None:
        exact = exact + bias
    return (exact.relu() if relu else exact).to(x.dtype)
