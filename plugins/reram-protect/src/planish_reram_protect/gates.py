"""Stage 1: rows and columns of every matrix are switched by trainable gates.

One flat vector ``g`` [G] holds all gates of a network. A matrix W [out, in] reads its row and column masks from it by
index, so coupling (query with key, value with output projection, the two sides of a feed-forward) is nothing but equal
indices. The mask is a step, its surrogate gradient the derivative of softplus: the mask stays recoverable, because no
weight is pushed to zero.

Sources: the paper's abstract and introduction (an L0 count made trainable by auxiliary parameters, softplus, an optimiser of
their own); AutoPrune (Xiao, Wang, Rajasekaran, NeurIPS 2019) for the mask; penalty, start values, stop rule and rounding are
our derivation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

OPEN = -1
"""Gate index of a row or column that no gate controls."""


@dataclass(frozen=True, eq=False)
class Gated:
    """The gates of one matrix.

    Attributes:
        name: path of its module.
        rows: gate of every output row, int64 [out]; `OPEN` where none.
        columns: gate of every input column, int64 [in].
        drops_bias: whatever reads a pruned row drops that channel too, so that the row's bias may go with it.
    """

    name: str
    rows: Tensor
    columns: Tensor
    drops_bias: bool = False

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.columns)


class _Step(torch.autograd.Function):
    """1 where g > 0; backward as if it were softplus."""

    @staticmethod
    def forward(ctx: Any, g: Tensor) -> Tensor:
        ctx.save_for_backward(g)
        return (g > 0).to(g.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (g,) = ctx.saved_tensors
        return gradients[0] * torch.sigmoid(g)


def step(g: Tensor) -> Tensor:
    """The mask 1[g > 0], whose gradient is sigmoid(g), the derivative of softplus."""
    result: Tensor = _Step.apply(g)  # type: ignore[no-untyped-call]
    return result


def opened(g: Tensor) -> Tensor:
    """The masks of all gates and, behind them, the 1 that index `OPEN` finds: [G + 1]."""
    return torch.cat([step(g), g.new_ones(1)])


def count_gates(layers: Sequence[Gated]) -> int:
    """How many gates the layers have, G."""
    return 1 + max(
        (int(side.max()) for layer in layers for side in (layer.rows, layer.columns)), default=OPEN
    )


def start(layers: Sequence[Gated], weights: Mapping[str, Tensor], scale: float = 0.5) -> Tensor:
    """Gates in proportion to what they switch: scale * norm(group) / mean norm, float32 [G].

    A constant start lets all gates of a network cross zero together. Norms are compared within one side of one matrix; a gate
    with several groups takes their mean.

    Args:
        weights: matrices [out, in] by name.
    """
    count = count_gates(layers)
    total, groups = torch.zeros(count + 1), torch.zeros(count + 1)
    for layer in layers:
        weight = weights[layer.name].detach().float().cpu()
        for index, norm in ((layer.rows, weight.norm(dim=1)), (layer.columns, weight.norm(dim=0))):
            relative = norm / norm.mean().clamp_min(torch.finfo(torch.float32).tiny)
            total.index_add_(0, index % (count + 1), relative)
            groups.index_add_(0, index % (count + 1), torch.ones_like(relative))
    return scale * (total / groups.clamp_min(1))[:count]


class Counter:
    """Counts what gates keep, for all matrices in a few operations.

    Args:
        layers: the gated matrices.
        device: where masks are.
    """

    def __init__(self, layers: Sequence[Gated], device: torch.device | str = "cpu") -> None:
        sides = [side for layer in layers for side in (layer.rows, layer.columns)]
        self.total = sum(layer.size for layer in layers)
        self._gates = torch.cat(sides).to(device)
        numbers = torch.arange(len(sides)).repeat_interleave(torch.tensor([len(side) for side in sides]))
        self._side = numbers.to(device)
        self._sides = len(sides)

    def kept(self, mask: Tensor) -> Tensor:
        """Weights that stay, a scalar with its gradient; ``mask`` as `opened` gives it."""
        counts = mask.new_zeros(self._sides).index_add(0, self._side, mask[self._gates])
        return (counts[0::2] * counts[1::2]).sum()

    def sparsity(self, g: Tensor) -> float:
        """Share of the gated weights that the gates ``g`` switch off."""
        with torch.no_grad():
            return 1.0 - float(self.kept(opened(g.double()))) / self.total


def strength(found: float, target: float, base: float, gap: float) -> float:
    """The penalty's factor mu at sparsity ``found``: base * (gap * max(0, target - found) / target + 1)."""
    return base * (gap * max(0.0, target - found) / target + 1.0)


def keep_one(layers: Sequence[Gated], g: Tensor) -> None:
    """Lift the largest gate of every side that would be switched off as a whole, in place."""
    sides = [side.to(g.device) for layer in layers for side in (layer.rows, layer.columns)]
    behind = torch.cat([g, g.new_ones(1)])  # what `OPEN` finds
    closed = torch.stack([behind[side].max() for side in sides]) <= 0
    for number in closed.nonzero().flatten().tolist():
        side = sides[number]
        g[side[g[side].argmax()]] = torch.finfo(g.dtype).tiny
