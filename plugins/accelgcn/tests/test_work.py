"""Work lists cover every entry once, within the bounds that the kernels rely on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planish_accelgcn.work import Work, work
from planish_graph.graph import Graph, row_pointer

SIZES = [(256, 64, 8), (512, 32, 0), (832, 256, 16), (4096, 512, 32)]


def covered(graph: Graph, lists: Work, segment: int, short: int) -> torch.Tensor:
    """How often each entry is read; raises where a list breaks its rules."""
    seen = torch.zeros(graph.num_edges, dtype=torch.int64)
    written: list[int] = []
    partial: dict[int, int] = {}
    for number, record in enumerate(lists.chunks.tolist()):
        low, high, first, whole, tasks, first_cut, cuts, piece = record
        base = (low & 0xFFFFFFFF) + (high << 32)
        slots: dict[int, int] = {}
        for place, (row, start, count, slot) in enumerate(lists.tasks[first : first + tasks].tolist()):
            part = slice(base + start, base + start + count)
            assert graph.indptr[row] <= part.start
            assert part.stop <= graph.indptr[row + 1]
            assert count <= segment
            assert place < whole or (slot < 0 and count <= short)
            seen[part] += 1
            if slot < 0:
                written.append(row)
            else:
                assert slot not in slots
                slots[slot] = row
        for row, slot, parts, degree in lists.cuts[first_cut : first_cut + cuts].tolist():
            assert {slots.pop(s) for s in range(slot, slot + parts)} == {row}
            assert degree == graph.degrees[row]
            if piece < 0:
                written.append(row)
            else:
                partial[piece] = row
                assert piece == number
        assert not slots
    for row, first, pieces, degree in lists.giants.tolist():
        assert {partial.pop(p) for p in range(first, first + pieces)} == {row}
        assert degree == graph.degrees[row]
        written.append(row)
    assert not partial
    assert sorted(written) == list(range(graph.num_rows)), "every row is written once"
    return seen


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("sizes", SIZES)
def test_every_entry_is_read_and_every_row_written_once(
    emulated: None, sizes: tuple[int, int, int], index: torch.dtype
) -> None:
    degree = st.one_of(st.integers(0, 40), st.integers(0, 700), st.integers(0, 9000))

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(degree, min_size=1, max_size=40))
    def holds(degrees: list[int]) -> None:
        counts = torch.tensor(degrees)
        graph = Graph(row_pointer(counts, index), torch.zeros(sum(degrees), dtype=index))
        lists = work(graph, *sizes)
        assert (covered(graph, lists, *sizes[1:]) == 1).all()

    holds()
