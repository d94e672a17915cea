"""The matrix-vector product of a layer, in the two ways that give the same result with ideal converters.

``fast`` is one matrix product with the effective weight. ``Sliced`` goes tile by tile and slice by slice, digitises each
column sum, and shift-adds the codes. Both take inputs [chips, N, in] and give [chips, N, out]; with integer inputs all
sums are integers, exact in their format, so that every device finds the same codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from planish_reram.chip import NO_PROTECTION, Cells, correction, median
from planish_reram.converters import Adc, Inputs, bit_planes
from planish_reram.protection import LayerProtection
from planish_reram.quantise import Quantised
from planish_reram.specs import Converters, FaultRates

PERFECT = FaultRates()
EXACT_FLOAT32 = 2**24
"""Integers up to here, and their sums, are exact in float32."""


def fast(inputs: Inputs, effective: Tensor) -> Tensor:
    """[chips, N, out] from the effective weight [chips, out, in]."""
    values, scale = inputs
    if effective.shape[0] == 1:
        y = torch.nn.functional.linear(values, effective[0])
    else:
        y = torch.bmm(values, effective.transpose(1, 2))
    return y if scale is None else y.mul_(scale)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the digital side of a layer knows.

    Attributes:
        quantised: for its scale and shape.
        converters, adc: how sums are digitised; ``adc`` None reads them as they are.
        rows: word lines of a tile.
        protection: kept rows and columns, copies, correction.
        rates: the rates that a bias correction assumes.
    """

    quantised: Quantised
    converters: Converters
    rows: int
    adc: Adc | None = None
    protection: LayerProtection = NO_PROTECTION
    rates: FaultRates = PERFECT


