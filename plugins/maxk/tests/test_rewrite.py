"""Networks written in plain torch and with PyG: what is found, what is replaced, and that nothing else changes."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish.errors import DataError, PlanishError
from planish_graph.generate import planted_communities
from planish_maxk.cbsr import maxk
from planish_maxk.nets import GraphNet
from planish_maxk.rewrite import Rewritten, disagreement, rewrite
from planish_maxk.training import saved_bytes

DATA = planted_communities(80, 4, features=12)
EDGES = torch.stack([DATA.graph.indices, DATA.graph.rows])
SPARSE = torch.sparse_coo_tensor(
    EDGES.flip(0), torch.rand(EDGES.shape[1]), (80, 80), check_invariants=True
).coalesce()
BY_EDGES = {"x": DATA.x, "edge_index": EDGES}
BY_MATRIX = {"x": DATA.x, "adj": SPARSE}


class Convolution(nn.Module):
    """A (x W) + b, as the first public GCN wrote it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return torch.spmm(adj, torch.mm(x, self.weight)) + self.bias


class FunctionalGCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Convolution(12, 16), Convolution(16, 4)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.first(x, adj)), 0.5, training=self.training)
        return F.log_softmax(self.second(x, adj), dim=1)


class PlainSAGE(nn.Module):
    """The activation goes to the aggregation and to the root weight."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.drop = nn.Linear(12, 16), nn.Dropout(0.5)
        self.neighbours, self.root = nn.Linear(16, 4), nn.Linear(16, 4, bias=False)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        h = self.drop(torch.relu(self.input(x)))
        return self.neighbours(torch.sparse.mm(adj, h)) + self.root(h)


class PlainGIN(nn.Module):
    """A buffer as adjacency, a residual, and two aggregations."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adj", SPARSE)
        self.input, self.middle, self.output = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.input(x))
        h = self.activation(self.middle(self.adj @ h + 1.5 * h))
        return self.output(torch.matmul(self.adj, h) + h)


