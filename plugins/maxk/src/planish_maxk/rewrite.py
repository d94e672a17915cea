"""Exchanges ReLU + aggregation for MaxK + aggregation of compressed rows, and proves that nothing else changed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from inspect import signature
from typing import Any, NoReturn, Self, get_args

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from planish.errors import DataError, PlanishError
from planish_maxk import layers, sites, topk
from planish_maxk.recompute import Recompute, cut

NOT_FOUND = (
    "no ReLU stands directly before an aggregation; valid: ReLU, then dropout or one linear layer or neither, then "
    "GCNConv, SAGEConv (mean, sum) or GINConv of PyG, a product with a sparse adjacency, or "
    "propagate(x, edge_index, scale)"
)


class Rewritten(nn.Module):
    """``net`` with MaxK in place of every ReLU that stands directly before an aggregation.

    Parameters and layers are those of ``net``, which stays as it was and whose weights are ``made.net.state_dict()``;
    computation follows its traced graph. ``k`` may be set to None to compute what ``net`` computes. ``recompute`` says
    what a training pass does not save; see `planish_maxk.recompute`. Copies and pickles trace again.

    Raises:
        DataError: net, k or recompute is none.
        PlanishError: nothing to replace is found, or the forward pass cannot be traced.
    """

    def __init__(self, net: nn.Module, k: int | None, recompute: Recompute = "nothing") -> None:
        super().__init__()
        if not isinstance(net, nn.Module):
            raise DataError(f"net of type {type(net).__name__}; valid: a torch module")
        if recompute not in get_args(Recompute):
            raise DataError(f"recompute = {recompute!r}; valid: {', '.join(get_args(Recompute))}")
        self.net = net
        self._k = _checked(k)
        self.recompute = recompute
        self._build()

    def _build(self) -> None:
        graph, self.held = sites.trace(self.net)
        self.inputs = list(signature(self.net.forward).parameters)
        graph, self.places, self.tensors = _replace(graph, self._k, self.recompute)
        # Not registered: its parameters and layers are those of `net`.
        self.__dict__["graph"] = graph
        self._follow(self.training)

    def _follow(self, mode: bool) -> None:
        """Set the mode of the layers that `net` does not have."""
        theirs = set(self.net.modules())
        for module in self.__dict__["graph"].modules():
            if module not in theirs:
                module.training = mode

    @property
    def k(self) -> int | None:
        return self._k

    @k.setter
    def k(self, k: int | None) -> None:
        self._k = _checked(k)
        for module in self.activations:
            module.k = self._k

    @property
    def activations(self) -> list[layers.MaxK]:
        """The MaxK layers, in the order of computation."""
        return [m for m in self.__dict__["graph"].modules() if isinstance(m, layers.MaxK)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        inputs = {**dict(zip(self.inputs, args, strict=False)), **kwargs}
        if len(args) > len(self.inputs) or len(inputs) < len(args) + len(kwargs):
            raise TypeError(f"{type(self.net).__name__}: an input too many; valid: {', '.join(self.inputs)}")
        for name, default in self.held.items():
            if inputs.pop(name, default) is not default:
                raise PlanishError(f"{type(self.net).__name__}: the rewritten network takes no {name!r}")
        # Looked up at every call: they may have been exchanged, for good or for this call.
        tensors = {place: reduce(getattr, name.split("."), self.net) for place, name in self.tensors.items()}
        return self.__dict__["graph"](**tensors, **inputs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self._follow(mode)
        return self

    def extra_repr(self) -> str:
        return f"k={self.k} at {', '.join(self.places)}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "graph"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._build()

    def _replicate_for_data_parallel(self) -> NoReturn:
        raise PlanishError(
            "a rewritten network cannot be split over devices by DataParallel, which cuts graphs apart"
        )


def rewrite(
    net: nn.Module, k: int, batch: Mapping[str, Any] | None = None, recompute: Recompute = "nothing"
) -> Rewritten:
    """`Rewritten` in evaluation mode as ``net`` is, checked on ``batch`` (the network's inputs by name) if one is given.

    Raises:
        DataError: k or recompute is none.
        PlanishError: there is nothing to replace, k is above the width of an activation, or, with its activations set
            back to ReLU, the rewritten network does not compute what ``net`` computes.
    """
    if k is None:
        raise DataError("k = None; valid: a whole number from 1 to the width of the activations")
    made = Rewritten(net.net if isinstance(net, Rewritten) else net, k, recompute)
    made.training = net.training
    made._follow(net.training)
    if batch is not None:
        if not isinstance(batch, Mapping):
            raise DataError(f"batch of type {type(batch).__name__}; valid: the network's inputs by name")
        difference = disagreement(made, batch)
        if not difference <= TOLERANCE:
            raise PlanishError(
                f"{type(net).__name__}: rewritten with ReLU kept, it differs from the original by {difference:.1e} of the "
                "largest output; an aggregation in it is not what it looks like"
            )
        for place, module in zip(made.places, made.activations, strict=True):
            if k > module.width:
                raise PlanishError(
                    f"k = {k}: the activation at {place!r} is {module.width} wide; valid: 1 to {module.width}"
                )
    return made


TOLERANCE = 1e-3
"""Of the largest output, for networks in any floating-point type down to 16 bits computed in another order."""


def disagreement(made: Rewritten, batch: Mapping[str, Any]) -> float:
    """Largest difference between ``net`` and its rewriting with ReLU kept, in evaluation mode, over the largest output."""
    k = made.k
    made.k = None
    try:
        with torch.no_grad(), sites.modes_kept(made):
            made.eval()
            expected, got = (_joined(net(**batch)) for net in (made.net, made))
    finally:
        made.k = k
        made._follow(made.training)
    if expected.numel() == 0:
        return 0.0
    scale = float(expected.abs().max().clamp_min(1e-12))
    return float((expected - got).abs().max()) / scale


def _joined(output: Any) -> Tensor:
    """All numbers that a network gives, alone or in tuples and dictionaries, in one row."""
    return torch.cat([t.flatten() for t in pytree.tree_leaves(output) if isinstance(t, Tensor)])


def _checked(k: Any) -> int | None:
    number = topk.whole(k)
    if k is not None and (number is None or not 1 <= number <= topk.MAX_WIDTH):
        raise DataError(f"k = {k!r}; valid: a whole number from 1 to the width of the activations")
    return number


def _replace(
    graph: fx.GraphModule, k: int | None, recompute: Recompute
) -> tuple[fx.GraphModule, list[str], dict[str, str]]:
    """The graph rewritten, the names of the activations replaced, in the order of computation, and what `_lift` gives."""
    found = list(sites.find(graph))
    if not found:
        raise PlanishError(NOT_FOUND)
    compressed: dict[fx.Node, fx.Node] = {}
    products: list[fx.Node] = []
    for number, site in enumerate(found):
        for node in (site.relu, *site.dropouts):
            if node not in compressed:
                compressed[node] = _compress(graph, node, compressed, k)
        rows = compressed[(site.relu, *site.dropouts)[-1]]
        name = f"maxk_product_{number}"
        graph.add_submodule(name, site.layer)
        with graph.graph.inserting_before(site.product):
            arguments = tuple(rows if a is sites.ROWS else a for a in site.arguments)
            made = graph.graph.call_module(name, arguments, site.keywords)
        products.append(made)
        site.product.replace_all_uses_with(made)
    ends = [compressed[(site.relu, *site.dropouts)[-1]] for site in found]
    places = [node.name for node in compressed if sites.is_relu(graph, node)]
    _tidy(graph, found, compressed)
    _modular_dropout(graph)
    tensors = _lift(graph)
    graph.graph.lint()
    graph = fx.GraphModule(graph, graph.graph)  # which keeps what is used alone
    return cut(graph, ends, products, recompute), places, tensors


def _lift(graph: fx.GraphModule) -> dict[str, str]:
    """Make inputs of the parameters and buffers that are read outside of layers, first of all; a graph holds those that
    were there when it was traced. Their names as inputs, and in the network."""
    tensors: dict[str, str] = {}
    first = next(iter(graph.graph.nodes))
    for node in list(graph.graph.nodes):
        if node.op == "get_attr":
            place = f"maxk_tensor_{len(tensors)}"
            tensors[place] = str(node.target)
            with graph.graph.inserting_before(first):
                node.replace_all_uses_with(graph.graph.placeholder(place))
            graph.graph.erase_node(node)
    return tensors


def _compress(
    graph: fx.GraphModule, node: fx.Node, compressed: dict[fx.Node, fx.Node], k: int | None
) -> fx.Node:
    """The node that gives compressed rows where ``node``, a ReLU or a dropout behind one, gives dense ones."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if sites.is_relu(graph, node):
        module: nn.Module = layers.MaxK(k)
    else:
        layer = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
        rate = layer if isinstance(layer, nn.Dropout) else sites.dropout_rate(graph, node)
        module, source = layers.KeptDropout(rate), compressed[source]
    name = f"maxk_{node.name}"
    graph.add_submodule(name, module)
    with graph.graph.inserting_after(node):
        return graph.graph.call_module(name, (source,))


def _tidy(graph: fx.GraphModule, found: list[sites.Site], compressed: dict[fx.Node, fx.Node]) -> None:
    """Remove what was replaced; whoever still reads an activation gets its rows expanded."""
    for site in found:
        graph.graph.erase_node(site.product)
    for linear in {site.linear: None for site in found if site.linear is not None}:
        if not linear.users:
            graph.graph.erase_node(linear)
    for node, rows in reversed(compressed.items()):
        if node.users:
            with graph.graph.inserting_after(rows):
                node.replace_all_uses_with(graph.graph.call_function(layers.dense, (rows,)))
        graph.graph.erase_node(node)


def _modular_dropout(graph: fx.GraphModule) -> None:
    """A traced functional dropout would keep the training flag of the trace: make it a layer, which follows the mode."""
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and sites.is_dropout(graph, node):
            name = f"maxk_{node.name}"
            graph.add_submodule(name, nn.Dropout(sites.dropout_rate(graph, node)))
            with graph.graph.inserting_after(node):
                made = graph.graph.call_module(name, (node.args[0],))
            node.replace_all_uses_with(made)
            graph.graph.erase_node(node)
