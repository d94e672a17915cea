"""Integers to cells and back: the mapping onto arrays, and the slicing into cells of a few bits.

Slice 0 is the most significant. ``offset`` keeps u = q + 2^(B-1) in one array; ``differential`` keeps max(q, 0) in one
array and max(-q, 0) in a second one, which is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.errors import ConfigError
from planish_reram.specs import Mapping, check_widths


@dataclass(frozen=True, slots=True)
class Layout:
    """How a signed integer of ``weight_bits`` bits lies in cells of ``cell_bits`` bits.

    Raises:
        ConfigError: a width is out of range, or the cell's bits do not divide the weight's.
    """

    weight_bits: int = 8
    cell_bits: int = 2
    mapping: Mapping = "offset"

    def __post_init__(self) -> None:
        check_widths(self.weight_bits, self.cell_bits)
        if self.mapping not in ("offset", "differential"):
            raise ConfigError(f"mapping = {self.mapping!r} is not one of offset, differential")

    @property
    def slices(self) -> int:
        """Cells a weight in each array, S."""
        return self.weight_bits // self.cell_bits

    @property
    def arrays(self) -> int:
        """Arrays a weight matrix, A: 1 for offset, 2 for differential."""
        return 1 if self.mapping == "offset" else 2

    @property
    def top(self) -> int:
        """The highest level of a cell, 2^b - 1."""
        return (1 << self.cell_bits) - 1

    @property
    def significance(self) -> tuple[int, ...]:
        """2^(b (S-1-k)) for each slice k."""
        return tuple(2 ** (self.cell_bits * (self.slices - 1 - k)) for k in range(self.slices))

    @property
    def offset(self) -> int:
        """What the digital correction subtracts from every weight: 2^(B-1) for offset, else 0."""
        return 1 << (self.weight_bits - 1) if self.mapping == "offset" else 0

    def cells(self, q: Tensor) -> Tensor:
        """Levels uint8 [A, S, out, in] of the integers q [out, in]."""
        if self.mapping == "offset":
            stored = q.to(torch.int8).view(torch.uint8).add_(self.offset)[None]
        else:
            stored = torch.stack((q.clamp(min=0), (-q).clamp_(min=0))).to(torch.uint8)
        levels = stored.new_empty(stored.shape[0], self.slices, *stored.shape[1:])
        for k in range(self.slices):
            shift = self.cell_bits * (self.slices - 1 - k)
            torch.bitwise_right_shift(stored, shift, out=levels[:, k]).bitwise_and_(self.top)
        return levels

    def combine(self, levels: Tensor) -> Tensor:
        """The value that levels [..., A, S, out, in] stand for, [..., out, in], in the levels' own format.

        Works for levels that are no integers (noise, drift, corrected faults). Integer formats must be signed.
        """
        weighted = levels[..., 0, :, :] * self.significance[0]
        for k in range(1, self.slices):
            weighted = weighted.add_(levels[..., k, :, :], alpha=self.significance[k])
        if self.mapping == "offset":
            return weighted[..., 0, :, :].sub_(self.offset)
        return weighted[..., 0, :, :] - weighted[..., 1, :, :]

    def integers(self, cells: Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
        """Signed integers [..., out, in] that cells uint8 [..., A, S, out, in] hold, in a format that has room for them."""
        if self.mapping == "offset":
            # All slices of one weight fit in a byte, so they are put together as bytes: 4 times fewer to move.
            stored = cells[..., 0, 0, :, :] * self.significance[0]
            for k in range(1, self.slices):
                stored += cells[..., 0, k, :, :] * self.significance[k]
            return stored.to(dtype).sub_(self.offset)
        return self.combine(cells.to(torch.int32)).to(dtype)
