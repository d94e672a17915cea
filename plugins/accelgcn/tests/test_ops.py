"""The public operator against dense float64: values, gradients, compiled graphs, bad input; and PyG's layers on it."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.errors import DataError
from planish_accelgcn import benchmark, candidates
from planish_accelgcn.convolutions import accelerate
from planish_accelgcn.ops import spmm
from planish_accelgcn.reference import Fused
from planish_graph import nvrtc
from planish_graph.convert import from_edges
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph


@pytest.fixture
def graph() -> Graph:
    """Rectangular, with empty rows and duplicates."""
    g = torch.Generator().manual_seed(0)
    pair = torch.stack([torch.randint(0, 30, (60,), generator=g), torch.randint(0, 7, (60,), generator=g)])
    return from_edges(pair, (9, 30), torch.rand(60, generator=g) + 0.5)


def dense(
    graph: Graph, x: Tensor, row: Tensor | None, column: Tensor | None, bias: Tensor | None, mean: bool
) -> Tensor:
    y = graph.to_dense() @ (x.double() if column is None else x.double() * column.double()[:, None])
    if mean:
        y = y / graph.degrees.clamp_min(1)[:, None]
    y = y if row is None else y * row.double()[:, None]
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("act", [None, "relu"])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)  # fmt: skip
def test_equals_the_dense_product(
    graph: Graph, dtype: torch.dtype, bound: float, act: Any, mean: bool
) -> None:
    g = torch.Generator().manual_seed(1)
    row, column, bias = (torch.rand(n, generator=g, dtype=torch.float64) for n in (9, 30, 5))
    row = None if mean else row  # type: ignore[assignment]
    x = torch.randn(30, 5, generator=g).to(dtype)
    how = {"row_scale": row, "column_scale": column, "bias": bias}
    y = spmm(graph, x, reduce="mean" if mean else "sum", act=act, **how)  # type: ignore[arg-type]
    expected = dense(graph, x, row, column, bias, mean)
    expected = expected.relu() if act else expected
    assert y.dtype == dtype
    assert float((y.double() - expected).norm() / expected.norm()) <= bound
    assert torch.equal(spmm(graph, x, deterministic=True), spmm(graph, x, deterministic=True))


@pytest.mark.parametrize("mean", [False, True])
def test_gradients(graph: Graph, mean: bool) -> None:
    g = torch.Generator().manual_seed(2)
    row, column = torch.rand(9, generator=g, dtype=torch.float64), torch.rand(30, dtype=torch.float64)
    leaves = [torch.randn(*s, generator=g, dtype=torch.float64) for s in ((60,), (30, 4), (4,))]

    def product(value: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        how = {"reduce": "mean"} if mean else {"row_scale": row}
        return spmm(graph.with_values(value), x, column_scale=column, bias=bias, act="relu", **how)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(product, [leaf.requires_grad_() for leaf in leaves])


def test_what_the_activation_cut_off_gets_no_gradient_of_any_size(graph: Graph) -> None:
    x = torch.full((30, 2), -1.0).requires_grad_()
    y = spmm(graph, x, act="relu")
    assert not y.any()
    (found,) = torch.autograd.grad(y, x, torch.full_like(y, float("inf")))
    assert torch.equal(found, torch.zeros_like(x))


def test_operator_is_registered_as_torch_expects(graph: Graph) -> None:
    x, bias = torch.randn(30, 4, requires_grad=True), torch.randn(4, requires_grad=True)
    arguments = (*graph.plan(), torch.rand(9), torch.rand(30), bias, x, False, True, False)
    torch.library.opcheck(torch.ops.planish_accelgcn.spmm.default, arguments)


def test_compiled_whole_and_under_autocast(graph: Graph) -> None:
    graph.plan()
    x = torch.randn(30, 4, requires_grad=True)
    layer = lambda x: spmm(graph, x, reduce="mean", act="relu") * 2  # noqa: E731
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    compiled(x).sum().backward()
    assert x.grad is not None
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x": torch.ones(29, 3)}, "29 rows; valid: 30"),
        ({"reduce": "max"}, "reduce = 'max'; valid: sum, mean"),
        ({"act": "gelu"}, "act = 'gelu'; valid: None, relu"),
        ({"bias": [1.0]}, r"bias: list; valid: a torch tensor \[3\]"),
        ({"graph": torch.eye(30)}, "graph: Tensor; valid: a Graph"),
        ({"bias": torch.ones(4)}, r"bias: shape \[4\]; valid: \[3\]"),
        ({"row_scale": torch.ones(30)}, r"row_scale: shape \[30\]; valid: \[9\]"),
        ({"column_scale": torch.ones(30, device="meta")}, "column_scale: on meta, the features are on cpu"),
        ({"column_scale": torch.ones(30, dtype=torch.int64)}, "column_scale: int64; valid: a floating"),
        ({"row_scale": torch.ones(9), "reduce": "mean"}, "scales rows itself"),
        ({"row_scale": torch.ones(9, requires_grad=True)}, "row_scale: requires a gradient"),
    ],
)
def test_bad_input_is_one_line(graph: Graph, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        spmm(**{"graph": graph, "x": torch.ones(30, 3), **arguments})


def test_layers_of_pyg_keep_their_outputs_and_gradients() -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="needs PyG")
    torch.manual_seed(0)
    edges = torch.cat([torch.randint(0, 30, (2, 150)), torch.tensor([[3, 3], [3, 4]])], 1)
    x, weight = torch.randn(30, 8), torch.rand(152) + 0.1
    cases: list[tuple[nn.Module, tuple[Any, ...], int]] = [
        (pyg.GCNConv(8, 5), (x, edges), 1),
        (pyg.GCNConv(8, 5, improved=True), (x, edges, weight), 1),
        (pyg.GCNConv(8, 5, normalize=False), (x, edges, weight), 1),
        (pyg.GCNConv(8, 5, add_self_loops=False), (x, edges), 1),
        (pyg.SAGEConv(8, 5), (x, edges), 1),
        (pyg.SAGEConv(8, 5, aggr="sum", normalize=True), (x, edges), 1),
        (pyg.SAGEConv(8, 5), ((x, x[:10]), edges % 10), 1),
        (pyg.SAGEConv(8, 5, aggr="max"), (x, edges), 0),
        (pyg.GINConv(nn.Linear(8, 5), train_eps=True), (x, edges), 1),
        (pyg.GCN(8, 16, 3, 5), (x, edges), 3),
    ]
    for net, arguments, layers in cases:
        other = copy.deepcopy(net)
        assert accelerate(other) == layers
        assert accelerate(other) == 0, "nothing is exchanged twice"
        assert list(other.state_dict()) == list(net.state_dict())
        torch.testing.assert_close(other.eval()(*arguments), net.eval()(*arguments), rtol=1e-5, atol=1e-5)
        for module in (net, other):
            module(*arguments).sum().backward()
        for a, b in zip(other.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)


def test_scales_are_those_of_a_layer() -> None:
    """Two vectors of degrees give what a value for every edge gives."""
    graph = from_degrees(torch.randint(0, 9, (40,), generator=torch.Generator().manual_seed(0)))
    scale = graph.degrees.clamp_min(1).float().rsqrt()
    x = torch.randn(40, 6)
    value = scale[graph.rows.long()] * scale[graph.indices.long()]
    torch.testing.assert_close(
        spmm(graph, x, row_scale=scale, column_scale=scale),
        spmm(graph.with_values(value), x),
        rtol=1e-5,
        atol=1e-5,
    )


def test_benchmark_yields_what_it_measured() -> None:
    rows = list(benchmark.rows(quick=True))
    assert rows
    assert all(row.value > 0 and row.peer_value > 0 for row in rows)


def test_layers_of_pyg_that_are_explained_or_given_several_graphs_run_as_before() -> None:
    pyg = pytest.importorskip("torch_geometric.nn", reason="needs PyG")
    from torch_geometric.explain.algorithm.utils import set_masks

    edges, mask = torch.randint(0, 30, (2, 150)), torch.randn(150, requires_grad=True)
    plain = pyg.GCN(8, 16, 2, 5)
    net = copy.deepcopy(plain)
    accelerate(net)
    x = torch.randn(3, 30, 8)
    torch.testing.assert_close(net(x, edges), plain(x, edges))
    kept = pickle.loads(pickle.dumps(net))
    assert type(kept.convs[0]) is type(net.convs[0])
    torch.testing.assert_close(kept(x[0], edges), net(x[0], edges))
    found = []
    for each in (net, plain):
        set_masks(each, nn.Parameter(mask.detach()), edges)
        found += torch.autograd.grad(each(x[0], edges).sum(), each.convs[0]._edge_mask)
    torch.testing.assert_close(*found)


def test_devices_that_the_kernels_are_not_written_for_run_others(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without compute capability 8.0; results that must repeat come from the embedding bag then."""
    monkeypatch.setattr(nvrtc, "available", lambda: True)
    for number, capability in enumerate([(7, 5), (8, 0)]):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, c=capability: c)
        device = torch.device("cuda", 90 + number)
        x = SimpleNamespace(
            is_cuda=True, dtype=torch.float32, shape=(30, 4), device=device, is_contiguous=lambda: True
        )
        assert candidates.usable(graph, x) == (capability >= (8, 0))  # type: ignore[arg-type]
    features = torch.randn(30, 4)
    monkeypatch.setattr(candidates, "_product", None)  # the fastest, which nobody knows to repeat
    y = candidates.fixed(graph, features, Fused())()
    torch.testing.assert_close(y.double(), graph.to_dense() @ features.double(), rtol=1e-5, atol=1e-5)
