"""Partitions cover every entry once; the published one follows its rules."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import DataError
from planish_graph.blocks import blocks
from planish_graph.generate import from_degrees, histogram_degrees, histogram_names
from planish_graph.partition import segments

DEGREES = st.lists(st.one_of(st.integers(0, 8), st.integers(0, 900)), min_size=1, max_size=40).map(
    torch.tensor
)


@given(DEGREES, st.integers(1, 300), st.sampled_from([1, 2, 7, 1000]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_segments_cover_every_entry_once(
    degrees: torch.Tensor, length: int, window: int, empty: bool
) -> None:
    graph = from_degrees(degrees)
    cut = segments(graph, length, window=window, empty=empty)
    seen = torch.zeros(graph.num_edges, dtype=torch.int64)
    order: list[int] = []
    for row, start, count, is_cut in zip(
        cut.row.tolist(), cut.start.tolist(), cut.count.tolist(), cut.cut, strict=True
    ):
        assert count <= length
        assert graph.indptr[row] <= start
        assert start + count <= graph.indptr[row + 1]
        assert is_cut == (degrees[row] > length)
        seen[start : start + count] += 1
        if not order or order[-1] != row:
            order.append(row)
    assert (seen == 1).all()
    assert sorted(order) == [i for i, d in enumerate(degrees.tolist()) if empty or d > 0], (
        "each row in one run"
    )
    kept = [i for i in order if degrees[i] or empty]
    assert [i // window for i in kept] == sorted(i // window for i in kept), "rows never leave their window"
    if window > 1:
        for first, second in itertools.pairwise(kept):
            assert first // window != second // window or degrees[first] >= degrees[second]
    scheduled = cut.cut[cut.schedule].tolist()
    assert scheduled == sorted(scheduled, reverse=True)
    assert sorted(cut.schedule.tolist()) == list(range(len(cut.row)))


def test_segments_refuse_bad_numbers() -> None:
    graph = from_degrees(torch.tensor([1, 2]))
    with pytest.raises(DataError, match="length = 0"):
        segments(graph, 0)
    with pytest.raises(DataError, match="window = 0"):
        segments(graph, window=0)


def published(degree: int) -> tuple[int, int]:
    """(entries a warp task, rows a block) from the table of degree ranges."""
    for top, tasks, rows in ((32, 1, 12), (64, 2, 6), (96, 3, 4), (128, 4, 3), (191, 6, 2)):
        if degree <= top:
            return math.ceil(degree / tasks), rows
    return 32, 1


def expected_blocks(degrees: list[int]) -> list[list[int]]:
    """The published rules, row by row."""
    order = sorted(range(len(degrees)), key=lambda row: degrees[row])
    falling = [degrees[row] for row in order]
    records = []
    row = entry = 0
    while row < len(order):
        degree = falling[row]
        if degree == 0:
            row += 1
        elif degree > 384:
            for skipped in range(0, degree, 384):
                records.append([degree, row, entry + skipped, min(384, degree - skipped)])
            row, entry = row + 1, entry + degree
        else:
            task, most = published(degree)
            here = min(most, sum(d == degree for d in falling[row:]))
            records.append([degree, row, entry, (task << 16) | here])
            row, entry = row + here, entry + here * degree
    return records


@given(
    st.lists(
        st.sampled_from([0, 1, 31, 32, 33, 64, 65, 96, 97, 128, 129, 191, 192, 193, 384, 385, 768, 769]),
        max_size=60,
    )
)
@settings(max_examples=60, deadline=None)
def test_published_blocks(degrees: list[int]) -> None:
    made = blocks(torch.tensor(degrees, dtype=torch.int64))
    assert made.metadata.dtype == torch.int32
    assert made.metadata.tolist() == expected_blocks(degrees)
    assert made.order.tolist() == sorted(range(len(degrees)), key=lambda row: degrees[row])


def test_published_block_counts_on_real_histograms(graphs: Path) -> None:
    path = graphs / "degree_histograms.npz"
    names = histogram_names(path)
    assert len(names) == 16
    for name in names:
        degrees = histogram_degrees(path, name)
        made = blocks(degrees).metadata
        degree, count = degrees[degrees > 0].unique(return_counts=True)
        wanted = sum(
            c * math.ceil(d / 384) if d > 384 else math.ceil(c / published(d)[1])
            for d, c in zip(degree.tolist(), count.tolist(), strict=True)
        )
        assert len(made) == wanted, name
        info = made[:, 3].long()
        long = made[:, 0] > 384
        entries = torch.where(long, info, made[:, 0] * (info & 0xFFFF)).sum()
        assert entries == degrees.sum(), name


def test_published_blocks_are_32_bit() -> None:
    with pytest.raises(DataError, match="the format is 32-bit"):
        blocks(torch.tensor([2**30, 2**30]))
    with pytest.raises(DataError, match="degrees: -1"):
        blocks(torch.tensor([-1]))