class LinearBetween(nn.Module):
    """A linear layer with a bias between ReLU and product: A (x W + 1 b) = (A x) W + (A 1) b."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.output = nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return torch.sparse.mm(adj, self.output(self.input(x).relu()))


PLAIN: list[tuple[type[nn.Module], dict[str, Any], int]] = [
    (FunctionalGCN, BY_MATRIX, 1),
    (PlainSAGE, BY_MATRIX, 1),
    (PlainGIN, {"x": DATA.x}, 2),
    (LinearBetween, BY_MATRIX, 1),
]


def with_mask_for_relu(
    net: nn.Module, k: int, batch: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """What the untouched network computes when every relu in torch is the dense top-k mask."""
    mask = lambda x, *rest, **options: maxk(x, k).to_dense()  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(F, "relu", mask)
        patch.setattr(torch, "relu", mask)
        patch.setattr(Tensor, "relu", mask)
        return net(**batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "batch", "places"), PLAIN, ids=[kind.__name__ for kind, _, _ in PLAIN])
def test_plain_networks(
    kind: type[nn.Module], batch: dict[str, Any], places: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    net = kind().eval()
    made = rewrite(net, 4, batch)
    assert len(made.places) == places
    assert disagreement(made, batch) < 1e-5
    expected = with_mask_for_relu(net, 4, batch, monkeypatch)
    torch.testing.assert_close(made(**batch), expected, rtol=1e-4, atol=1e-5)
    parameters = list(net.parameters())
    both = [torch.autograd.grad(y.pow(2).sum(), parameters) for y in (made(**batch), expected)]
    for ours, wanted in zip(*both, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("kind", "batch", "places"), PLAIN, ids=[kind.__name__ for kind, _, _ in PLAIN])
@pytest.mark.parametrize("what", ["layers", "half", "everything"])
def test_what_is_recomputed_is_the_same(
    what: Any, kind: type[nn.Module], batch: dict[str, Any], places: int
) -> None:
    torch.manual_seed(0)
    net = kind()
    results, kept = [], []
    for recompute in ("nothing", what):
        made = rewrite(net, 4, batch, recompute).train()
        assert len(made.places) == places
        torch.manual_seed(1)
        y = made(**batch)
        results.append([y, *torch.autograd.grad(y.pow(2).sum(), list(net.parameters()))])
        kept.append(saved_bytes(made, batch))
        assert torch.equal(copy.deepcopy(made).eval()(**batch), rewrite(net.eval(), 4)(**batch))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other), "dropout is drawn the same a second time"
    assert what != "everything" or kept[1] < kept[0], "without normalisation layers alone may save nothing"


@pytest.mark.parametrize("layout", ["csr", "dense"])
def test_other_forms_of_the_adjacency(layout: str) -> None:
    matrix = SPARSE.to_sparse_csr() if layout == "csr" else SPARSE.to_dense()
    net = FunctionalGCN().eval()
    torch.testing.assert_close(
        rewrite(net, 4, BY_MATRIX)(x=DATA.x, adj=matrix), rewrite(net, 4)(**BY_MATRIX), rtol=1e-4, atol=1e-5
    )


def test_bias_behind_a_long_row_of_16_bit_weights() -> None:
    """Added up in bfloat16, 3,000 weights of 1 / 3,000 stay at an eighth of their sum."""
    rows, columns = torch.zeros(3000, dtype=torch.int64), torch.arange(3000)
    weights = torch.full((3000,), 1 / 3000)
    mean = torch.sparse_coo_tensor(torch.stack([rows, columns]), weights, (3000, 3000), check_invariants=True)
    net = LinearBetween().eval()
    torch.nn.init.constant_(net.output.bias, 10.0)
    made = rewrite(net, 4)
    x = torch.randn(3000, 12, generator=torch.Generator().manual_seed(0))
    expected = made(x, mean)[0]
    half = copy.deepcopy(made).bfloat16()(x.bfloat16(), mean.to(torch.bfloat16))[0]
    torch.testing.assert_close(half.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", ["sage", "gcn", "gin"])
def test_the_networks_of_the_paper(kind: Any) -> None:
    torch.manual_seed(0)
    net = GraphNet(12, 4, kind=kind, width=16, blocks=2)
    made = rewrite(net, 4, BY_EDGES)
    assert [m.width for m in made.activations] == [16, 16]
    made.train()(**BY_EDGES).sum().backward()
    assert all(p.grad is not None for name, p in net.named_parameters())


def test_dropout_follows_the_mode() -> None:
    made = rewrite(FunctionalGCN().eval(), 8, BY_MATRIX)
    assert torch.equal(made(**BY_MATRIX), made(**BY_MATRIX))
    made.train()
    assert not torch.equal(made(**BY_MATRIX), made(**BY_MATRIX))
    made.eval()
    assert torch.equal(made(**BY_MATRIX), made(**BY_MATRIX))


def test_copies_and_types_are_followed() -> None:
    net = PlainGIN().eval()
    made = rewrite(net, 4, {"x": DATA.x})
    other = copy.deepcopy(made)
    with torch.no_grad():
        other.net.input.weight.zero_()  # type: ignore[union-attr, operator]
    assert not torch.equal(made(DATA.x), other(DATA.x))
    exact = copy.deepcopy(made).double()(DATA.x.double())
    assert exact.dtype == torch.float64
    torch.testing.assert_close(exact.float(), made(DATA.x), rtol=1e-3, atol=1e-3)
    assert set(made.state_dict()) == {f"net.{name}" for name in net.state_dict()}


def test_weights_are_read_at_every_call() -> None:
    """A parameter outside of layers may be exchanged for good (`assign`) or for one call (`functional_call`)."""
    made = rewrite(GraphNet(12, 4, kind="gin", width=16, blocks=1, dropout=0.0).eval(), 4, BY_EDGES)
    state = {**made.state_dict(), "net.blocks.0.eps": torch.tensor(5.0)}
    before, called = made(**BY_EDGES), torch.func.functional_call(made, state, (), BY_EDGES)
    assert torch.equal(made(**BY_EDGES), before)
    made.load_state_dict(state, assign=True)
    assert torch.equal(made(**BY_EDGES), called)
    assert not torch.equal(called, before)


def test_layers_keep_their_mode_and_rate() -> None:
    net = PlainSAGE().train()
    net.root.eval()
    made = rewrite(net, 16, BY_MATRIX).to(torch.float32)
    assert made.training
    assert net.drop.training
    assert not net.root.training, "frozen layers stay so"
    made.eval()
    expected = made(**BY_MATRIX)
    net.drop.train()
    assert not torch.equal(made(**BY_MATRIX), expected), (
        "dropout is drawn in evaluation where it is asked for"
    )
    net.drop.p = 0.0
    assert torch.equal(made(**BY_MATRIX), expected)


def test_pickled_rewritten_again_and_not_split() -> None:
    made = rewrite(PlainGIN().eval(), 4, {"x": DATA.x}, "layers")
    other = pickle.loads(pickle.dumps(made))
    assert torch.equal(other(DATA.x), made(DATA.x))
    assert (other.k, other.recompute, other.training) == (4, "layers", False)
    again = rewrite(made, 7)
    assert again.net is made.net
    assert (again.k, "k=7 at activation" in repr(again)) == (7, True)
    with pytest.raises(PlanishError, match="cannot be split over devices by DataParallel"):
        made._replicate_for_data_parallel()


class Several(nn.Module):
    """The function that makes the matrix is called in a layer, and several things are given back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = GraphNet(12, 4, width=16, blocks=1)

    def forward(self, x: Tensor, edge_index: Tensor, scale: float | None = None) -> Any:
        out = self.inner(x, edge_index)
        return {"logits": out, "both": (out, 2 * out if scale is None else scale * out)}


