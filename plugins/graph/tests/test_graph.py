"""The graph type: what it accepts, what it keeps, and when it forgets."""

from __future__ import annotations

import copy
import ctypes
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planish.errors import DataError
from planish_graph.convert import from_edges
from planish_graph.graph import Graph, row_pointer
from planish_graph.matrices import KEPT, matrix_of
from planish_graph.normalise import normalised, with_self_loops
from planish_graph.partition import segments
from planish_graph.spmm import spmm


def random_graph(rows: int, cols: int, edges: int, seed: int, weighted: bool, index: torch.dtype) -> Graph:
    """Edges drawn with replacement, so that there are duplicates and empty rows."""
    g = torch.Generator().manual_seed(seed)
    edges = edges if rows and cols else 0
    pair = torch.stack([torch.randint(0, max(n, 1), (edges,), generator=g) for n in (cols, rows)]).to(index)
    weight = torch.randn(edges, generator=g) if weighted else None
    return from_edges(pair, (rows, cols), weight)


GRAPHS = st.builds(
    random_graph,
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 60),
    st.integers(0, 2**31 - 1),
    st.booleans(),
    st.sampled_from([torch.int32, torch.int64]),
)


@given(GRAPHS)
@settings(max_examples=60, deadline=None)
def test_transpose_degrees_and_coalesce_agree_with_the_dense_matrix(graph: Graph) -> None:
    dense = graph.to_dense()
    torch.testing.assert_close(graph.transpose().to_dense(), dense.T)
    torch.testing.assert_close(graph.transpose().transpose().to_dense(), dense)
    torch.testing.assert_close(graph.row_sum(torch.float64), dense.sum(1))
    assert graph.degrees.sum() == graph.num_edges
    merged = graph.coalesced()
    torch.testing.assert_close(merged.to_dense(), dense, rtol=1e-5, atol=1e-5)  # values are added in fp32
    pairs = torch.stack([merged.rows, merged.indices])
    assert pairs.unique(dim=1).shape == pairs.shape


