"""Less memory for a second forward pass: between two compressed activations nothing is saved, and the backward pass
computes it again (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; where to cut is ours).

Compressed rows are the cheapest place to cut a network: [N, k] values and positions instead of [N, D].
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from planish_maxk.layers import dense

Recompute = Literal["nothing", "layers", "half", "everything"]


class Recomputed(nn.Module):
    """``inner``, of which a training pass keeps the inputs alone. Random numbers are drawn the same a second time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        if self.training and torch.is_grad_enabled():
            return checkpoint(self.inner, *args, use_reentrant=False)
        return self.inner(*args)


def cut(
    traced: fx.GraphModule, rows: Collection[fx.Node], products: Sequence[fx.Node], what: Recompute
) -> fx.GraphModule:
    """The same computation in pieces that end with compressed rows, each recomputed.

    Args:
        rows: the nodes that give compressed rows to aggregations.
        products: the aggregations, in order: ``"layers"`` keeps their results [N, D] and does not repeat them, ``"half"``
            repeats every second, beginning with the first, and ``"everything"`` all.
    """
    if what == "nothing":
        return traced
    spared = set({"layers": products, "half": products[1::2], "everything": []}[what])
    piece: dict[fx.Node, int] = {}
    kept: set[int] = set()
    current = 0
    for node in traced.graph.nodes:
        alone = node in spared
        current += alone
        piece[node] = current
        if alone:
            kept.add(current)
        current += alone or node in rows
    for node in reversed(traced.graph.nodes):
        # Rows are expanded where they are read, so that the dense ones are not kept.
        if node.op == "call_function" and node.target is dense:
            piece[node] = min(piece[user] for user in node.users)
    pieces = split_module(traced, traced, piece.__getitem__)
    for number in sorted(set(piece.values()) - kept):
        name = f"submod_{number}"
        if hasattr(pieces, name):
            setattr(pieces, name, Recomputed(getattr(pieces, name)))
    pieces.recompile()
    return pieces