class Sliced:
    """The cells of a layer laid out for products: [A, S, T, chips, word lines, R], one matrix a tile and slice.

    Integer levels stay bytes and are widened one matrix at a time, in the cache: a quarter of the memory to read.

    Args:
        cells: of one or more chips.
        plan: see `Plan`.
        dtype: of the products; chosen so that integer sums are exact where None.
    """

    def __init__(self, cells: Cells, plan: Plan, dtype: torch.dtype | None = None) -> None:
        self.plan = plan
        self.layout = cells.layout
        self.dtype = dtype or _exact_dtype(cells, plan)
        self.rows = min(plan.rows, cells.levels.shape[-1])
        self.first = self._tiles(cells.levels[0])
        # Copies that are voted on at the output exist for the protected slices only.
        deepest = plan.protection.deepest
        self.others = [self._tiles(levels[:, :, :deepest]) for levels in cells.levels[1:]]

    def __call__(self, inputs: Inputs) -> Tensor:
        """[chips, N, out] for inputs [chips, N, in], every column sum digitised."""
        plan, layout = self.plan, self.layout
        x = self.kept(inputs)
        total_input = x.sum(dim=-1, keepdim=True)
        corrected = None
        if plan.protection.bias_correction:
            corrected = correction(layout, plan.rates, plan.protection, x.device, x.dtype)
        value = x.new_zeros(*x.shape[:-1], self.first.shape[-1])
        for array, k, part in self._codes(x):
            weight: float = layout.significance[k] * (1 if array == 0 else -1)
            step = None if plan.adc is None else plan.adc.step[array, k]
            if step is not None and step.numel() == 1:
                weight *= float(step)  # one pass without a copy, where one number serves all columns
            elif step is not None:
                part = part * step.to(part)
            if corrected is not None:
                gain, constant = (t[k, :, 0] for t in corrected)
                unit = 1.0 if step is None or step.numel() > 1 else float(step)  # of `part`
                part = (part - total_input * constant / unit) * gain
            value.add_(part, alpha=weight)
        if layout.offset:
            value -= layout.offset * total_input
        scale = plan.quantised.scale.to(value)
        rows = plan.protection.kept_rows
        if scale.dim() == 2:
            scale = (scale if rows is None else scale[rows.to(scale.device)])[:, 0]
        value = value.mul_(scale)
        if inputs.scale is not None:
            value = value.mul_(inputs.scale)
        if rows is None:
            return value
        wide = value.new_zeros(*value.shape[:-1], plan.quantised.q.shape[0])
        return wide.index_copy_(-1, rows.to(value.device), value)

    def kept(self, inputs: Inputs) -> Tensor:
        """The inputs that drive a word line, [chips, N, C]."""
        x, kept = inputs.values.to(self.dtype), self.plan.protection.kept_cols
        return x if kept is None else x.index_select(-1, kept.to(x.device))

    def codes(self, x: Tensor) -> Tensor:
        """Digitised column sums [A, S, chips, N, R], added over the tiles and, bit-serially, over the input's bits.

        ``x`` is [chips, N, C], the kept inputs as the word lines see them.
        """
        found = torch.stack([total.clone() for _, _, total in self._codes(x)])
        return found.view(*self.first.shape[:2], *found.shape[1:])

    def _codes(self, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(array, slice, codes [chips, N, R]) one after the other; the memory is used again, so that it stays in the cache."""
        A, S, T, chips, _, R = self.first.shape
        total, buffer = x.new_empty(2, chips, x.shape[1], R)
        matrix = x.new_empty(self.first.shape[3:])
        driven = [(significance, self._driven(plane)) for significance, plane in self._planes(x)]
        for a in range(A):
            for k in range(S):
                total.zero_()
                read = _as_it_is if self.plan.adc is None else self.plan.adc.reader(a, k, x)
                with _tensor_cores(self.tensor_cores):
                    for t in range(T):
                        weight = matrix.copy_(self.first[a, k, t])
                        for significance, lines in driven:
                            found = read(torch.bmm(lines[t], weight, out=buffer))
                            if k < self.plan.protection.deepest and self.others:
                                copies = (w[a, k, t].to(x) for w in self.others)
                                found = self._vote([found, *(read(torch.bmm(lines[t], w)) for w in copies)])
                            total.add_(found, alpha=significance)
                yield a, k, total

    def _planes(self, x: Tensor) -> list[tuple[int, Tensor]]:
        """(significance, what the word lines see) of every cycle."""
        converters = self.plan.converters
        return bit_planes(x, converters.dac_bits or 0) if converters.dac_serial else [(1, x)]

    @property
    def tensor_cores(self) -> bool:
        """Whether TF32 products are exact here: it keeps 11 bits of an operand and sums in float32."""
        converters, device = self.plan.converters, self.first.device
        whole = converters.dac_bits is not None and converters.largest_input < 2**11
        return device.type == "cuda" and self.first.dtype == torch.uint8 and whole

    def sums(self, x: Tensor, array: int, slice_index: int) -> Tensor:
        """Column sums before any conversion, [planes x T, chips, N, R]: what calibration looks at."""
        weight = self.first[array, slice_index].to(x)
        return torch.cat([torch.matmul(self._driven(plane), weight) for _, plane in self._planes(x)])

    def _vote(self, found: list[Tensor]) -> Tensor:
        """Median or mean of the codes that the copies of a column give."""
        return torch.stack(found).mean(dim=0) if self.plan.protection.vote == "mean" else median(found)

    def _driven(self, x: Tensor) -> Tensor:
        """Inputs [chips, N, C] cut to the word lines of each tile, [T, chips, N, rows]; spare lines are not driven."""
        T, chips, rows = self.first.shape[2], x.shape[0], self.rows
        missing = T * rows - x.shape[-1]
        if missing:
            x = torch.nn.functional.pad(x, (0, missing))
        return x.view(chips, x.shape[1], T, rows).permute(2, 0, 1, 3).contiguous()

    def _tiles(self, levels: Tensor) -> Tensor:
        """[A, S, T, chips, rows, R] from levels [chips, A, S, R, C]."""
        missing = -levels.shape[-1] % self.rows
        if missing:
            levels = torch.nn.functional.pad(levels, (0, missing))
        chips, A, S, R, C = levels.shape
        split = levels.view(chips, A, S, R, C // self.rows, self.rows)
        return split.permute(1, 2, 4, 0, 5, 3).contiguous()


def _as_it_is(sums: Tensor) -> Tensor:
    """What an ideal ADC makes of column sums."""
    return sums


def _exact_dtype(cells: Cells, plan: Plan) -> torch.dtype:
    """The smallest format in which every sum of integers is exact, in a tile and over all tiles and input bits."""
    if plan.quantised.scale.dtype == torch.float64:
        return torch.float64
    converters, inputs = plan.converters, cells.levels.shape[-1]
    if converters.dac_bits is None:
        return torch.float32
    in_tile = min(plan.rows, inputs) * cells.layout.top * converters.largest_input
    if converters.adc_bits is None:
        in_all = inputs * cells.layout.top * 2 ** (converters.dac_bits - 1)
    else:
        in_all = -(-inputs // plan.rows) * 2 ** (
            converters.adc_bits + (converters.dac_bits if converters.dac_serial else 0)
        )
    return torch.float32 if max(in_tile, in_all) < EXACT_FLOAT32 else torch.float64


@contextlib.contextmanager
def _tensor_cores(use: bool) -> Iterator[None]:
    """Let CUDA multiply in TF32 for the while, or not, whatever the user's setting."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = use
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
