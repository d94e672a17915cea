"""Digital to analog at the word lines, analog to digital at the bit lines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from planish_reram.slicing import Layout
from planish_reram.specs import Converters

__all__ = ["Adc", "Converters", "Inputs", "RangeWarning", "bit_planes", "convert_inputs"]

MAX_RANGE = (
    "adc_range = 'max': an ADC of {bits} bits spans the largest possible column sum, {steps:.0f} times its resolution; "
    "real sums use a small part of it, so most codes are lost. adc_range = 'calibrated' is the default for this reason"
)


class RangeWarning(UserWarning):
    """The range of a converter makes most of its codes useless."""


class Inputs(NamedTuple):
    """Inputs [..., N, in] as the word lines see them: ``values * scale`` are the digital ones.

    ``values`` are integers in a floating-point format where a DAC is modelled; ``scale`` is [..., N, 1] or a number, and
    None for an ideal converter.
    """

    values: Tensor
    scale: Tensor | float | None


def convert_inputs(x: Tensor, converters: Converters, limit: float | None = None) -> Inputs:
    """Quantise inputs symmetrically, half to even; the largest magnitude of a vector, or ``limit``, is the last code."""
    if converters.dac_bits is None:
        return Inputs(x, None)
    top = converters.largest_code
    if limit is None:
        # abs and amax in two passes: the infinity norm is ten times slower on a CPU. The codes take the memory of abs.
        values = x.abs()
        # largest / top + 1e-30 in one call: on so little, calls are what takes time.
        scale = torch.rsub(values.amax(dim=-1, keepdim=True), 1e-30, alpha=-1 / top)
        return Inputs(torch.div(x, scale, out=values).round_(), scale)
    step = converters.step(limit)
    return Inputs((x / step).round_().clamp_(-top, top), step)


def bit_planes(values: Tensor, bits: int) -> list[tuple[int, Tensor]]:
    """(significance, bits as 0 or 1) of integers in two's complement; the last one is the sign's."""
    whole = values.to(torch.int32)
    planes = []
    for j in range(bits):
        weight = -(2**j) if j == bits - 1 else 2**j
        planes.append((weight, ((whole >> j) & 1).to(values.dtype)))
    return planes


@dataclass(frozen=True, slots=True)
class Adc:
    """Quantisers of the column sums of one layer.

    Attributes:
        step: [A, S, 1 or R], float64: what one code stands for. Zero is a code.
        first, last: [A, S, 1 or R], float64: the lowest and the highest code.
    """

    step: Tensor
    first: Tensor
    last: Tensor

    @classmethod
    def spanning(cls, low: Tensor, high: Tensor, bits: int) -> Adc:
        """An ADC of ``bits`` bits from ``low`` <= 0 to ``high`` >= 0, moved so that zero falls on a code."""
        low, high = low.double().clamp(max=0), high.double().clamp(min=0)
        codes = 2**bits - 1
        width = high - low
        step = torch.where(width > 0, width / codes, torch.ones_like(width))
        first = (low / step).round()
        return cls(step, first, first + codes)

    @classmethod
    def of_max(cls, layout: Layout, rows: int, converters: Converters) -> Adc:
        """The range of the largest sums that the cells and inputs can make; warns."""
        assert converters.adc_bits is not None
        largest = float(rows * layout.top * converters.largest_input)
        high = torch.full((layout.arrays, layout.slices, 1), largest)
        adc = cls.spanning(
            torch.zeros_like(high) if converters.dac_serial else -high, high, converters.adc_bits
        )
        if (step := float(adc.step.max())) > 1:
            warnings.warn(MAX_RANGE.format(bits=converters.adc_bits, steps=step), RangeWarning, stacklevel=2)
            return adc
        return cls(
            torch.ones_like(adc.step), -high.double(), high.double()
        )  # every sum has a code of its own

    def reader(self, array: int, slice_index: int, like: Tensor) -> Callable[[Tensor], Tensor]:
        """What makes codes of sums [..., R] of that slice: in place, half to even, for tensors like ``like``."""
        step, first, last = (t[array, slice_index] for t in (self.step, self.first, self.last))
        if step.numel() == 1:
            gain, low, high = 1 / float(step), float(first), float(last)
            return lambda sums: sums.mul_(gain).round_().clamp_(low, high)
        steps, lowest, highest = (t.to(like) for t in (step, first, last))
        return lambda sums: sums.mul_(1 / steps).round_().clamp_(lowest, highest)
