"""Energy, latency and area of the parts of a crossbar: named tables, each figure with its source.

A table can be replaced by a YAML or JSON file: ``{name: mine, source: ..., based_on: isaac, adc_pj: 1.2}``.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from planish.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Constants:
    """What the parts cost. A cycle is one bit of the input through one crossbar.

    Attributes:
        name, source: which table, and where its figures come from.
        rows, cols: of the crossbar that the figures are for.
        adc_bits: resolution of the ADC that the figures are for; others are scaled by 2^(bits - adc_bits), our assumption.
        adc_pj: of one conversion. adc_gs: conversions a nanosecond. adc_mm2: of one ADC; a crossbar has one.
        dac_pj: of one word line in one cycle, one input bit. dac_mm2: of one.
        crossbar_pj: of all cells in one cycle. crossbar_mm2: of all cells.
        hold_pj, hold_mm2: sample and hold of one column.
        shift_add_pj: of one crossbar in one cycle. shift_add_mm2: of one.
        cycle_ns: of one cycle, where the ADC is not slower.
        write_nj: programming a whole crossbar; None where the source has none.
    """

    name: str
    source: str
    rows: int = 128
    cols: int = 128
    adc_bits: int = 8
    adc_pj: float = 0.0
    adc_gs: float = 1.2
    adc_mm2: float = 0.0
    dac_pj: float = 0.0
    dac_mm2: float = 0.0
    crossbar_pj: float = 0.0
    crossbar_mm2: float = 0.0
    hold_pj: float = 0.0
    hold_mm2: float = 0.0
    shift_add_pj: float = 0.0
    shift_add_mm2: float = 0.0
    cycle_ns: float = 100.0
    write_nj: float | None = None

    def adc_energy(self, bits: int | None) -> float:
        """Picojoules of one conversion of ``bits`` bits; of the table's own ADC where None."""
        return self.adc_pj if bits is None else self.adc_pj * 2.0 ** (bits - self.adc_bits)


ISAAC = Constants(
    name="isaac",
    source="ISAAC (32 nm) as carried by the PUMA constants: ADC 2 mW at 1.2 GS/s, DAC 3.9 uW a row, 128 x 128 crossbar of "
    "2-bit cells 0.3 mW, sample and hold 9.7 nW a column, shift-add 0.05 mW, 100 ns a cycle",
    adc_pj=2.0 / 1.2,
    adc_gs=1.2,
    adc_mm2=0.0012,
    dac_pj=3.9e-3 * 100,
    dac_mm2=1.67e-7,
    crossbar_pj=0.3 * 100,
    crossbar_mm2=2.5e-5,
    hold_pj=9.7e-6 * 100,
    hold_mm2=3.9e-8,
    shift_add_pj=0.05 * 100,
    shift_add_mm2=6e-5,
)  # fmt: skip
PUMA = dataclasses.replace(
    ISAAC,
    name="puma",
    source="PUMA constants, training variant: in-situ product with periphery 3.09 mW for 100 ns, converters included; serial "
    "write of a 128 x 128 array 2.06 mW for 10.97 us; areas as in ISAAC",
    adc_pj=0.0,
    dac_pj=0.0,
    hold_pj=0.0,
    shift_add_pj=0.0,
    crossbar_pj=3.09 * 100,
    write_nj=2.06 * 10.97,
)
MNSIM = dataclasses.replace(
    ISAAC,
    name="mnsim",
    source="MNSIM 2.0, ADC choice 3 (8 bit, 1.1 GS/s, two-step SAR, 4 mW); everything else as in ISAAC",
    adc_pj=4.0 / 1.1,
    adc_gs=1.1,
)
TABLES: dict[str, Constants] = {table.name: table for table in (ISAAC, PUMA, MNSIM)}


def table(name: str) -> Constants:
    """The table of that name, or the one in a YAML or JSON file.

    Raises:
        ConfigError: no such table or file, unknown or missing fields, or a negative figure.
    """
    if name in TABLES:
        return TABLES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(
            f"constants = {name!r} is not one of {', '.join(TABLES)}, nor a .yaml or .json file"
        )
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"constants = {name!r}: cannot be read ({error.strerror})") from None
    except (ValueError, yaml.YAMLError):
        raise ConfigError(f"constants = {name!r}: is not valid {path.suffix[1:]}") from None
    return _from_file(name, values)


def _from_file(name: str, values: Any) -> Constants:
    if not isinstance(values, dict):
        raise ConfigError(f"constants = {name!r}: must hold fields and their values")
    values = dict(values)
    base = values.pop("based_on", "isaac")
    if base not in TABLES:
        raise ConfigError(f"constants = {name!r}: based_on = {base!r} is not one of {', '.join(TABLES)}")
    fields = {field.name for field in dataclasses.fields(Constants)}
    if unknown := sorted(map(str, set(values) - fields)):
        raise ConfigError(
            f"constants = {name!r}: unknown field {unknown[0]!r} (fields: {', '.join(sorted(fields))})"
        )
    for field in ("name", "source"):
        if not isinstance(values.get(field), str) or not values[field].strip():
            raise ConfigError(
                f"constants = {name!r}: field {field!r} is required, so that no figure goes without it"
            )
    for field, value in values.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if field not in ("name", "source") and not (number and 0 <= value < float("inf")):
            raise ConfigError(f"constants = {name!r}: {field} = {value!r}: must be a number, 0 or more")
    positive = [f for f in ("rows", "cols", "adc_bits", "adc_gs", "cycle_ns") if values.get(f, 1) <= 0]
    if positive:
        raise ConfigError(f"constants = {name!r}: {positive[0]} = {values[positive[0]]}: must be above 0")
    return dataclasses.replace(TABLES[base], **values)