@given(GRAPHS, st.sampled_from(["sum", "mean", "gcn"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_normalisation_agrees_with_its_formula(graph: Graph, how: str, loops: bool) -> None:
    if graph.num_rows != graph.num_cols:
        if how == "gcn" or loops:
            with pytest.raises(DataError, match="square"):
                normalised(graph, how, self_loops=loops)  # type: ignore[arg-type]
        return
    if graph.value is not None:
        graph = graph.with_values(graph.value.abs())
    if loops:
        # Several loops at one node: any of their weights may stay, so the formula is told only for unweighted graphs.
        graph = graph.with_values(None)
    got = normalised(graph, how, self_loops=loops).to_dense(torch.float64)  # type: ignore[arg-type]
    dense, count = graph.to_dense(), graph.to_dense().new_zeros(graph.num_rows, graph.num_rows)
    count.index_put_((graph.rows.long(), graph.indices.long()), count.new_ones(1), accumulate=True)
    if loops:
        dense.fill_diagonal_(1)
        count.fill_diagonal_(1)
    if how == "mean":
        dense = dense / count.sum(1, keepdim=True).clamp_min(1)
    if how == "gcn":
        scale = dense.sum(1).rsqrt().nan_to_num(posinf=0)
        dense = scale[:, None] * dense * scale
    torch.testing.assert_close(got, dense, rtol=1e-5, atol=1e-6)


def test_existing_self_loops_keep_their_weight() -> None:
    graph = from_edges(torch.tensor([[0, 1], [0, 0]]), 3, torch.tensor([5.0, 2.0]))
    expected = torch.tensor([[5.0, 2, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(with_self_loops(graph).to_dense(), expected)


def test_what_is_derived_is_kept_until_the_graph_is_written_to() -> None:
    graph = random_graph(20, 20, 80, 0, True, torch.int64)
    x = torch.randn(20, 4)
    first = segments(graph, 2)
    assert segments(graph, 2) is first
    assert segments(graph, 3) is not first
    assert graph.value is not None
    graph.value.mul_(2)  # values are no part of the structure
    assert segments(graph, 2) is first
    torch.testing.assert_close(spmm(graph, x).double(), graph.to_dense() @ x.double(), rtol=1e-5, atol=1e-5)

    before = graph.transpose().to_dense()
    graph.indices[0] = (graph.indices[0] + 1) % 20
    assert segments(graph, 2) is not first
    assert not torch.equal(graph.transpose().to_dense(), before)
    torch.testing.assert_close(spmm(graph, x).double(), graph.to_dense() @ x.double(), rtol=1e-5, atol=1e-5)

    graph.indices[3] = 20
    with pytest.raises(DataError, match="column index 20 at entry 3; valid: 0 to 19"):
        spmm(graph, x)


def test_values_share_the_structure() -> None:
    graph = random_graph(9, 9, 30, 1, True, torch.int32)
    other = graph.with_values(torch.ones(30))
    assert other.transposed() is graph.transposed()
    assert not torch.equal(other.to_dense(), graph.to_dense())


def test_a_graph_made_in_inference_mode_can_be_trained_with() -> None:
    with torch.inference_mode():
        graph = random_graph(6, 6, 20, 2, False, torch.int64)
        graph.plan()
    x = torch.randn(6, 3, requires_grad=True)
    spmm(graph, x).sum().backward()
    assert x.grad is not None


SOUND = (torch.tensor([0, 1, 2]), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((SOUND[0].float(), SOUND[1]), "indptr is float32; valid: int32, int64"),
        ((SOUND[0], SOUND[1].to(torch.uint8)), "indices is uint8"),
        ((torch.empty(0, dtype=torch.int64), SOUND[1]), "indptr is empty"),
        ((SOUND[0][None], SOUND[1]), r"indptr has the shape \[1, 3\]"),
        ((torch.tensor([0, 1, 3]), SOUND[1]), "indptr runs from 0 to 3; valid: from 0 to 2"),
        ((torch.tensor([0, 3, 1, 2]), SOUND[1]), "indptr falls after row 1"),
        ((SOUND[0], torch.tensor([0, 2])), "column index 2 at entry 1; valid: 0 to 1"),
        ((SOUND[0], torch.tensor([-1, 0])), "column index -1 at entry 0"),
        ((*SOUND, torch.ones(3)), r"values have the shape \[3\]; valid: \[2\]"),
        ((*SOUND, torch.ones(2, dtype=torch.int64)), "values are int64; valid: float16"),
        ((SOUND[0], SOUND[1].to("meta")), "indptr is on cpu, indices on meta"),
        ((*SOUND, torch.ones(2, device="meta")), "values are on meta"),
        ((*SOUND, None, -1), "is no size"),
        ((*SOUND, None, 3.5), "3.5 columns; valid: an integer"),
        (([0, 1, 2], SOUND[1]), "indptr of type list; valid: a torch tensor"),
    ],
)
def test_bad_input_is_one_line(arguments: tuple[Tensor, ...], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        Graph(*arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_beyond_32_bits_is_an_error_or_64_bits() -> None:
    with pytest.raises(DataError, match="2147483648 columns are beyond int32"):
        Graph(SOUND[0].int(), SOUND[1].int(), num_cols=2**31)
    wide = Graph(*SOUND, num_cols=2**31)
    mixed = Graph(SOUND[0].int(), torch.tensor([2**31 + 1, 0]), num_cols=2**31 + 2)
    assert mixed.indices[0] == 2**31 + 1, "a wide index is never cut to the type of the row pointer"
    with pytest.raises(DataError, match="beyond int32"):
        wide.to(index=torch.int32)
    far = torch.tensor([2**61, 3, 2**61])
    merged = Graph(torch.tensor([0, 0, 0, 0, 0, 0, 3]), far, num_cols=2**62).coalesced()
    assert merged.degrees.tolist() == [0, 0, 0, 0, 0, 2]
    assert merged.indices.tolist() == [3, 2**61], "places are not numbered through, which would overflow"
    huge = Graph(
        torch.empty(5, dtype=torch.int64, device="meta"), torch.empty(2**31, dtype=torch.int64, device="meta")
    )
    with pytest.raises(DataError, match="2147483648 entries are beyond int32"):
        huge.to(index=torch.int32)
    with pytest.raises(DataError, match="2147483648 entries do not fit int32 offsets"):
        row_pointer(torch.tensor([2**30, 2**30]), torch.int32)
    assert row_pointer(torch.tensor([2**30, 2**30]), torch.int64)[-1] == 2**31


def test_non_contiguous_tensors_are_taken() -> None:
    strided = torch.stack([SOUND[1], SOUND[1]], 1)[:, 0]
    assert torch.equal(Graph(SOUND[0], strided).to_dense(), torch.eye(2, dtype=torch.float64))
    graph = random_graph(5, 5, 12, 3, True, torch.int64)
    x = torch.randn(4, 5).T
    torch.testing.assert_close(spmm(graph, x), spmm(graph, x.contiguous()))


@pytest.mark.parametrize("how", ["mean", "gcn"])
def test_long_rows_of_16_bit_weights_are_normalised_exactly(how: str) -> None:
    """fp16 ends at 65,504, and adding ones in it at 2,048."""
    long = Graph(torch.tensor([0, 70_000]), torch.zeros(70_000, dtype=torch.int64), torch.ones(70_000))
    assert long.value is not None
    half = normalised(long.with_values(long.value.half()), how).value  # type: ignore[arg-type]
    exact = normalised(long, how).value  # type: ignore[arg-type]
    assert half is not None
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), exact, rtol=5e-3, atol=0)


def test_copies_and_pickles_leave_pointers_behind() -> None:
    graph = random_graph(9, 7, 30, 1, True, torch.int32)
    graph.kept("kernel", lambda: ctypes.c_void_p(1))
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert not other.has("kernel")
        assert other.num_cols == 7
        assert torch.equal(other.to_dense(), graph.to_dense())


def test_a_matrix_is_kept_while_its_edges_live() -> None:
    edges = torch.randint(0, 20, (2, 50))
    graph = matrix_of(edges, 20, "mean")
    assert matrix_of(edges, 20, "mean") is graph
    edges[0, 0] = (edges[0, 0] + 1) % 20
    again = matrix_of(edges, 20, "mean")
    assert again is not graph
    held = weakref.ref(again)
    del graph, again
    assert held() is not None
    del edges
    assert held() is None, "freed with the edges, not when others come"


def test_matrices_are_found_by_many_threads() -> None:
    """More than are kept, so that each thread drops what others have just found."""
    edges = [torch.randint(0, 20, (2, 50)) for _ in range(3 * KEPT)]
    expected = [matrix_of(e, 20).to_dense() for e in edges]

    def all_of_them(start: int) -> bool:
        order = [(start + i) % len(edges) for i in range(len(edges))]
        return all(torch.equal(matrix_of(edges[i], 20).to_dense(), expected[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(all_of_them, range(0, 64, 8)))
