"""Options of the backend ``reram``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from planish import MethodConfig, digest
from planish.errors import PlanishError
from planish_reram.specs import Converters, FaultRates, check_tile, check_widths, preset

Probability = Annotated[float, Field(ge=0, le=1)]
Resolution = Annotated[int, Field(ge=1, le=16)]


class ReramConfig(MethodConfig):
    """A chip, its faults, its converters, and how many chips are looked at."""

    weight_bits: int = Field(8, ge=2, le=8, description="width of a weight, sign included")
    cell_bits: int = Field(2, ge=1, le=8, description="bits a cell; must divide weight_bits")
    mapping: Literal["offset", "differential"] = Field(
        "offset", description="offset: one array; differential: a positive and a negative array"
    )
    tile_rows: int = Field(128, ge=1, le=4096, description="word lines of a crossbar")
    tile_cols: int = Field(128, ge=1, le=4096, description="bit lines of a crossbar")
    scale: Literal["tensor", "row"] = Field(
        "tensor", description="what shares a scale: a matrix or an output row"
    )
    percentile: float | None = Field(
        None, ge=50, le=100, description="clip weights above this percentile of their scale's magnitudes"
    )
    faults: Literal["none", "march_test", "march_test_swapped", "low"] = Field(
        "march_test",
        description="rates of stuck cells, by name; p_hrs, p_lrs, p_row and p_col replace single rates",
    )
    p_hrs: Probability | None = Field(
        None, description="probability of a cell stuck at high resistance (level 0)"
    )
    p_lrs: Probability | None = Field(
        None, description="probability of a cell stuck at low resistance (top level)"
    )
    p_row: Probability | None = Field(
        None, description="probability of an open word line of a tile (level 0)"
    )
    p_col: Probability | None = Field(None, description="probability of an open bit line of a tile (level 0)")
    fault_map: str | None = Field(
        None, description="safetensors file with the measured fault map of one chip, which is then chip 0"
    )
    fault_map_sha256: str | None = Field(
        None, description="filled in from the file, so that changed content is another run"
    )
    chips: int = Field(
        10, ge=1, le=10000, description="chips whose quality is measured; the model itself runs on the first"
    )
    bias_correction: Literal["expected"] | None = Field(
        None, description="expected: undo the expected effect of the rates, slice by slice"
    )
    dac_bits: Resolution | Literal["ideal"] | None = Field(
        8, description="signed width of an input at the word lines; ideal or null for none"
    )
    dac_range: Literal["vector", "calibrated"] = Field(
        "vector", description="an input's scale: its own largest magnitude, or one a layer from calibration"
    )
    dac_serial: bool = Field(False, description="one bit of the input a cycle, each digitised")
    adc_bits: Resolution | Literal["ideal"] | None = Field(
        None, description="resolution of a column sum; ideal or null for none"
    )
    adc_range: Literal["calibrated", "max"] = Field(
        "calibrated",
        description="calibrated on the task's data, or the largest possible sum (which costs most codes)",
    )
    adc_percentile: float = Field(
        99.99, ge=50, le=100, description="share of the calibration sums inside the range"
    )
    adc_scope: Literal["slice", "column"] = Field("slice", description="what shares a range")
    device: Literal["ideal", "custom", "pcm-2019", "reram-2022"] = Field(
        "ideal", description="noise and drift of a cell, by model"
    )
    program_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="device custom: standard deviation of a programmed conductance, share of the largest",
    )
    read_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="device custom: standard deviation of one read, share of the largest conductance",
    )
    drift: float = Field(0.0, ge=0, le=1, description="device custom: exponent nu of (t / 1 s)^-nu")
    seconds: float = Field(0.0, ge=0, le=1e10, description="time between programming and reading")
    skip: tuple[str, ...] = Field((), description="patterns of layer paths that stay digital")
    small_layers: Literal["pad", "digital", "refuse"] = Field(
        "pad",
        description="layers that fill no tile in either direction: leave cells unused, keep digital, or refuse",
    )
    constants: str = Field(
        "isaac",
        min_length=1,
        description="table of energy, latency and area: isaac, puma, mnsim, or a YAML or JSON file",
    )
    constants_sha256: str | None = Field(
        None, description="filled in from the file, so that changed content is another run"
    )
    calibration_samples: int = Field(
        64, ge=1, le=100000, description="samples or windows for converter ranges"
    )

    @model_validator(mode="before")
    @classmethod
    def _contents(cls, values: Any) -> Any:
        """Put what the named files hold beside their names: a stage's key is made of its options."""
        if not isinstance(values, dict):
            return values
        files = {name: values.get(name) for name in ("fault_map", "constants")}
        held = {
            f"{name}_sha256": digest.of_file(Path(path))
            for name, path in files.items()
            if isinstance(path, str) and Path(path).is_file()
        }
        return values | held

    @model_validator(mode="after")
    def _fits(self) -> Self:
        try:
            check_widths(self.weight_bits, self.cell_bits)
            check_tile(self.tile, self.weight_bits, self.cell_bits)
            _ = self.rates, self.converters
        except PlanishError as error:
            raise ValueError(str(error)) from None
        if self.device != "custom" and (self.program_noise or self.read_noise or self.drift):
            raise ValueError("program_noise, read_noise and drift belong to device = 'custom'")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """What the run must offer."""
        return ("calibration",) if self.converters.calibrates else ()

    @property
    def tile(self) -> tuple[int, int]:
        return self.tile_rows, self.tile_cols

    @property
    def rates(self) -> FaultRates:
        """The named rates with single ones replaced."""
        base = preset(self.faults)
        given = {name: value for name in base.__slots__ if (value := getattr(self, name)) is not None}
        return FaultRates(**{name: given.get(name, getattr(base, name)) for name in base.__slots__})

    @property
    def converters(self) -> Converters:
        return Converters(
            dac_bits=_bits(self.dac_bits),
            dac_range=self.dac_range,
            dac_serial=self.dac_serial,
            adc_bits=_bits(self.adc_bits),
            adc_range=self.adc_range,
            adc_percentile=self.adc_percentile,
            adc_scope=self.adc_scope,
        )


def _bits(value: int | str | None) -> int | None:
    return value if isinstance(value, int) else None
