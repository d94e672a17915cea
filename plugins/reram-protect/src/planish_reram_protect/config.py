"""Options of the protection. Light: neither torch nor transformers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from planish.config import MethodConfig


class ReramProtectConfig(MethodConfig):
    """Prune rows and columns with trainable gates, copy the top bit slices, and place the copies in the freed cells."""

    embed: Literal["pruned", "lsb"] = Field(
        "pruned",
        description="where copies go: cells freed by pruning, or the least significant slices (no training, no pruning)",
    )
    target: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the gated weights to prune; by default what the copies need, and one per cent more",
    )
    copies: int = Field(
        3, ge=1, le=15, description="copies of a protected slice in all; 1 duplicates nothing"
    )
    protected_slices: int | None = Field(
        None,
        ge=0,
        le=16,
        description="top slices that are copied; by default 1, with cells of one bit 2",
    )
    vote: Literal["bit", "output", "mean", "healthy"] = Field(
        "bit",
        description=(
            "median of the cells at read-out (bit), median or mean of the digitised columns (output, mean), or the first "
            "copy that a known fault map shows to be sound (healthy)"
        ),
    )
    bias_correction: Literal["none", "expected"] = Field(
        "none",
        description="expected: undo the mean shift of stuck cells digitally, from the two fault rates (ours)",
    )

    weight_bits: int = Field(8, ge=2, le=8, description="bits of a quantised weight")
    cell_bits: int = Field(2, ge=1, le=8, description="bits of a cell; must divide weight_bits")
    mapping: Literal["offset", "differential"] = Field(
        "offset", description="one array of shifted weights, or two arrays that are subtracted"
    )
    tile_rows: int = Field(128, ge=1, le=4096, description="word lines of a crossbar")
    tile_cols: int = Field(128, ge=1, le=4096, description="bit lines of a crossbar")

    scope: Literal["model", "layer"] = Field(
        "model", description="copies may lie in freed cells of the whole model, or of their own layer only"
    )
    partial: bool = Field(
        False, description="when cells are short protect the most important outputs only, instead of an error"
    )
    allow_overhead: bool = Field(
        False, description="when cells are short add crossbars, instead of an error; the report counts them"
    )
    use_spare: bool = Field(
        True, description="spend freed cells that are left on further slices of the most important outputs"
    )

    gate_lr: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="learning rate of the gates (plain SGD); by default one that closes an average gate in five epochs",
    )
    gate_start: float = Field(
        0.5, gt=0, le=10, description="start of a gate, times its group's norm over the mean norm"
    )
    penalty: float = Field(5.0, gt=0, le=1e4, description="factor of the share of weights kept, in the loss")
    penalty_gap: float = Field(
        20.0, ge=0, le=1e4, description="how much stronger the penalty is while the target is far"
    )
    gate_epochs: int = Field(
        20,
        ge=1,
        le=10000,
        description="epochs in which the gates may reach the target; then they are rounded to it",
    )
    tune_epochs: int = Field(
        10, ge=0, le=10000, description="epochs that tune the remaining weights afterwards"
    )
    epoch_steps: int | None = Field(
        None, ge=1, le=10**9, description="at most so many steps an epoch; by default all training data"
    )
    lr: float | None = Field(
        None,
        gt=0,
        le=1,
        description="learning rate of the weights (AdamW); by default 1e-3 below ten million weights, else 2e-5",
    )
    clip: float | None = Field(
        2.0,
        ge=1,
        le=100,
        description="tuning holds kept weights within so many standard deviations of their matrix; null for no limit (ours)",
    )
    batch: int = Field(64, ge=1, le=65536, description="samples a step")
    window: int = Field(128, ge=2, le=65536, description="tokens a training sample of a language model")
    skip: tuple[str, ...] = Field(
        (), description="layers left digital, as patterns on their paths; the backend must be given the same"
    )
    multiple: int = Field(
        1, ge=1, le=4096, description="rows and columns kept of a matrix are a multiple of this"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.weight_bits % self.cell_bits:
            raise ValueError(f"cell_bits = {self.cell_bits} does not divide weight_bits = {self.weight_bits}")
        if self.tile_cols < self.slices:
            raise ValueError(
                f"tile_cols = {self.tile_cols}: a weight takes {self.slices} neighbouring bit lines, more than a crossbar has"
            )
        if self.copies % 2 == 0 and self.vote != "healthy":
            raise ValueError(
                f'copies = {self.copies} with vote "{self.vote}": an even number only works with vote "healthy"'
            )
        if self.top_slices > self.slices:
            raise ValueError(f"protected_slices = {self.top_slices}: a weight has {self.slices} slices")
        if self.embed == "lsb":
            taken, left = self.extra * self.top_slices, self.slices - self.top_slices
            if taken > left:
                raise ValueError(
                    f'embed "lsb": {self.extra} copies of {self.top_slices} slices take {taken} of the {left} slices that are left'
                )
            if self.target is not None:
                raise ValueError(f'target = {self.target} with embed "lsb": nothing is pruned')
        elif self.goal < self.needed and not (self.partial or self.allow_overhead):
            raise ValueError(
                f"target = {self.target}: the copies need {self.needed:.4f}; raise it, or set partial or allow_overhead"
            )
        return self

    @property
    def slices(self) -> int:
        """Cells a weight takes in one array."""
        return self.weight_bits // self.cell_bits

    @property
    def top_slices(self) -> int:
        """Slices that are copied."""
        if self.protected_slices is None:
            return 2 if self.cell_bits == 1 else 1
        return self.protected_slices

    @property
    def extra(self) -> int:
        """Copies beside the first."""
        return self.copies - 1

    @property
    def tile(self) -> tuple[int, int]:
        """Word lines and bit lines of a crossbar."""
        return self.tile_rows, self.tile_cols

    @property
    def arrays(self) -> int:
        return 1 if self.mapping == "offset" else 2

    @property
    def needed(self) -> float:
        """The sparsity at which freed cells equal copied cells: (c-1)m / (S + (c-1)m)."""
        copied = self.extra * self.top_slices
        return copied / (self.slices + copied)

    @property
    def goal(self) -> float:
        """The sparsity that the gates reach."""
        return min(self.needed + 0.01, 0.99) if self.target is None else self.target

    def gate_rate(self, gates: int, steps: int) -> float:
        """The gates' learning rate: the one given, or that at which the penalty alone closes an average gate in ``steps``.

        An average gate holds 2 / G of the weights, since every weight hangs on a row and a column, and the surrogate's slope
        between the start and zero is about 0.6. For the digits MLP (832 gates, 100 steps) this is the 0.03 of the measurement.
        """
        if self.gate_lr is not None:
            return self.gate_lr
        return self.gate_start * gates / (self.penalty * (self.penalty_gap + 1) * 2 * 0.6 * steps)

    @property
    def needs(self) -> tuple[str, ...]:
        """Training data, unless nothing is pruned."""
        return ("training",) if self.embed == "pruned" else ()
