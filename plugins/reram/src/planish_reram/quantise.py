"""Weights to signed integers: symmetric, one scale a tensor or one an output row, optionally clipped at a percentile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from planish.errors import ConfigError, PlanishError

Scope = Literal["tensor", "row"]


@dataclass(frozen=True, slots=True)
class Quantised:
    """Integers with their scale: the weight is close to ``scale * q``.

    Attributes:
        q: int32 [out, in], between -(2^(bits-1) - 1) and 2^(bits-1) - 1.
        scale: float [] for one scale a tensor, [out, 1] for one a row.
        bits: width of the integers.
    """

    q: Tensor
    scale: Tensor
    bits: int

    def dequantised(self) -> Tensor:
        """``scale * q``: the fault-free reference of everything that a crossbar does to the weight."""
        return self.q.to(self.scale.dtype) * self.scale


def quantise(
    weight: Tensor, bits: int = 8, scope: Scope = "tensor", percentile: float | None = None
) -> Quantised:
    """Round ``weight`` [out, in] to integers of ``bits`` bits, half to even.

    Args:
        weight: any floating-point format; 16-bit formats are widened to float32 first.
        bits: 2 to 8.
        scope: what shares a scale: the whole tensor, or one output row.
        percentile: 50 to 100; magnitudes above this percentile of their scope are clipped. None clips nothing.

    Raises:
        ConfigError: bits, scope or percentile are out of range.
        PlanishError: the weight is empty, or holds NaN or infinity.
    """
    if not 2 <= bits <= 8:
        raise ConfigError(f"weight_bits = {bits}: must be 2 to 8")
    if scope not in ("tensor", "row"):
        raise ConfigError(f"scale = {scope!r} is not one of tensor, row")
    if percentile is not None and not 50 <= percentile <= 100:
        raise ConfigError(f"percentile = {percentile}: must be 50 to 100")
    if weight.numel() == 0:
        raise PlanishError(
            f"a weight matrix of {' x '.join(map(str, weight.shape))} holds nothing to program"
        )
    values = weight.detach() if weight.dtype in (torch.float32, torch.float64) else weight.detach().float()
    if percentile is None or percentile == 100:
        over: dict[str, Any] = {"dim": 1, "keepdim": True} if scope == "row" else {}
        limit = torch.maximum(values.amax(**over), -values.amin(**over))
    else:
        limit = _percentile(values.abs(), percentile, scope)
    if not bool(limit.isfinite().all()):
        raise PlanishError("a weight matrix holds NaN or infinity and cannot be programmed")
    top = 2 ** (bits - 1) - 1
    scale = torch.where(limit > 0, limit / top, torch.ones_like(limit))
    q = (values / scale).round_().clamp_(-top, top).to(torch.int32)
    return Quantised(q, scale, bits)


def _percentile(magnitude: Tensor, percentile: float, scope: Scope) -> Tensor:
    """The value of that rank (no interpolation): defined for any size, where `torch.quantile` stops at 16 M values."""
    rows = magnitude if scope == "row" else magnitude.reshape(1, -1)
    rank = max(1, round(percentile / 100 * rows.shape[1]))
    limit = rows.kthvalue(rank, dim=1, keepdim=True).values
    # A scope that is zero up to the percentile keeps its largest value: a scale of 0 stands for nothing.
    limit = torch.where(limit > 0, limit, rows.amax(dim=1, keepdim=True))
    return limit if scope == "row" else limit.reshape(())
