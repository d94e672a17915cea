"""What a protected layer tells the simulator: which rows and columns it kept, and what is stored more than once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.errors import ConfigError
from planish_reram.specs import VOTES, Vote, check_copies

__all__ = ["VOTES", "Embed", "LayerProtection", "Vote", "check_copies"]

Embed = Literal["pruned", "lsb"]


@dataclass(frozen=True, slots=True)
class LayerProtection:
    """The protection of one weight matrix [out, in]. Tensors are on the CPU.

    Attributes:
        kept_rows: int64 [R], output neurons on the crossbar, ascending; the others give exactly 0 (plus their bias).
            None keeps all.
        kept_cols: int64 [C], inputs that drive a word line, ascending. None keeps all.
        slices: uint8 [R], how many of the most significant slices of each kept output have copies; 0 is unprotected.
            None protects nothing.
        copies: physical copies of a protected slice in all, c; 1 is none beside the original.
        vote: ``"bit"`` takes the median of the levels when the weight is read out, ``"output"`` the median of the
            digitised column sums of each tile, ``"mean"`` their mean, ``"healthy"`` the first copy that is not stuck
            by the chip's fault map and the median where all are.
        embed: ``"pruned"`` keeps all slices; with ``"lsb"`` the (c-1) m least significant slices of a protected output
            are given up to the copies and read back as their mid value.
        bias_correction: ``"expected"`` undoes the expected effect of the rates on each slice.
        placement: int32 [n, 4] of (tile, first word line, first bit line, shape); for reports, not for the numerics.

    Raises:
        ConfigError: copies and vote do not fit, or a table has the wrong shape.
    """

    kept_rows: Tensor | None = None
    kept_cols: Tensor | None = None
    slices: Tensor | None = None
    copies: int = 1
    vote: Vote = "bit"
    embed: Embed = "pruned"
    bias_correction: Literal["expected"] | None = None
    placement: Tensor | None = None

    def __post_init__(self) -> None:
        check_copies(self.copies, self.vote)
        if self.embed not in ("pruned", "lsb"):
            raise ConfigError(f"embed = {self.embed!r} is not one of pruned, lsb")
        if self.slices is not None and self.kept_rows is not None and len(self.slices) != len(self.kept_rows):
            raise ConfigError(f"slices has {len(self.slices)} entries for {len(self.kept_rows)} kept rows")

    @property
    def deepest(self) -> int:
        """The largest number of protected slices of any output, m; 0 where nothing has copies."""
        if self.slices is None or self.copies == 1 or len(self.slices) == 0:
            return 0
        return int(self.slices.max())

    def protected(self, slice_index: int) -> Tensor:
        """Which kept outputs have copies of that slice, bool [R]."""
        assert self.slices is not None
        return self.slices > slice_index

    def given_up(self, slice_index: int, slices: int) -> Tensor | None:
        """Which kept outputs have that slice overwritten by copies (``embed="lsb"``), bool [R]; None for none."""
        if self.embed != "lsb" or self.deepest == 0:
            return None
        assert self.slices is not None
        lost = (self.copies - 1) * self.slices.to(torch.int64)
        return lost >= slices - slice_index