def test_inputs_and_outputs_of_other_forms() -> None:
    made = rewrite(Several().eval(), 4, BY_EDGES)
    wanted = made(**BY_EDGES)["logits"]
    assert torch.equal(made(DATA.x, EDGES, None)["logits"], wanted)
    assert torch.equal(made(DATA.x, edge_index=EDGES, scale=None)["logits"], wanted)
    with pytest.raises(PlanishError, match="the rewritten network takes no 'scale'"):
        made(DATA.x, EDGES, 3.0)
    with pytest.raises(TypeError, match="an input too many"):
        made(DATA.x, EDGES, x=DATA.x)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GCN", "GraphSAGE", "GIN"])
def test_models_of_pyg(name: str) -> None:
    models = pytest.importorskip("torch_geometric.nn.models", reason="torch_geometric is not installed")
    torch.manual_seed(0)
    net = getattr(models, name)(12, 16, 3, out_channels=4, dropout=0.5).eval()
    made = rewrite(net, 4, BY_EDGES)
    assert len(made.places) == 2
    assert disagreement(made, BY_EDGES) < 1e-5

    class Mask(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return maxk(x, 4).to_dense()

    reference = copy.deepcopy(net)
    reference.act = Mask()
    torch.testing.assert_close(made(**BY_EDGES), reference(**BY_EDGES), rtol=1e-4, atol=1e-5)
    with pytest.raises(PlanishError, match="takes no 'batch_size'"):
        made(**BY_EDGES, batch_size=3)
    if name == "GCN":
        weight = torch.rand(EDGES.shape[1], requires_grad=True)
        ours, theirs = (m(**BY_EDGES, edge_weight=weight) for m in (made, reference))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        one, other = (torch.autograd.grad(y.pow(2).sum(), weight)[0] for y in (ours, theirs))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_own_network_of_pyg_layers() -> None:
    conv = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = conv.SAGEConv(12, 16)
            self.second = conv.SAGEConv(16, 16, aggr="sum", normalize=True, root_weight=False)
            self.third = conv.GCNConv(16, 4, improved=True)
            self.unknown = conv.SAGEConv(4, 4, aggr="max")

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = F.dropout(self.first(x, edge_index).relu(), training=self.training)
            x = F.relu(self.second(x, edge_index))
            return self.unknown(F.relu(self.third(x, edge_index)), edge_index)  # type: ignore[no-any-return]

    made = rewrite(Net().eval(), 5, BY_EDGES)
    assert len(made.places) == 2, "max aggregation stays as it is"
    assert disagreement(made, BY_EDGES) < 1e-5


@pytest.mark.slow
def test_layers_called_by_name_explained_and_of_others() -> None:
    conv = pytest.importorskip("torch_geometric.nn", reason="torch_geometric is not installed")
    from torch_geometric.explain.algorithm.utils import clear_masks, set_masks

    class GCNConv(conv.MessagePassing):  # type: ignore[name-defined, misc]
        """Of PyG's name, and something else."""

        def __init__(self) -> None:
            super().__init__(aggr="add")

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            return self.propagate(edge_index, x=x)  # type: ignore[no-any-return]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input = nn.Linear(12, 16)
            self.first = conv.GCNConv(16, 16, aggr="sum")
            self.second = conv.GINConv(nn.Linear(16, 4), aggr="sum")
            self.other = GCNConv()

        def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
            x = self.first(self.input(x).relu(), edge_index=edge_index)
            x = self.second(x=x.relu(), edge_index=edge_index)
            return self.other(x.relu(), edge_index)  # type: ignore[no-any-return]

    made = rewrite(Net().eval(), 8, BY_EDGES)
    assert len(made.places) == 2, "a class of one's own stays as it is"
    made.k = None
    mask = torch.randn(EDGES.shape[1], generator=torch.Generator().manual_seed(0))
    set_masks(made, mask, EDGES)
    explained = made(**BY_EDGES)
    torch.testing.assert_close(explained, made.net(**BY_EDGES))
    clear_masks(made)
    assert (made(**BY_EDGES) - explained).abs().max() > 1e-3
    with pytest.raises(ValueError, match="MessagePassing"):  # PyG's own code is asked for what is no tensor
        made(DATA.x, "torch_sparse")


class Unfollowed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Different(nn.Module):
    """A function of the known name that does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = nn.ReLU()

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        return propagate(self.activation(x), edge_index, 1.0)


def propagate(x: Tensor, edge_index: Tensor, scale: float) -> Tensor:
    return x.index_add(0, edge_index[1], scale * x[edge_index[0]])


@pytest.mark.parametrize(
    ("net", "batch", "k", "text"),
    [
        (
            nn.Sequential(nn.Linear(3, 3), nn.ReLU()),
            None,
            2,
            "no ReLU stands directly before an aggregation; valid:",
        ),
        (Unfollowed(), None, 2, "Unfollowed: its forward pass cannot be traced"),
        (Different(), BY_EDGES, 2, "is not what it looks like"),
        (PlainSAGE(), BY_MATRIX, 17, "k = 17: the activation at 'relu' is 16 wide; valid: 1 to 16"),
    ],
)
def test_what_cannot_be_rewritten_is_told_in_one_line(
    net: nn.Module, batch: dict[str, Any] | None, k: int, text: str
) -> None:
    with pytest.raises(PlanishError, match=text) as caught:
        rewrite(net, k, batch)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"k": 0}, "k = 0; valid: a whole number from 1"),
        ({"k": True}, "k = True; valid"),
        ({"k": None}, "k = None; valid"),
        ({"recompute": "all"}, "recompute = 'all'; valid: nothing, layers, half, everything"),
        ({"net": len}, "net of type builtin_function_or_method; valid: a torch module"),
        ({"batch": [DATA.x]}, "batch of type list; valid: the network's inputs by name"),
    ],
)
def test_arguments_are_told_in_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(DataError, match=text):
        rewrite(**{"net": PlainSAGE(), "k": 4, **changes})


def test_k_can_be_taken_back() -> None:
    net = PlainSAGE().eval()
    made = Rewritten(net, 4).eval()
    made.k = None
    torch.testing.assert_close(made(**BY_MATRIX), net(**BY_MATRIX))
