"""Products against a float64 dense reference, gradients, compilation, and the dispatcher."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from planish.errors import DataError, PlanishError
from planish_graph.convert import from_edges
from planish_graph.dispatch import SPMM, Candidate, Dispatcher, Program
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph, found
from planish_graph.reference import csr_product, gathered_product
from planish_graph.spmm import spmm

STORAGE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}


def awkward(kind: str, index: torch.dtype = torch.int64) -> Graph:
    """Graphs on which kernels lose rows."""
    g = torch.Generator().manual_seed(0)
    if kind == "gigantic row":
        degrees = torch.ones(50, dtype=torch.int64)
        degrees[17], degrees[49] = 3000, 0
        graph = from_degrees(degrees)
        graph = graph.with_values(torch.rand(graph.num_edges, generator=g) + 0.5)
        return graph.to(index=index)
    sizes = {
        "rectangular": ((7, 30), 60),
        "one node": ((1, 1), 3),
        "no entries": ((5, 4), 0),
        "nothing": ((0, 3), 0),
    }
    size, edges = sizes[kind]
    pair = torch.stack([torch.randint(0, max(n, 1), (edges,), generator=g) for n in (size[1], size[0])])
    return from_edges(pair.to(index), size, torch.randn(edges, generator=g))


KINDS = ["gigantic row", "rectangular", "one node", "no entries", "nothing"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", STORAGE)
def test_equals_the_dense_product(kind: str, index: torch.dtype, dtype: torch.dtype) -> None:
    graph = awkward(kind, index)
    for width in (1, 7, 33):
        x = torch.randn(graph.num_cols, width, generator=torch.Generator().manual_seed(1)).to(dtype)
        expected = graph.to_dense() @ x.double()
        for result in (spmm(graph, x), gathered_product(graph.indptr, graph.indices, graph.value, x)):
            assert result.dtype == dtype
            error = (result.double() - expected).norm() / expected.norm().clamp_min(1e-30)
            assert error <= STORAGE[dtype]
        empty = graph.degrees == 0
        assert (spmm(graph, x)[empty] == 0).all()


def test_gradients_of_features_and_values() -> None:
    graph = awkward("rectangular")
    assert graph.value is not None
    value = graph.value.double().requires_grad_()
    x = torch.randn(30, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v, x: spmm(graph.with_values(v), x), (value, x))
    plain = graph.with_values(None)
    assert torch.autograd.gradcheck(lambda x: spmm(plain, x), (x,))


def test_second_backward_is_refused() -> None:
    graph = awkward("one node")
    x = torch.randn(1, 2, requires_grad=True)
    (first,) = torch.autograd.grad(spmm(graph, x).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first.sum().backward()


def test_operator_is_registered_as_torch_expects() -> None:
    graph = awkward("rectangular")
    x = torch.randn(30, 4, requires_grad=True)
    torch.library.opcheck(torch.ops.planish_graph.spmm.default, (*graph.plan(), x))


def test_compiled_whole_and_under_autocast() -> None:
    graph = awkward("rectangular")
    graph.plan()
    x = torch.randn(30, 4, requires_grad=True)
    compiled = torch.compile(lambda x: spmm(graph, x).relu(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), spmm(graph, x).relu())
    compiled(x).sum().backward()
    assert x.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        half = spmm(graph, x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), spmm(graph, x), rtol=2e-2, atol=5e-2)
    half.float().sum().backward()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (torch.ones(29, 3), "29 rows; valid: 30"),
        (torch.ones(30), r"shape \[30\]; valid: two dimensions"),
        (torch.ones(30, 3, dtype=torch.int64), "int64; valid: float16"),
        (torch.ones(30, 3, device="meta"), "on meta, the graph is on cpu"),
        (torch.ones(30, 3).to_sparse(), r"sparse_coo; valid: a dense tensor \[30, D\]"),
        ([1.0], r"list; valid: a torch tensor \[30, D\]"),
    ],
)
def test_bad_features_are_one_line(x: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        spmm(awkward("rectangular"), x)
    with pytest.raises(DataError, match=r"graph: Tensor; valid: a Graph, which .*as_graph makes of it"):
        spmm(torch.eye(30).to_sparse(), x)  # type: ignore[arg-type]


def test_dispatcher_keeps_the_fastest_correct_candidate_until_the_graph_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = awkward("gigantic row")
    x = torch.randn(50, 8)
    monkeypatch.setattr("planish_graph.dispatch.ALIKE", 0)
    ran: list[str] = []

    def slow(graph: Graph, x: Tensor) -> Tensor:
        ran.append("slow")
        for _ in range(20):
            result = gathered_product(graph.indptr, graph.indices, graph.value, x)
        return result

    def wrong(graph: Graph, x: Tensor) -> Tensor:
        return torch.zeros(50, 8)

    def missing(graph: Graph, x: Tensor) -> Tensor:
        raise NotImplementedError("no such type")  # as torch's libraries do; the dispatcher has to reject it

    quick = Candidate(
        "quick", lambda graph, x: lambda: csr_product(graph.indptr, graph.indices, graph.value, x)
    )
    dispatcher = Dispatcher("test", [Candidate("slow", lambda graph, x: lambda: slow(graph, x)), quick])
    dispatcher.register(Candidate("wrong", lambda graph, x: lambda: wrong(graph, x)))
    dispatcher.register(Candidate("missing", lambda graph, x: lambda: missing(graph, x)))
    dispatcher.register(Candidate("elsewhere", lambda graph, x: None))
    choice = dispatcher.choose(graph, x)
    assert choice.name == "quick"
    assert choice.seconds["quick"] == min(choice.seconds.values())
    assert set(choice.rejected) == {"wrong", "missing", "elsewhere"}
    assert "of the norm" in choice.rejected["wrong"]
    torch.testing.assert_close(dispatcher(graph, x), spmm(graph, x), rtol=1e-5, atol=1e-5)

    times = len(ran)
    assert dispatcher.choose(graph, torch.randn(50, 8)) is choice
    assert len(ran) == times, "nothing is measured twice"
    assert dispatcher.choose(graph, x.double()) is not choice
    graph.indices[0] = 3
    assert dispatcher.choose(graph, x) is not choice
    with pytest.raises(PlanishError, match="registered already"):
        dispatcher.register(quick)


def test_small_graphs_of_like_sizes_share_a_choice() -> None:
    """Mini-batches are new graphs, each of them. A choice that does not apply is made anew."""

    def slow(graph: Graph, x: Tensor) -> Program:
        return lambda: sum(
            gathered_product(graph.indptr, graph.indices, graph.value, x) / 20 for _ in range(20)
        )  # type: ignore[return-value]

    def quick(graph: Graph, x: Tensor) -> Program | None:
        product = lambda: csr_product(graph.indptr, graph.indices, graph.value, x)  # noqa: E731
        return product if graph.num_edges == 300 else None

    def graph(edges: int) -> Graph:
        pair = torch.randint(0, 50, (2, edges))
        return from_edges(
            torch.cat([pair, torch.zeros_like(pair[:, :100])], 1), (50, 50), torch.rand(edges + 100)
        )

    dispatcher = Dispatcher("test", [Candidate("slow", slow), Candidate("quick", quick)])
    x = torch.randn(50, 8)
    choice = dispatcher.choose(graph(200), x)
    assert choice.name == "quick"
    assert dispatcher.choose(graph(200), x) is choice
    assert dispatcher.choose(graph(500), x) is not choice, "of another size"
    other = graph(190)
    assert dispatcher.choose(other, x).rejected == {"quick": "does not apply"}
    torch.testing.assert_close(dispatcher(other, x), spmm(other, x))


def test_what_candidates_kept_is_freed_unless_they_are_chosen() -> None:
    graph, x = awkward("rectangular"), torch.randn(30, 4)

    def keeping(name: str, times: int) -> Candidate:
        def prepare(graph: Graph, x: Tensor) -> Program:
            value = graph.kept((name, "copy"), lambda: graph.value.repeat(times))  # type: ignore[union-attr]
            parts = value.view(times, -1)
            return lambda: sum(csr_product(graph.indptr, graph.indices, part, x) for part in parts) / times  # type: ignore[return-value, no-any-return]

        return Candidate(name, prepare, keeps=(name,))

    dispatcher = Dispatcher("test", [keeping("slow", 50), keeping("quick", 1)])
    assert dispatcher.choose(graph, x).name == "quick"
    assert graph.has(("quick", "copy"))
    assert ("slow", "copy") not in graph.keys()  # noqa: SIM118 - not a dictionary's


def test_candidates_are_judged_by_numbers_that_tell_them_apart() -> None:
    """The first features may be all zeros, which every kernel gets right, or not finite, which none is to be blamed for."""
    graph = awkward("rectangular")
    plain = SPMM.candidates[0]
    for x in (torch.zeros(30, 4), torch.full((30, 4), float("nan"))):
        nothing = Candidate("nothing", lambda graph, x: lambda: torch.zeros(7, 4))
        choice = Dispatcher("test", [plain, nothing]).choose(graph, x)
        assert choice.name == plain.name
        assert "of the norm" in choice.rejected["nothing"]
    assert graph.value is not None
    broken = graph.with_values(graph.value.masked_fill(torch.arange(60) == 3, float("nan")))
    assert len(SPMM.choose(broken, torch.randn(30, 4)).seconds) > 1


def test_dispatcher_measures_nothing_where_results_must_repeat() -> None:
    graph = awkward("rectangular")
    torch.use_deterministic_algorithms(True)
    try:
        choice = SPMM.choose(graph, torch.randn(30, 4))
    finally:
        torch.use_deterministic_algorithms(False)
    assert choice.name == "torch embedding bag"
    assert not choice.seconds
    for kind in KINDS:
        other = awkward(kind)
        x = torch.randn(other.num_cols, 5)
        torch.testing.assert_close(SPMM(other, x), spmm(other, x))


def test_candidates_of_other_distributions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken one is named and does no harm."""

    def broken() -> None:
        raise RuntimeError("no such library")

    points = [
        SimpleNamespace(value="one:two", load=lambda: lambda: [Candidate("found", lambda graph, x: None)]),
        SimpleNamespace(value="three:four", load=broken),
    ]
    monkeypatch.setattr("planish_graph.dispatch.entry_points", lambda group: points)
    dispatcher = Dispatcher("test", SPMM.candidates[:1], group="anything")
    with pytest.warns(UserWarning, match="three:four gives no candidates: no such library"):
        dispatcher._discover()
    assert [candidate.name for candidate in dispatcher.candidates] == ["torch CSR", "found"]


