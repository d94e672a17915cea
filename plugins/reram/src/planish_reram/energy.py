"""Cells, conversions, energy, latency and area of a network on crossbars, counted from its layers and one table.

Per input vector and layer, with inputs bit by bit: each of the ``dac_bits`` cycles drives all word lines of all row tiles and
digitises every column in use. Copies that are voted on at the output are columns too; copies that are voted on when the
weight is read out cost no conversion in a product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from planish_reram.constants import Constants
from planish_reram.protection import LayerProtection
from planish_reram.slicing import Layout
from planish_reram.specs import Converters

PARTS = ("adc", "dac", "crossbar", "sample and hold", "shift and add")
DIGITAL_INPUT_BITS = 8
"""Cycles an input vector where the simulation has an ideal DAC: a real one still has a width."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one layer occupies and does for one input vector.

    Attributes:
        cells: written cells, without copies. copied_cells: cells of copies.
        crossbars: crossbars of the layer; spare_cells: cells in them that hold nothing.
        rows, columns: word lines driven and columns read, over all tiles, in one cycle.
        copied_columns: of them, columns that exist because of copies (votes ``output`` and ``mean``).
        cycles: one a bit of the input.
    """

    cells: int
    copied_cells: int
    crossbars: int
    spare_cells: int
    rows: int
    columns: int
    copied_columns: int
    cycles: int

    @property
    def conversions(self) -> int:
        """ADC conversions for one input vector."""
        return self.columns * self.cycles

    @property
    def copied_conversions(self) -> int:
        """Of them, those that copies cost."""
        return self.copied_columns * self.cycles


def footprint(
    shape: tuple[int, int],
    layout: Layout,
    tile: tuple[int, int],
    converters: Converters,
    protection: LayerProtection | None = None,
) -> Footprint:
    """Count for a matrix of ``shape`` = (out, in) on tiles of (word lines, bit lines).

    Protected layers stay on the crossbars of the unpruned matrix: copies lie in the cells that pruning freed.
    """
    out, inputs = shape
    R, C, copied, late = out, inputs, 0, False
    if protection is not None:
        R = out if protection.kept_rows is None else len(protection.kept_rows)
        C = inputs if protection.kept_cols is None else len(protection.kept_cols)
        if protection.deepest and protection.slices is not None:
            copied = (protection.copies - 1) * int(protection.slices.sum())
        late = protection.vote in ("output", "mean")
    given_up = copied if protection is not None and protection.embed == "lsb" else 0
    row_tiles = math.ceil(C / tile[0])
    crossbars = layout.arrays * math.ceil(inputs / tile[0]) * math.ceil(out / (tile[1] // layout.slices))
    own = layout.arrays * (R * layout.slices - given_up)
    copies = layout.arrays * copied
    read = copies if late else 0
    return Footprint(
        cells=own * C,
        copied_cells=copies * C,
        crossbars=crossbars,
        spare_cells=crossbars * tile[0] * tile[1] - (own + copies) * C,
        rows=layout.arrays * C * math.ceil(R / (tile[1] // layout.slices)),
        columns=(own + read) * row_tiles,
        copied_columns=read * row_tiles,
        cycles=converters.dac_bits or DIGITAL_INPUT_BITS,
    )


@dataclass(frozen=True, slots=True)
class Cost:
    """Energy, latency and area, never without the table they come from.

    Attributes:
        table: name of the constants.
        picojoules: by part, for one inference.
        nanoseconds: latency, layers one after the other, the tiles of a layer at the same time.
        square_millimetres: of all crossbars with their periphery.
        conversions: ADC conversions; copied_conversions: of them, those of copies.
        crossbars, cells, copied_cells: as in `Footprint`, summed.
        write_microjoules: programming all crossbars; None where the table has no figure.
    """

    table: str
    picojoules: dict[str, float]
    nanoseconds: float
    square_millimetres: float
    conversions: int
    copied_conversions: int
    crossbars: int
    cells: int
    copied_cells: int
    write_microjoules: float | None

    @property
    def total(self) -> float:
        """Picojoules of one inference."""
        return sum(self.picojoules.values())

    @property
    def adc_share(self) -> float:
        """Share of the energy that conversions take."""
        return self.picojoules["adc"] / self.total if self.total else 0.0


def cost(
    layers: Mapping[str, tuple[Footprint, int]],
    constants: Constants,
    tile: tuple[int, int],
    adc_bits: int | None = None,
) -> Cost:
    """Cost of one inference.

    Args:
        layers: footprint and number of input vectors an inference, by layer.
        constants: the table; its crossbar scales with the number of cells.
        adc_bits: resolution of the simulated ADC; an ideal one counts as the table's own.
    """
    size = tile[0] * tile[1] / (constants.rows * constants.cols)
    parts = dict.fromkeys(PARTS, 0.0)
    nanoseconds = 0.0
    for shape, vectors in layers.values():
        cycles = shape.cycles * vectors
        parts["adc"] += shape.conversions * vectors * constants.adc_energy(adc_bits)
        parts["dac"] += shape.rows * cycles * constants.dac_pj
        parts["crossbar"] += shape.crossbars * cycles * constants.crossbar_pj * size
        parts["sample and hold"] += shape.columns * cycles * constants.hold_pj
        parts["shift and add"] += shape.crossbars * cycles * constants.shift_add_pj
        nanoseconds += cycles * max(constants.cycle_ns, tile[1] / constants.adc_gs)
    total = {
        field.name: sum(getattr(shape, field.name) for shape, _ in layers.values())
        for field in fields(Footprint)
    }
    area = (
        constants.adc_mm2 + tile[0] * constants.dac_mm2 + constants.crossbar_mm2 * size
        + tile[1] * constants.hold_mm2 + constants.shift_add_mm2
    )  # fmt: skip
    written = None if constants.write_nj is None else total["crossbars"] * size * constants.write_nj / 1000
    return Cost(
        constants.name,
        parts,
        nanoseconds,
        area * total["crossbars"],
        sum(shape.conversions * vectors for shape, vectors in layers.values()),
        sum(shape.copied_conversions * vectors for shape, vectors in layers.values()),
        total["crossbars"],
        total["cells"],
        total["copied_cells"],
        written,
    )
