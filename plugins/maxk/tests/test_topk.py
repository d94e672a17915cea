"""Exact top-k of every row: values, positions, order, ties, NaN, gradients."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import DataError
from planish_graph.convert import from_edges
from planish_maxk.cbsr import CBSR, aggregate, drop, maxk

WIDTHS = [1, 31, 32, 33, 129, 200, 255, 256, 257, 384, 1024]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def plain(row: list[float], k: int) -> list[int]:
    """Positions that are kept, by comparing numbers two at a time."""

    def before(i: int, j: int) -> int:
        a, b = row[i], row[j]
        larger = (math.isnan(a) - math.isnan(b)) or (a > b) - (a < b)
        return -larger or (i > j) - (i < j)

    return sorted(sorted(range(len(row)), key=functools.cmp_to_key(before))[:k])


NUMBERS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, -math.nan]),
    st.floats(-4, 4, width=16),
)


@given(
    st.integers(1, 24).flatmap(
        lambda d: st.tuples(
            st.lists(st.lists(NUMBERS, min_size=d, max_size=d), min_size=1, max_size=4), st.integers(1, d)
        )
    )
)
@settings(max_examples=100, deadline=None)
def test_any_row_agrees_with_comparing_numbers(drawn: tuple[list[list[float]], int]) -> None:
    rows, k = drawn
    kept = maxk(torch.tensor(rows), k)
    assert kept.positions.tolist() == [plain(row, k) for row in rows]
    torch.testing.assert_close(
        kept.values, torch.tensor(rows).gather(1, kept.positions.long()), equal_nan=True
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_agrees_with_the_dense_mask_in_value_and_gradient(width: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(width)
    for k in {1, 2, width // 3, width - 1, width} & set(range(1, width + 1)):
        # Whole numbers in a small range: many ties.
        x = torch.randint(-3, 4, (7, width), generator=generator).to(dtype)
        x = (x + (torch.randn(7, width, generator=generator) * (k % 2)).to(dtype)).requires_grad_()
        kept = maxk(x, k)
        assert kept.positions.dtype == (torch.uint8 if width <= 256 else torch.uint16)
        assert (kept.positions.long().diff(dim=1) > 0).all(), "positions rise, so they are distinct"
        order = torch.sort(x, dim=1, descending=True, stable=True).indices[:, :k]
        mask = torch.zeros_like(x).scatter(1, order, 1)
        assert torch.equal(kept.to_dense(), x * mask)
        grad = torch.randn(7, width, generator=generator).to(dtype)
        kept.to_dense().backward(grad)
        assert x.grad is not None
        assert torch.equal(x.grad, grad * mask)
        if k == width:
            assert torch.equal(kept.to_dense(), x)


def test_width_of_two_bytes() -> None:
    x = torch.randn(2, 65_536, generator=torch.Generator().manual_seed(0))
    kept = maxk(x, 5)
    assert torch.equal(kept.positions.long().sort(1).values, x.topk(5).indices.sort(1).values)


def test_kept_values_keep_their_sign_and_rows_may_be_strided() -> None:
    x = -torch.arange(1.0, 13).view(3, 4)
    assert maxk(x, 2).values.tolist() == [[-1, -2], [-5, -6], [-9, -10]]
    assert maxk(x.T, 2).positions.tolist() == [[0, 1]] * 4
    assert maxk(torch.empty(0, 4), 2).values.shape == (0, 2)


def test_dropout_thins_what_is_kept_and_nothing_in_evaluation() -> None:
    kept = maxk(torch.rand(200, 64) + 1, 16)
    torch.manual_seed(0)
    thinned = drop(kept, 0.25)
    assert thinned.positions is kept.positions
    alive = thinned.values != 0
    torch.testing.assert_close(thinned.values[alive], kept.values[alive] / 0.75)
    assert abs(alive.float().mean() - 0.75) < 0.03
    assert drop(kept, 0.25, training=False).values is kept.values


def test_size_in_bytes() -> None:
    x = torch.rand(100, 256)
    assert maxk(x, 16).nbytes == 100 * 16 * 5
    assert maxk(x.bfloat16(), 16).nbytes == 100 * 16 * 3
    assert maxk(torch.rand(100, 257), 16).nbytes == 100 * 16 * 6


def test_operators_are_registered_as_torch_expects() -> None:
    x = torch.randn(5, 9, requires_grad=True)
    torch.library.opcheck(torch.ops.planish_maxk.top_k.default, (x, 3))
    values, index = torch.ops.planish_maxk.top_k(x.detach(), 3)
    torch.library.opcheck(torch.ops.planish_maxk.expand.default, (values, index, 9))
    torch.library.opcheck(torch.ops.planish_maxk.to_dense.default, (values.requires_grad_(), index, 9))
    torch.library.opcheck(torch.ops.planish_maxk.pick.default, (x.detach(), index))


def test_second_backward_is_refused() -> None:
    x = torch.randn(3, 6, requires_grad=True)
    (first,) = torch.autograd.grad(maxk(x, 2).values.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_compiled_and_under_autocast() -> None:
    x = torch.randn(6, 12, requires_grad=True)
    whole = torch.compile(lambda x: maxk(x, 4).to_dense() * 2, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), maxk(x, 4).to_dense() * 2)
    whole(x).sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).sum() == 24
    with torch.autocast("cpu", torch.bfloat16):
        assert maxk(x, 4).values.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("x", "k", "text"),
    [
        (torch.ones(2, 4), 5, "k = 5; valid: a whole number from 1 to 4, the width"),
        (torch.ones(2, 4), 0, "k = 0"),
        (torch.ones(2, 4), 2.0, r"k = 2\.0"),
        (torch.ones(2, 4), True, "k = True"),
        (torch.ones(4), 1, r"shape \[4\]; valid: two dimensions"),
        (torch.ones(2, 4, dtype=torch.int32), 1, "int32; valid: float16"),
        (torch.empty(1, 65_537), 1, "width 65537; valid: at most 65536"),
        (torch.empty(1, 0), 1, "width 0; valid: at least 1 column"),
        ([[1.0, 2.0]], 1, "features of type list; valid: a torch tensor"),
        (torch.eye(2).to_sparse(), 1, "features are sparse_coo; valid: a dense tensor"),
    ],
)
def test_bad_input_is_one_line(x: Any, k: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        maxk(x, k)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["top-k", "dense", "product"])
def test_forward_mode_is_refused(how: str) -> None:
    """Torch would give a tangent of zero, without a word."""
    x, tangent = torch.randn(2, 4), torch.ones(2, 4)
    rows, graph = maxk(x, 2), from_edges(torch.tensor([[0, 1], [1, 0]]))
    of_values = {
        "top-k": lambda x: maxk(x, 2).values,
        "dense": lambda x: CBSR(x[:, :2], rows.positions, 4).to_dense(),
        "product": lambda x: aggregate(graph, CBSR(x[:, :2], rows.positions, 4)),
    }
    with pytest.raises(DataError, match=r"forward-mode derivatives \(jvp\)"):
        torch.func.jvp(of_values[how], (x,), (tangent,))


def test_whole_numbers_of_other_kinds_are_taken() -> None:
    x = torch.randn(2, 4)
    for k in (np.int64(2), torch.tensor(2)):
        assert torch.equal(maxk(x, k).values, maxk(x, 2).values)  # type: ignore[arg-type]


@pytest.mark.parametrize("p", [2, -0.1, None, math.nan])
def test_dropout_takes_probabilities_of_compressed_rows(p: Any) -> None:
    with pytest.raises(DataError, match="drop: p = "):
        drop(maxk(torch.ones(1, 2), 1), p)
    with pytest.raises(DataError, match="drop: rows of type Tensor; valid: CBSR"):
        drop(torch.ones(1, 2), 0.5)  # type: ignore[arg-type]


def test_rows_are_a_plain_tuple() -> None:
    values, index, width = CBSR(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.uint8), 3)
    assert CBSR(values, index, width).to_dense().tolist() == [[1, 0, 0]]