def test_choices_differ_by_the_type_of_values() -> None:
    graph = awkward("rectangular")
    assert graph.value is not None
    x = torch.randn(30, 4)
    choice = SPMM.choose(graph, x)
    assert SPMM.choose(graph.with_values(graph.value + 1), x) is choice
    assert SPMM.choose(graph.with_values(graph.value.double()), x) is not choice
    assert SPMM.choose(graph.with_values(None), x) is not choice


def test_operators_find_their_graph_while_it_lives() -> None:
    graph = awkward("rectangular")
    plan = graph.plan()
    same = found(plan.indptr, plan.indices, plan.value, 30)
    assert same is not None
    assert same.degrees is graph.degrees, "what was derived is shared"
    assert found(plan.t_indptr, plan.t_indices, None, 7) is not None
    assert found(plan.indptr, plan.indices, plan.value, 31) is None
    graph.indices = graph.indices.clone()
    graph.plan()
    assert found(plan.indptr, plan.indices, plan.value, 30) is None, "the tensors were exchanged"
    plan = graph.plan()
    assert found(plan.indptr, plan.indices, plan.value, 30) is not None
    del graph, same
    assert found(plan.indptr, plan.indices, plan.value, 30) is None


def test_operators_find_a_graph_whose_tensors_another_one_had_too() -> None:
    first = awkward("rectangular")
    second = Graph(first.indptr, first.indices, num_cols=30)
    first.plan()
    del first
    plan = second.plan()
    assert found(plan.indptr, plan.indices, None, 30) is not None


