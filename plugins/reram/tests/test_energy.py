"""Cells, conversions, energy, latency and area."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from planish.errors import ConfigError
from planish_reram.constants import ISAAC, MNSIM, PUMA, table
from planish_reram.energy import cost, footprint
from planish_reram.protection import LayerProtection
from planish_reram.slicing import Layout
from planish_reram.specs import Converters

TILE = (128, 128)


def test_one_cycle_of_one_tile_costs_what_the_sources_add_up_to() -> None:
    """128 x 128 cells, one input bit: ADC 213 pJ, DAC 50 pJ, crossbar 30 pJ; the ADC takes 73 % of these three."""
    one = footprint((32, 128), Layout(), TILE, Converters(dac_bits=2))
    found = cost({"a": (one, 1)}, ISAAC, TILE)
    cycle = {part: value / 2 for part, value in found.picojoules.items()}
    assert (one.crossbars, one.rows, one.columns, one.spare_cells) == (1, 128, 128, 0)
    assert cycle["adc"] == pytest.approx(213.3, abs=0.1)
    assert cycle["dac"] == pytest.approx(49.9, abs=0.1)
    assert cycle["crossbar"] == pytest.approx(30)
    assert cycle["adc"] / (cycle["adc"] + cycle["dac"] + cycle["crossbar"]) == pytest.approx(0.73, abs=0.005)
    assert found.adc_share > 0.7
    assert found.table == "isaac"


@pytest.mark.parametrize("mapping", ["offset", "differential"])
def test_counts_of_a_larger_layer(mapping: str) -> None:
    layout = Layout(8, 2, mapping)  # type: ignore[arg-type]
    found = footprint((768, 768), layout, TILE, Converters())
    arrays = layout.arrays
    assert found.cells == arrays * 4 * 768 * 768
    assert found.crossbars == arrays * 6 * 24
    assert found.cells + found.spare_cells == found.crossbars * 128 * 128
    assert found.conversions == arrays * 4 * 768 * 6 * 8


def test_copies_cost_conversions_only_where_the_output_votes() -> None:
    plan = {"slices": torch.full((512,), 1, dtype=torch.uint8), "kept_rows": torch.arange(512)}
    plain = footprint((768, 768), Layout(), TILE, Converters(), LayerProtection(kept_rows=plan["kept_rows"]))
    bit = footprint((768, 768), Layout(), TILE, Converters(), LayerProtection(**plan, copies=3))
    output = footprint(
        (768, 768), Layout(), TILE, Converters(), LayerProtection(**plan, copies=3, vote="output")
    )
    assert bit.copied_cells == output.copied_cells == 2 * 512 * 768
    assert bit.conversions == plain.conversions
    assert output.copied_conversions == 2 * 512 * 6 * 8
    assert output.conversions == plain.conversions + output.copied_conversions
    assert bit.crossbars == footprint((768, 768), Layout(), TILE, Converters()).crossbars
    assert bit.cells + bit.copied_cells + bit.spare_cells == bit.crossbars * 128 * 128


def test_energy_scales_with_vectors_and_adc_bits() -> None:
    shape = footprint((64, 256), Layout(), TILE, Converters())
    one, many = (cost({"a": (shape, n)}, ISAAC, TILE) for n in (1, 10))
    assert many.total == pytest.approx(10 * one.total)
    assert many.nanoseconds == pytest.approx(10 * one.nanoseconds)
    assert many.square_millimetres == one.square_millimetres
    six = cost({"a": (shape, 1)}, ISAAC, TILE, adc_bits=6)
    assert six.picojoules["adc"] == pytest.approx(one.picojoules["adc"] / 4)
    assert one.nanoseconds == pytest.approx(8 * 128 / 1.2)  # 128 columns on one ADC take longer than the read


def test_every_table_names_its_source() -> None:
    for constants in (ISAAC, PUMA, MNSIM):
        assert constants.source
        assert table(constants.name) is constants
    assert MNSIM.adc_pj == pytest.approx(3.64, abs=0.01)
    assert PUMA.crossbar_pj == pytest.approx(309)
    written = cost(
        {"a": (footprint((32, 128), Layout(), TILE, Converters()), 1)}, PUMA, TILE
    ).write_microjoules
    assert written == pytest.approx(0.0226, abs=1e-4)


def test_own_table_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nsource: my measurements\nbased_on: mnsim\nadc_pj: 0.9\n")
    own = table(str(path))
    assert (own.name, own.adc_pj, own.adc_gs) == ("mine", 0.9, 1.1)
    other = tmp_path / "mine.json"
    other.write_text('{"name": "j", "source": "s", "cycle_ns": 50}')
    assert table(str(other)).cycle_ns == 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adc_pj: 1", "field 'name' is required"),
        ("{name: a, source: b, adc: 1}", "unknown field 'adc'"),
        ("{name: a, source: b, adc_pj: -1}", "adc_pj = -1: must be a number"),
        ("{name: a, source: b, adc_pj: .inf}", "adc_pj = inf"),
        ("{name: a, source: b, adc_pj: true}", "adc_pj = True"),
        ("{name: a, source: b, cycle_ns: 0}", "cycle_ns = 0: must be above 0"),
        ("{name: a, source: b, based_on: x}", "based_on = 'x' is not one of isaac"),
        ("- 1", "must hold fields"),
        ("a: [", "is not valid yaml"),
    ],
)
def test_bad_tables_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        table(str(path))
    assert "\n" not in str(caught.value)


def test_unknown_tables_and_files() -> None:
    with pytest.raises(ConfigError, match="not one of isaac, puma, mnsim"):
        table("neurosim")
    with pytest.raises(ConfigError, match="cannot be read"):
        table("nowhere/constants.yaml")
