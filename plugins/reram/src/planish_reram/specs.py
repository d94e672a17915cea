"""What a chip is asked to be: plain values with their rules. No tensors, so that options can be checked cheaply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from planish.errors import ConfigError

Mapping = Literal["offset", "differential"]
Vote = Literal["bit", "output", "mean", "healthy"]
VOTES: tuple[Vote, ...] = ("bit", "output", "mean", "healthy")


@dataclass(frozen=True, slots=True)
class FaultRates:
    """Probabilities of permanent faults.

    Attributes:
        p_hrs: a cell is stuck at high resistance and reads as level 0.
        p_lrs: a cell is stuck at low resistance and reads as the top level.
        p_row: a word line of a tile is open: its cells read as level 0.
        p_col: a bit line of a tile is open: its cells read as level 0.

    Raises:
        ConfigError: a rate is no probability, or p_hrs + p_lrs exceeds 1.
    """

    p_hrs: float = 0.0
    p_lrs: float = 0.0
    p_row: float = 0.0
    p_col: float = 0.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise ConfigError(f"{name} = {value}: must be a probability, 0 to 1")
        if self.p_hrs + self.p_lrs > 1 + 1e-12:
            raise ConfigError(f"p_hrs + p_lrs = {self.p_hrs + self.p_lrs:g}: must not exceed 1")

    @property
    def any(self) -> bool:
        return max(self.p_hrs, self.p_lrs, self.p_row, self.p_col) > 0

    @property
    def marginal(self) -> FaultRates:
        """Rates of one cell's final state, open lines counted in."""
        whole = (1 - self.p_row) * (1 - self.p_col)
        p_lrs = self.p_lrs * whole
        return FaultRates(1 - p_lrs - (1 - self.p_hrs - self.p_lrs) * whole, p_lrs)


PRESETS: dict[str, FaultRates] = {
    "none": FaultRates(),
    # March test of a fabricated array: Chen et al., IEEE Transactions on Computers, 2015.
    "march_test": FaultRates(p_hrs=0.0175, p_lrs=0.0904),
    "march_test_swapped": FaultRates(p_hrs=0.0904, p_lrs=0.0175),
    "low": FaultRates(p_hrs=0.001, p_lrs=0.001),
}


def preset(name: str) -> FaultRates:
    """The rates of that name.

    Raises:
        ConfigError: there are none.
    """
    if name not in PRESETS:
        raise ConfigError(f"faults = {name!r} is not one of {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True, slots=True)
class Converters:
    """Resolution and range of the converters. None is an ideal converter.

    Attributes:
        dac_bits: signed width of an input, 2 to 12; None passes inputs as they are.
        dac_range: ``"vector"`` scales each input vector by its own largest magnitude, ``"calibrated"`` all of a layer's
            by one value measured on calibration data.
        dac_serial: one bit of the input a cycle (two's complement), each digitised and shift-added.
        adc_bits: resolution of a column sum, 1 to 16; None reads it as it is.
        adc_range: ``"calibrated"`` on data, ``"max"`` for the largest sum that cells and inputs can make.
        adc_percentile: share of the calibration sums, in per cent, that the range covers; the rest is clipped.
        adc_scope: what shares a range: all columns of a slice, or each column has its own.

    Raises:
        ConfigError: a value is out of range, or two of them do not fit together.
    """

    dac_bits: int | None = 8
    dac_range: Literal["vector", "calibrated"] = "vector"
    dac_serial: bool = False
    adc_bits: int | None = None
    adc_range: Literal["calibrated", "max"] = "calibrated"
    adc_percentile: float = 99.99
    adc_scope: Literal["slice", "column"] = "slice"

    def __post_init__(self) -> None:
        if self.dac_bits is not None and not 2 <= self.dac_bits <= 12:
            raise ConfigError(f"dac_bits = {self.dac_bits}: must be 2 to 12, or None for an ideal converter")
        if self.adc_bits is not None and not 1 <= self.adc_bits <= 16:
            raise ConfigError(f"adc_bits = {self.adc_bits}: must be 1 to 16, or None for an ideal converter")
        if self.dac_serial and self.dac_bits is None:
            raise ConfigError("dac_serial = True needs dac_bits: an ideal input has no bits")
        if self.adc_range == "max" and self.adc_bits is not None and self.dac_bits is None:
            raise ConfigError("adc_range = 'max' needs dac_bits: an ideal input has no largest value")
        if not 50 <= self.adc_percentile <= 100:
            raise ConfigError(f"adc_percentile = {self.adc_percentile}: must be 50 to 100")

    @property
    def calibrates(self) -> bool:
        """Whether a range has to be measured on data."""
        adc = self.adc_bits is not None and self.adc_range == "calibrated"
        return adc or (self.dac_bits is not None and self.dac_range == "calibrated")

    @property
    def largest_code(self) -> int:
        """The largest integer of an input, 2^(bits-1) - 1."""
        assert self.dac_bits is not None
        return 2 ** (self.dac_bits - 1) - 1

    @property
    def largest_input(self) -> int:
        """The largest integer at a word line: that of an input, or 1 in each cycle of a bit-serial one."""
        return 1 if self.dac_serial else self.largest_code

    def step(self, limit: float) -> float:
        """What one code stands for where ``limit`` is the last one."""
        return limit / self.largest_code


def lossless_adc_bits(rows: int, cell_bits: int, input_bits: int) -> int:
    """Bits that a column sum of unsigned inputs needs: ceil(log2(rows (2^b - 1) (2^input_bits - 1) + 1))."""
    return math.ceil(math.log2(rows * (2**cell_bits - 1) * (2**input_bits - 1) + 1))


def check_widths(weight_bits: int, cell_bits: int) -> None:
    """Raise ConfigError unless cells of ``cell_bits`` bits hold a weight of ``weight_bits`` bits without a rest."""
    if not 2 <= weight_bits <= 8:
        raise ConfigError(f"weight_bits = {weight_bits}: must be 2 to 8")
    if not 1 <= cell_bits <= weight_bits or weight_bits % cell_bits:
        allowed = ", ".join(str(b) for b in range(1, weight_bits + 1) if weight_bits % b == 0)
        raise ConfigError(
            f"cell_bits = {cell_bits} does not divide weight_bits = {weight_bits} (choose {allowed})"
        )


def check_tile(tile: tuple[int, int], weight_bits: int, cell_bits: int) -> None:
    """Raise ConfigError unless a word line of a tile of (word lines, bit lines) holds the cells of one weight."""
    needed = weight_bits // cell_bits
    if tile[0] < 1 or tile[1] < needed:
        raise ConfigError(
            f"tile = {tile[0]}x{tile[1]}: a word line must hold the {needed} cells of one weight"
        )


def check_copies(copies: int, vote: str) -> None:
    """Raise ConfigError for a number of copies that the vote cannot use."""
    if vote not in VOTES:
        raise ConfigError(f"vote = {vote!r} is not one of {', '.join(VOTES)}")
    if copies < 1:
        raise ConfigError(f"copies = {copies}: must be at least 1")
    if copies % 2 == 0 and vote != "healthy":
        raise ConfigError(f"copies = {copies} with vote = {vote!r}: must be odd (vote = 'healthy' takes any)")
