"""Exchanges ReLU + aggregation for MaxK + aggregation of compressed rows, and proves that nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from planish.errors import PlanishError
from planish_maxk import layers, sites
from planish_maxk.recompute import Recompute, cut

NOT_FOUND = (
    "no ReLU stands directly before an aggregation; valid: ReLU, then dropout or one linear layer or neither, then "
    "GCNConv, SAGEConv (mean, sum) or GINConv of PyG, a product with a sparse adjacency, or "
    "propagate(x, edge_index, scale)"
)


class Rewritten(nn.Module):
    """``net`` with MaxK in place of every ReLU that stands directly before an aggregation.

    Parameters are those of ``net``, which stays as it was; computation follows its traced graph. ``k`` may be set to
    None to compute what ``net`` computes. ``recompute`` says what a training pass does not save; see
    `planish_maxk.recompute`.

    Raises:
        PlanishError: nothing to replace is found, or the forward pass cannot be traced.
    """

    def __init__(self, net: nn.Module, k: int | None, recompute: Recompute = "nothing") -> None:
        super().__init__()
        self.net = net
        self._k = k
        self.recompute = recompute
        self._build()

    def _build(self) -> None:
        graph, self.held = sites.trace(self.net)
        graph, self.places = _replace(graph, self._k, self.recompute)
        graph.train(self.training)
        # Not registered: its parameters and layers are those of `net`.
        self.__dict__["graph"] = graph

    @property
    def k(self) -> int | None:
        return self._k

    @k.setter
    def k(self, k: int | None) -> None:
        self._k = k
        for module in self.activations:
            module.k = k

    @property
    def activations(self) -> list[layers.MaxK]:
        """The MaxK layers, in the order of computation."""
        return [m for m in self.__dict__["graph"].modules() if isinstance(m, layers.MaxK)]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name in self.held:
                raise PlanishError(f"{type(self.net).__name__}: the rewritten network takes no {name!r}")
        return self.__dict__["graph"](*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.__dict__["graph"].train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moved to another device or type, buffers are other tensors: the graph is made again from ``net``."""
        super()._apply(fn, recurse)
        self._build()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Rewritten:
        other = Rewritten(copy.deepcopy(self.net, memo), self.k, self.recompute)
        return other.train(self.training)


def rewrite(
    net: nn.Module, k: int, batch: Mapping[str, Any] | None = None, recompute: Recompute = "nothing"
) -> Rewritten:
    """`Rewritten` in evaluation mode as ``net`` is, checked on ``batch`` (the network's inputs by name) if one is given.

    Raises:
        PlanishError: there is nothing to replace, k is above the width of an activation, or, with its activations set
            back to ReLU, the rewritten network does not compute what ``net`` computes.
    """
    made = Rewritten(net, k, recompute).train(net.training)
    if batch is not None:
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
    k, training = made.k, made.training
    made.k = None
    made.eval()
    try:
        with torch.no_grad():
            expected, got = made.net(**batch), made(**batch)
    finally:
        made.k = k
        made.train(training)
    scale = float(expected.abs().max().clamp_min(1e-12))
    return float((expected - got).abs().max()) / scale


def _replace(graph: fx.GraphModule, k: int | None, recompute: Recompute) -> tuple[fx.GraphModule, list[str]]:
    """The graph rewritten, and the names of the activations replaced, in the order of computation."""
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
    graph.graph.lint()
    graph.recompile()
    return cut(graph, ends, products, recompute), places


def _compress(
    graph: fx.GraphModule, node: fx.Node, compressed: dict[fx.Node, fx.Node], k: int | None
) -> fx.Node:
    """The node that gives compressed rows where ``node``, a ReLU or a dropout behind one, gives dense ones."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if sites.is_relu(graph, node):
        module: nn.Module = layers.MaxK(k)
    else:
        module, source = layers.KeptDropout(sites.dropout_rate(graph, node)), compressed[source]
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
