"""Masks on the weights of a network while its gates are trained, as parametrizations that come off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from planish_reram.mapping import is_transposed, matrix
from planish_reram_protect.gates import Gated

Opened = Callable[[], Tensor]
"""Gives the masks of all gates and the 1 behind them, [G + 1]."""


def attach(part: Any, layer: Gated, opened: Opened) -> None:
    """Mask a layer's weight by its gates, and its bias where all that reads a pruned row drops it too.

    What an earlier method pruned stays pruned, though training would fill it again.
    """
    parametrize.register_parametrization(part, "weight", _Mask(part, layer, opened))
    if layer.drops_bias and getattr(part, "bias", None) is not None:
        parametrize.register_parametrization(part, "bias", _BiasMask(layer, opened))


def detach(part: nn.Module) -> None:
    """Write the masks into the layer's parameters and take them off."""
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(part, name):
            parametrize.remove_parametrizations(part, name, leave_parametrized=True)


class _Mask(nn.Module):
    def __init__(self, part: Any, layer: Gated, opened: Opened) -> None:
        super().__init__()
        self._rows, self._columns, self._opened = layer.rows, layer.columns, opened
        self._transposed = is_transposed(part)
        weight = matrix(part)
        self._held = None if bool(weight.all()) else self._as_stored(weight != 0, part.weight)

    def forward(self, stored: Tensor) -> Tensor:
        mask = self._opened()
        both = mask[self._rows][:, None] * mask[self._columns]
        masked = stored * self._as_stored(both, stored)
        return masked if self._held is None else masked * self._held

    def _as_stored(self, mask: Tensor, stored: Tensor) -> Tensor:
        """A mask [out, in] in the layout of the stored weight."""
        return mask.T if self._transposed else mask.view_as(stored)


class _BiasMask(nn.Module):
    def __init__(self, layer: Gated, opened: Opened) -> None:
        super().__init__()
        self._rows, self._opened = layer.rows, opened

    def forward(self, stored: Tensor) -> Tensor:
        return stored * self._opened()[self._rows]
