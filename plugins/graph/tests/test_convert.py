"""Every accepted container gives the same matrix."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest
import torch

from planish.errors import DataError, MissingRequirement
from planish_graph import _dgl_compat
from planish_graph.convert import as_graph

# Destination, source, weight; (0, 2) stands twice.
ENTRIES = [(0, 2, 1.0), (0, 2, 2.0), (1, 0, 3.0), (3, 1, 4.0)]
EDGES = torch.tensor([[source for _, source, _ in ENTRIES], [row for row, _, _ in ENTRIES]])
WEIGHT = torch.tensor([w for _, _, w in ENTRIES])
DENSE = torch.zeros(4, 4, dtype=torch.float64).index_put_(
    (EDGES[1], EDGES[0]), WEIGHT.double(), accumulate=True
)


def test_torch_layouts() -> None:
    coo = torch.sparse_coo_tensor(EDGES.flip(0), WEIGHT, (4, 4), check_invariants=True)
    for matrix in (coo, coo.coalesce(), coo.to_sparse_csr(), coo.to_sparse_csc()):
        torch.testing.assert_close(as_graph(matrix).to_dense(), DENSE)
    assert as_graph(coo).num_edges == 4, "duplicates of an uncoalesced tensor stay"


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_edge_index(index: torch.dtype) -> None:
    graph = as_graph(EDGES.to(index), size=4, weight=WEIGHT)
    torch.testing.assert_close(graph.to_dense(), DENSE)
    assert graph.indptr.dtype == index
    assert as_graph(EDGES, size=np.int64(4)).num_rows == 4  # type: ignore[arg-type]
    assert as_graph(EDGES).num_rows == 4, "the largest index decides where no size is given"
    rectangular = as_graph(EDGES, size=(4, 9))
    assert rectangular.to_dense().shape == (4, 9)
    weight = WEIGHT.clone().requires_grad_()
    as_graph(EDGES, weight=weight).row_sum()[0].backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1, 0, 0], "gradients reach the weights in the user's order"


@pytest.mark.parametrize("form", ["csr", "coo", "csc", "csr_array"])
def test_scipy(form: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    coo = sparse.coo_matrix((WEIGHT.numpy(), (EDGES[1].numpy(), EDGES[0].numpy())), shape=(4, 4))
    matrix = sparse.csr_array(coo) if form == "csr_array" else coo.asformat(form)
    torch.testing.assert_close(as_graph(matrix).to_dense(), DENSE)
    assert as_graph(coo).num_edges == 4
    assert as_graph(coo.astype(np.int64).tocsr()).value.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.slow
def test_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")
    from torch_geometric import EdgeIndex
    from torch_geometric.nn import GCNConv, SAGEConv

    from planish_graph.normalise import normalised
    from planish_graph.spmm import spmm

    full = data.Data(edge_index=EDGES, edge_weight=WEIGHT, num_nodes=4)
    torch.testing.assert_close(as_graph(full).to_dense(), DENSE)
    own = data.Data(edge_index=EdgeIndex(EDGES, sparse_size=(4, 4)), num_nodes=4)
    torch.testing.assert_close(as_graph(own, weight=WEIGHT).to_dense(), DENSE)
    wide = EdgeIndex(EDGES, sparse_size=(7, 5))
    assert as_graph(wide).to_dense().shape == (5, 7), "sparse_size of PyG is (sources, destinations)"
    adjacency = data.Data(
        adj_t=torch.sparse_coo_tensor(EDGES.flip(0), WEIGHT, (4, 4), check_invariants=True).to_sparse_csr(),
        num_nodes=4,
    )
    torch.testing.assert_close(as_graph(adjacency).to_dense(), DENSE)
    with pytest.raises(DataError, match="HeteroData"):
        as_graph(data.HeteroData())
    with pytest.raises(DataError, match="neither edge_index nor adj_t"):
        as_graph(data.Data(x=torch.ones(3, 2)))

    x = torch.randn(4, 6)
    gcn, sage = GCNConv(6, 6, bias=False), SAGEConv(6, 6, root_weight=False, bias=False)
    ours = spmm(normalised(as_graph(EDGES, size=4, weight=WEIGHT), "gcn", self_loops=True), gcn.lin(x))
    torch.testing.assert_close(ours, gcn(x, EDGES, WEIGHT))
    ours = sage.lin_l(spmm(normalised(as_graph(EDGES, size=4), "mean"), x))
    torch.testing.assert_close(ours, sage(x, EDGES))


@pytest.mark.parametrize(
    ("source", "options", "text"),
    [
        ("nonsense", {}, "str is not accepted; valid: a Graph"),
        (torch.zeros(3, 5, dtype=torch.int64), {}, r"shape \[3, 5\]; valid: \[2, E\]"),
        (torch.zeros(2, 5), {}, "edge_index: float32; valid: int32, int64"),
        (EDGES, {"size": 3}, "destination index 3 at entry 3; valid: 0 to 2"),
        (-EDGES, {"size": 4}, "destination index -1"),
        (EDGES, {"size": 4.5}, r"size = 4.5; valid: a number of nodes, or \(destinations, sources\)"),
        (EDGES, {"size": (4, 4, 4)}, r"size = \(4, 4, 4\); valid"),
        (EDGES, {"weight": [1.0]}, r"edge weights: list; valid: a torch tensor \[4\]"),
        (EDGES, {"weight": torch.ones(3)}, r"values have the shape \[3\]"),
        (EDGES, {"weight": torch.ones(4, device="meta")}, "edge weights: on meta"),
        (torch.zeros(2, 2, 2).to_sparse(), {}, "3 dimensions"),
    ],
)
def test_bad_input_is_one_line(source: Any, options: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        as_graph(source, **options)
    assert "\n" not in str(caught.value)


class FakeGraph:
    """What the conversion asks of a dgl graph."""

    canonical_etypes = (("_N", "_E", "_N"),)
    edata = types.MappingProxyType({"w": WEIGHT})

    def edges(self, order: str) -> tuple[torch.Tensor, torch.Tensor]:
        assert order == "eid"
        return EDGES[0], EDGES[1]

    def num_dst_nodes(self) -> int:
        return 4

    num_src_nodes = num_dst_nodes


def test_dgl_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dgl", types.ModuleType("dgl"))
    monkeypatch.setattr(FakeGraph, "__module__", "dgl.heterograph")
    torch.testing.assert_close(as_graph(FakeGraph()).to_dense(), DENSE)
    monkeypatch.setattr(FakeGraph, "canonical_etypes", (1, 2))
    with pytest.raises(DataError, match="2 edge types"):
        as_graph(FakeGraph())


def fake_dgl(folder: Any, body: str) -> None:
    (folder / "dgl").mkdir()
    (folder / "dgl" / "__init__.py").write_text("from . import graphbolt\n" + body)
    (folder / "dgl" / "graphbolt.py").write_text("raise FileNotFoundError('libgraphbolt_pytorch_9.so')\n")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """A folder in front of the import path, and no dgl loaded before or after."""
    monkeypatch.syspath_prepend(tmp_path)
    before = {name for name in sys.modules if name.partition(".")[0] == "dgl"}
    assert not before, "dgl is loaded already"
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "dgl"]:
        del sys.modules[name]


def test_dgl_with_a_graphbolt_for_another_torch(clean: Any) -> None:
    fake_dgl(clean, "works = True\n")
    assert _dgl_compat.load().works
    assert _dgl_compat.load() is sys.modules["dgl"]


def test_dgl_that_needs_more_is_told(clean: Any) -> None:
    fake_dgl(clean, "import pandas_of_nobody\n")
    with pytest.raises(MissingRequirement, match="pip install pandas_of_nobody"):
        _dgl_compat.load()
    assert "dgl" not in sys.modules
    assert "dgl.graphbolt" not in sys.modules


def test_no_dgl_is_told(clean: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingRequirement, match=r"planish-graph\[dgl\]"):
        _dgl_compat.load()


def test_scipy_matrices_are_copied() -> None:
    """Nobody would see SciPy write to a shared one, and what was derived from it would be out of date."""
    sparse = pytest.importorskip("scipy.sparse")
    matrix = sparse.csr_array(DENSE.numpy())
    graph = as_graph(matrix)
    matrix.data *= 2
    assert torch.equal(graph.to_dense(), DENSE)
    assert as_graph(matrix.astype(np.longdouble)).to_dense().dtype == torch.float64


@pytest.mark.parametrize(
    ("kind", "text"), [("complex", "complex128; valid: real"), ("row", "of 2 dimensions")]
)
def test_scipy_matrices_that_are_none_are_one_line(kind: str, text: str) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    source = sparse.csr_array(DENSE.numpy() * 1j) if kind == "complex" else sparse.coo_array(np.ones(3))
    with pytest.raises(DataError, match=text):
        as_graph(source)


def test_gradients_reach_the_values_of_a_coo_tensor() -> None:
    weight = WEIGHT.clone().requires_grad_()
    matrix = torch.sparse_coo_tensor(EDGES.flip(0), weight, (4, 4), check_invariants=True)
    as_graph(matrix).row_sum()[0].backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 1, 0, 0]


def test_weights_and_sizes_beside_a_matrix_are_not_dropped() -> None:
    matrix = DENSE.to_sparse_csr()
    for source in (matrix, as_graph(matrix)):
        with pytest.raises(DataError, match="weight: given with a matrix"):
            as_graph(source, weight=WEIGHT)
        with pytest.raises(DataError, match="size = 5: the graph is 4 x 4"):
            as_graph(source, size=5)
        assert as_graph(source, size=(4, 4)).num_rows == 4
