"""Moments of the effective weight: what faults shift on average and how to undo it, and how far one read scatters."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from planish_reram.protection import LayerProtection
from planish_reram.quantise import Quantised
from planish_reram.slicing import Layout
from planish_reram.specs import FaultRates


def correction(
    layout: Layout,
    rates: FaultRates,
    protection: LayerProtection,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Gain and constant of each slice, [S, R or 1, 1]: level = (read level - constant) * gain on average.

    E[read] = (1 - p_hrs - p_lrs) level + p_lrs top, with the rates that the vote leaves behind. Our derivation.
    """
    plain = rates.marginal
    voted = voted_rates(plain, protection)
    rows = 1 if protection.slices is None else len(protection.slices)
    gain = torch.ones(layout.slices, rows, 1, dtype=dtype)
    constant = torch.zeros_like(gain)
    for k in range(layout.slices):
        p_hrs = torch.full((rows,), plain.p_hrs, dtype=dtype)
        p_lrs = torch.full((rows,), plain.p_lrs, dtype=dtype)
        if protection.deepest:
            p_hrs[protection.protected(k)] = voted.p_hrs
            p_lrs[protection.protected(k)] = voted.p_lrs
        if (lost := protection.given_up(k, layout.slices)) is not None:
            p_hrs[lost] = p_lrs[lost] = 0.0
        alive = 1 - p_hrs - p_lrs
        usable = alive > 1e-6  # a slice that is certainly stuck holds nothing to recover
        gain[k, :, 0] = torch.where(usable, 1 / alive.clamp(min=1e-6), torch.ones_like(alive))
        constant[k, :, 0] = torch.where(usable, p_lrs * layout.top, torch.zeros_like(alive))
    return gain.to(device), constant.to(device)


def voted_rates(rates: FaultRates, protection: LayerProtection) -> FaultRates:
    """Rates of a protected cell after its vote.

    ``bit``: the median is stuck where most copies are, sum over k > c/2 of C(c, k) p^k (1-p)^(c-k); 3 p^2 - 2 p^3 for
    three copies. ``healthy``: only where all copies are stuck, p^c. ``output`` and ``mean`` leave the expectation alone.
    """
    c, p_hrs, p_lrs = protection.copies, rates.p_hrs, rates.p_lrs
    if protection.vote == "bit":
        return FaultRates(_majority(p_hrs, c), _majority(p_lrs, c))
    if protection.vote == "healthy" and p_hrs + p_lrs > 0:
        stuck = (p_hrs + p_lrs) ** c
        share = 1 - sum(_binomial(k, c, 1 - p_lrs / (p_hrs + p_lrs)) for k in range(c + 1) if 2 * k > c - 1)
        return FaultRates(stuck * (1 - share), stuck * share)
    return rates


def read_spread(
    read_noise: float, quantised: Quantised, layout: Layout, rates: FaultRates, protection: LayerProtection
) -> Tensor:
    """Standard deviation of one read of the effective weight [out, in]: independent cells add up by significance.

    ``read_noise`` is that of one cell, as a share of the largest conductance.
    """
    scale = quantised.scale
    significance = torch.tensor(layout.significance, dtype=scale.dtype, device=scale.device)
    if protection.bias_correction:
        gain, _ = correction(layout, rates, protection, scale.device, scale.dtype)
        significance = significance[:, None] * gain[..., 0]
    else:
        significance = significance[:, None]
    rows = significance.square().sum(dim=0).mul(layout.arrays).sqrt() * read_noise * layout.top
    spread = torch.zeros(quantised.q.shape, dtype=scale.dtype, device=scale.device)
    kept_rows, kept_cols = (
        slice(None) if kept is None else kept.to(scale.device)
        for kept in (protection.kept_rows, protection.kept_cols)
    )
    spread[kept_rows] = rows[:, None].expand(spread[kept_rows].shape)
    driven = torch.zeros(spread.shape[1], dtype=scale.dtype, device=scale.device)
    driven[kept_cols] = 1
    return spread * driven * scale


def _majority(p: float, c: int) -> float:
    return min(1.0, sum(_binomial(k, c, p) for k in range(c // 2 + 1, c + 1)))


def _binomial(k: int, n: int, p: float) -> float:
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)
