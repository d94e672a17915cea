"""Aggregation of compressed rows against the dense float64 product, on graphs where kernels lose rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from planish.errors import DataError
from planish_graph.convert import from_edges
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph
from planish_maxk.cbsr import CBSR, _prepare, aggregate, choose, maxk
from planish_maxk.ways import WAYS

STORAGE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
PLAIN = ["dense", "entries"]
KINDS = ["gigantic row", "rectangular", "one node", "no entries"]


def awkward(kind: str, index: torch.dtype = torch.int64, dtype: torch.dtype = torch.float32) -> Graph:
    g = torch.Generator().manual_seed(0)
    if kind == "gigantic row":
        degrees = torch.ones(40, dtype=torch.int64)
        degrees[3], degrees[38], degrees[39] = 700, 0, 33
        graph = from_degrees(degrees)
        return graph.with_values(torch.rand(graph.num_edges, generator=g).to(dtype)).to(index=index)
    size, edges = {"rectangular": ((7, 30), 90), "one node": ((1, 1), 3), "no entries": ((5, 4), 0)}[kind]
    pair = torch.stack([torch.randint(0, n, (edges,), generator=g) for n in (size[1], size[0])])
    return from_edges(pair.to(index), size, torch.randn(edges, generator=g).to(dtype))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", PLAIN)
@pytest.mark.parametrize("dtype", STORAGE)
def test_every_row_equals_the_dense_product(kind: str, how: str, dtype: torch.dtype) -> None:
    for index in (torch.int32, torch.int64):
        graph = awkward(kind, index)
        for width, k in ((1, 1), (33, 5), (257, 32), (16, 16)):
            x = torch.randn(graph.num_cols, width, generator=torch.Generator().manual_seed(1)).to(dtype)
            rows = maxk(x, k)
            expected = graph.to_dense() @ rows.to_dense().double()
            got = aggregate(graph, rows, how)
            assert got.dtype == dtype
            scale = expected.norm(dim=1).clamp_min(1e-30)
            assert ((got.double() - expected).norm(dim=1) / scale).max() <= STORAGE[dtype]
            assert (got[graph.degrees == 0] == 0).all()


@pytest.mark.parametrize("how", PLAIN)
@pytest.mark.parametrize("weighted", [True, False])
def test_gradients(how: str, weighted: bool) -> None:
    graph = awkward("rectangular", dtype=torch.float64)
    x = torch.randn(
        30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True
    )
    if weighted:
        assert graph.value is not None
        value = graph.value.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda x, v: aggregate(graph.with_values(v), maxk(x, 3), how), (x, value)
        )
    else:
        bare = graph.with_values(None)
        assert torch.autograd.gradcheck(lambda x: aggregate(bare, maxk(x, 3), how), (x,))


def test_only_kept_values_and_positions_are_saved() -> None:
    graph = awkward("gigantic row")
    x = torch.randn(40, 256, requires_grad=True)
    own = {t.data_ptr() for t in graph.plan() if t is not None}
    saved: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            saved.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        aggregate(graph, maxk(x, 16))
        # Positions are saved by top-k and by the product: neither values nor the full width.
        assert sum(saved) == 40 * 16 * (1 + 1)
        saved.clear()
        assert graph.value is not None
        weighted = graph.with_values(graph.value.clone().requires_grad_())
        own |= {t.data_ptr() for t in weighted.plan() if t is not None}
        aggregate(weighted, maxk(x, 16))
        # Values are for the gradient of the weights.
        assert sum(saved) == 40 * 16 * (1 + 1 + 4)


def test_operator_is_registered_as_torch_expects() -> None:
    graph = awkward("rectangular")
    rows = maxk(torch.randn(30, 6), 2)
    values = rows.values.detach().requires_grad_()
    arguments = (*graph.plan(), *[None] * 6, values, rows.positions, 6, "dense", "dense")
    torch.library.opcheck(torch.ops.planish_maxk.aggregate.default, arguments)


def test_compiled_whole_under_autocast_and_not_twice() -> None:
    graph = awkward("rectangular")
    x = torch.randn(30, 12, requires_grad=True)
    expected = aggregate(graph, maxk(x, 4))
    whole = torch.compile(lambda x: aggregate(graph, maxk(x, 4)).relu(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), expected.relu())
    whole(x).sum().backward()
    assert x.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        half = aggregate(graph, maxk(x, 4))
    assert half.dtype == torch.bfloat16
    half.float().sum().backward()
    (first,) = torch.autograd.grad(aggregate(graph, maxk(x, 4)).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_two_runs_agree_bit_by_bit() -> None:
    graph = awkward("gigantic row")
    rows = maxk(torch.randn(40, 64), 8)
    assert torch.equal(aggregate(graph, rows), aggregate(graph, rows))
    torch.use_deterministic_algorithms(True)
    try:
        assert choose(graph, rows) == ("dense", "dense")
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_kernel_of_another_distribution_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    dense = WAYS["dense"]

    def forward(*arguments: object) -> torch.Tensor:
        ran.append("forward")
        return dense.forward(*arguments)  # type: ignore[arg-type]

    def backward(*arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        ran.append("backward")
        return dense.backward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setitem(WAYS, "fast", type(dense)(forward, backward))
    graph = awkward("rectangular")
    x = torch.randn(30, 6, requires_grad=True)
    assert choose(graph, maxk(x, 2)) == ("fast", "fast")
    aggregate(graph, maxk(x, 2)).sum().backward()
    assert ran == ["forward", "backward"]


def test_strided_rows() -> None:
    graph = awkward("rectangular")
    rows = maxk(torch.randn(30, 12), 4)
    strided = CBSR(rows.values.T.contiguous().T, rows.positions.T.contiguous().T, 12)
    assert not strided.positions.is_contiguous()
    assert torch.equal(aggregate(graph, strided), aggregate(graph, rows))


def test_dense_rows_go_to_the_dense_product() -> None:
    graph = awkward("rectangular")
    x = torch.randn(30, 6)
    torch.testing.assert_close(
        aggregate(graph, x).double(), graph.to_dense() @ x.double(), rtol=1e-5, atol=1e-5
    )


ROWS = maxk(torch.ones(30, 4), 2)


@pytest.mark.parametrize(
    ("rows", "how", "text"),
    [
        (maxk(torch.ones(29, 4), 2), "auto", "29 rows; valid: 30"),
        (ROWS._replace(values=ROWS.values.to("meta")), "auto", "values on meta, the graph is on cpu"),
        (ROWS._replace(positions=ROWS.positions[:, :1]), "auto", "valid: equal shapes"),
        (
            ROWS._replace(positions=ROWS.positions.long()),
            "auto",
            "positions are int64; valid: uint8 at width 4",
        ),
        (ROWS._replace(width=300), "auto", "positions are uint8; valid: uint16 at width 300"),
        (ROWS._replace(width=70_000), "auto", "width = 70000; valid: a whole number from 1 to 65536"),
        (ROWS._replace(width=1), "auto", r"values of shape \[30, 2\]; valid: \[30, k\], k from 1 to 1"),
        (ROWS._replace(values=ROWS.values[:, 0]), "auto", r"values of shape \[30\]"),
        (ROWS._replace(values=ROWS.values.long()), "auto", "values are int64; valid: float16"),
        (
            ROWS._replace(positions=ROWS.positions + 9),
            "dense",
            "positions run to 10; valid: 0 to 3 at width 4",
        ),
        (ROWS._replace(positions=ROWS.positions + 9), "entries", "positions run to 10"),
        ((ROWS.values, ROWS.positions), "auto", "rows of type tuple; valid: CBSR"),
        (ROWS, ["dense"], "how = .* is not one of"),
        (ROWS, "cuda", "how = 'cuda' needs a CUDA device of compute capability 8.0, NVRTC"),
        (
            ROWS,
            "fastest",
            "how = 'fastest' is not one of auto, dense, cuda, cuda-sorted, cuda-tiles, cuda-gather, triton, entries",
        ),
    ],
)
def test_bad_input_is_one_line(rows: Any, how: Any, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        aggregate(awkward("rectangular"), rows, how)
    assert "\n" not in str(caught.value)


def test_what_is_no_graph_is_told() -> None:
    with pytest.raises(DataError, match="graph: Tensor; valid: a Graph, which"):
        aggregate(torch.tensor([[0], [1]]), ROWS)  # type: ignore[arg-type]


def test_nothing_is_prepared_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    rows: Any = CBSR(SimpleNamespace(is_cuda=True), ROWS.positions, 4)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="which a CUDA graph cannot capture; valid: one call"):
        _prepare(awkward("rectangular"), rows, "auto")
