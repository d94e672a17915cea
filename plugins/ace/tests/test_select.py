"""Masks: exact counts, ties, and equality with a sort of every row."""

from __future__ import annotations

import ace_reference as reference
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from planish_ace.pattern import NM, parse
from planish_ace.select import lowest, lowest_per_group, lowest_per_row, lowest_small


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Scores with many ties."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 30))
    values = draw(st.lists(st.integers(0, 4), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


@given(scores=matrices(), sparsity=st.floats(0, 1, exclude_max=True))
def test_rows_lose_exactly_their_lowest(scores: Tensor, sparsity: float) -> None:
    mask = lowest_per_row(scores, sparsity)
    count = int(scores.shape[1] * sparsity)
    for row, chosen in zip(scores, mask, strict=True):
        assert chosen.nonzero().flatten().tolist() == reference.lowest(row, count)


@given(scores=matrices(), m=st.integers(2, 17), data=st.data())
def test_groups_lose_exactly_their_lowest(scores: Tensor, m: int, data: st.DataObject) -> None:
    pattern = NM(data.draw(st.integers(1, m - 1)), m)
    mask = lowest_per_group(scores, pattern)
    for row, chosen in zip(scores, mask, strict=True):
        expected: list[int] = []
        for start in range(0, len(row), m):
            part = row[start : start + m]
            count = pattern.pruned if len(part) == m else len(part) * pattern.pruned // m
            expected += [start + j for j in reference.lowest(part, count)]
        assert chosen.nonzero().flatten().tolist() == expected
        assert len(expected) == pattern.pruned_of(len(row))


@given(groups=matrices(), data=st.data())
def test_both_selections_agree(groups: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, groups.shape[1]))
    assert torch.equal(lowest(groups, count), lowest_small(groups, count))


def test_the_tail_of_172_columns_by_4_of_8() -> None:
    mask = lowest_per_group(torch.rand(10, 172, generator=torch.Generator().manual_seed(0)), NM(4, 8))
    assert mask[:, :168].view(10, 21, 8).sum(-1).eq(4).all()
    assert mask[:, 168:].sum(-1).eq(2).all()


def test_ties_prune_the_lower_column() -> None:
    scores = torch.tensor([[1.0, 0.0, 1.0, 1.0, 1.0, 2.0]])
    assert lowest_per_row(scores, 0.5).tolist() == [[True, True, True, False, False, False]]
    assert lowest_per_group(torch.ones(1, 8), NM(2, 4)).tolist() == [[True, True, False, False] * 2]


def test_inputs_stay_as_they_are() -> None:
    scores = torch.rand(4, 10)
    before = scores.clone()
    lowest_per_row(scores, 0.3)
    lowest_per_group(scores, NM(2, 4))
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [("2:4", NM(2, 4)), ("1:16", NM(1, 16)), ("unstructured", None), ("structured", None)],
)
def test_patterns_parse(text: str, pattern: NM | None) -> None:
    assert parse(text) == pattern


@pytest.mark.parametrize("text", ["", "2-4", "4:2", "4:4", "0:4", "2:4:8", " 2:4", "-1:4", "dense", "²:4"])
def test_bad_patterns_are_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"^pattern .*(N:M|keeps)") as caught:
        parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)
