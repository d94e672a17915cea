"""Budget and placement: cells counted on both sides, blocks that never collide, and what happens when cells are short."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planish.errors import PlanishError
from planish_reram_protect import plan
from planish_reram_protect.budget import Kept, Rule, allot
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.placement import Placement, place

RULE = Rule(slices=4, extra=2, top=1)


def kept(out: int, into: int, rows: int, columns: int, seed: int = 0) -> Kept:
    source = torch.Generator().manual_seed(seed)
    chosen = [
        torch.randperm(n, generator=source)[:k].sort().values for n, k in ((out, rows), (into, columns))
    ]
    return Kept((out, into), chosen[0], chosen[1], torch.rand(rows, generator=source))


def test_zero_overhead_at_exactly_a_third_and_an_error_at_33_per_cent() -> None:
    third = {"fc": kept(300, 100, 200, 100)}
    depth = allot(third, RULE)
    assert bool((depth["fc"] == 1).all())
    placed = place(third, depth, RULE, 1, (128, 128))
    assert placed.homeless == 0
    assert int(sizes(placed.blocks["fc"]).sum()) == 2 * 200 * 100
    with pytest.raises(
        PlanishError,
        match=r"copies need 40200 cells and pruning freed 39600 \(sparsity 0\.3300, 0\.3333 needed\)",
    ):
        allot({"fc": kept(300, 100, 201, 100)}, RULE)


def test_short_of_cells_the_most_important_outputs_are_served() -> None:
    layer = kept(300, 100, 240, 100)
    depth = allot({"fc": layer}, Rule(slices=4, extra=2, top=1, partial=True))["fc"]
    served = int(depth.sum())
    assert served == 4 * 60 * 100 // (2 * 100)
    assert layer.importance[depth == 1].min() >= layer.importance[depth == 0].max()


def test_spare_cells_deepen_the_most_important_outputs() -> None:
    layer = kept(300, 100, 180, 100)
    depth = allot({"fc": layer}, RULE)["fc"]
    spare = 4 * 120 * 100 - 2 * 180 * 100
    assert int((depth == 2).sum()) == spare // 200
    assert int(depth.min()) == 1
    assert layer.importance[depth == 2].min() >= layer.importance[depth == 1].max()
    assert bool((allot({"fc": layer}, Rule(4, 2, 1, spare=False))["fc"] == 1).all())


def test_layers_share_cells_only_in_the_model_scope() -> None:
    layers = {"full": kept(64, 64, 64, 60), "empty": kept(256, 64, 64, 64)}
    assert all(bool((part >= 1).all()) for part in allot(layers, RULE).values())
    with pytest.raises(PlanishError, match=r"^full: "):
        allot(layers, Rule(4, 2, 1, scope="layer"))


def test_overhead_is_counted_in_crossbars() -> None:
    config = ReramProtectConfig(target=0.1, allow_overhead=True)
    _, report = plan.protect({"fc": kept(256, 256, 240, 240)}, config)
    missing = 2 * 240 * 240 - 4 * (256 * 256 - 240 * 240)
    assert report["extra crossbars"] == -(-missing // 128**2) > 0
    assert report["cells used by copies"] == 2 * 240 * 240


def sizes(blocks: Tensor) -> Tensor:
    return (blocks[:, 3] >> 16) * (blocks[:, 3] & 0xFFFF)


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(st.tuples(st.integers(2, 70), st.integers(2, 70)), min_size=1, max_size=3),
    share=st.floats(0.55, 0.8),
    tile=st.tuples(st.sampled_from([8, 16, 50]), st.sampled_from([8, 16, 50])),
    arrays=st.sampled_from([1, 2]),
    seed=st.integers(0, 10**6),
)
def test_blocks_lie_in_freed_cells_and_never_overlap(
    shapes: list[tuple[int, int]], share: float, tile: tuple[int, int], arrays: int, seed: int
) -> None:
    layers = {
        f"l{n}": kept(out, into, max(1, int(share * out)), max(1, int(share * into)), seed + n)
        for n, (out, into) in enumerate(shapes)
    }
    depth = allot(layers, RULE)
    placed = place(layers, depth, RULE, arrays, tile)
    assert placed.homeless == 0
    taken = occupied(layers, placed, arrays, tile)
    for name, layer in layers.items():
        wanted = arrays * 2 * int(depth[name].sum()) * len(layer.columns)
        assert int(sizes(placed.blocks[name]).sum()) == wanted
        for number, row, column, shape in placed.blocks[name].tolist():
            height, width = shape >> 16, shape & 0xFFFF
            cells = taken[number][row : row + height, column : column + width]
            assert cells.shape == (height, width), "outside the crossbar"
            assert not bool(cells.any()), "a cell is used twice"
            cells[:] = True
    again = place(layers, depth, RULE, arrays, tile)
    assert all(torch.equal(again.blocks[name], placed.blocks[name]) for name in layers)


def occupied(layers: dict[str, Kept], placed: Placement, arrays: int, tile: tuple[int, int]) -> list[Tensor]:
    """Every tile's cells, True where a kept weight lies or where the matrix has no cell."""
    found, across = [], tile[1] // 4
    for layer in layers.values():
        out, into = layer.shape
        for _ in range(arrays):
            for top in range(0, into, tile[0]):
                for left in range(0, out, across):
                    cells = torch.ones(tile, dtype=torch.bool)
                    height, width = min(tile[0], into - top), min(across, out - left)
                    cells[:height, : 4 * width] = False
                    inputs = sum(top <= c < top + tile[0] for c in layer.columns.tolist())
                    outputs = sum(left <= r < left + across for r in layer.rows.tolist())
                    cells[:inputs, : 4 * outputs] = True
                    found.append(cells)
    assert len(found) == placed.tiles
    return found


def test_copies_stay_on_the_word_lines_of_their_own_tile_where_they_fit() -> None:
    """Half of the outputs pruned and all inputs kept: every tile has room beside its kept columns."""
    rows = torch.arange(0, 64, 2)
    layer = Kept((64, 128), rows, torch.arange(128), torch.ones(32))
    blocks = place({"fc": layer}, {"fc": torch.ones(32, dtype=torch.uint8)}, RULE, 1, (128, 128)).blocks["fc"]
    assert blocks[:, 0].tolist() == [0, 1]
    assert blocks[:, 1].tolist() == [0, 0]
    assert bool((blocks[:, 2] >= 16 * 4).all())


def test_report_counts_conversions_only_where_copies_are_digitised() -> None:
    layer = kept(300, 200, 200, 190)
    late, early = (
        plan.protect({"fc": layer}, ReramProtectConfig(vote=vote, use_spare=False))[1]
        for vote in ("output", "bit")
    )
    assert late["extra ADC conversions a cycle"] == 2 * 2 * 200  # two copies, two tiles of word lines
    assert late["cells read when weights are composed"] == 0
    assert early["extra ADC conversions a cycle"] == 0
    assert early["cells read when weights are composed"] == 4 * 200 * 190 + 2 * 200 * 190
    assert early["cells before"] == 4 * 300 * 200
    assert early["cells after"] == 4 * 200 * 190
    assert early["extra crossbars"] == 0
    assert early["index bytes"] > 4 * (200 + 190)


def test_a_plan_without_slices_or_copies_protects_nothing() -> None:
    layer = kept(300, 100, 200, 100)
    for options in ({"protected_slices": 0}, {"copies": 1}):
        protection, report = plan.protect({"fc": layer}, ReramProtectConfig(**options))
        assert protection["fc"].deepest == 0
        assert report["cells used by copies"] == 0