def test_without_gradients_nothing_is_transposed() -> None:
    graph = awkward("rectangular")
    x = torch.randn(30, 4)
    with torch.no_grad():
        plain = spmm(graph, x)
    assert not graph.has("transposed")
    assert torch.equal(plain, spmm(graph, x.requires_grad_()))
    assert graph.has("transposed")


def test_traces_hold_the_operator() -> None:
    graph = awkward("rectangular").with_values(None)
    traced = make_fx(lambda x: spmm(graph, x))(torch.randn(30, 4))
    assert "planish_graph.spmm" in traced.code


def test_new_values_in_the_place_of_freed_ones_are_seen() -> None:
    """Values that are computed at every step are often put where the last ones lay."""
    graph = from_degrees(torch.full((300,), 20))
    x = torch.ones(300, 4, requires_grad=True)
    (ones,) = torch.autograd.grad(spmm(graph, x).sum(), x)
    for factor in range(1, 20):
        values = torch.full((graph.num_edges,), float(factor))
        (of_x,) = torch.autograd.grad(spmm(graph.with_values(values), x).sum(), x)
        del values
        torch.testing.assert_close(of_x, factor * ones)


def test_forward_mode_derivatives_are_refused() -> None:
    """torch takes those of an operator as zero, without a word."""
    graph = awkward("rectangular")
    with pytest.raises(DataError, match=r"forward-mode derivatives \(jvp\)"):
        torch.func.jvp(lambda x: spmm(graph, x), (torch.randn(30, 2),), (torch.ones(30, 2),))
