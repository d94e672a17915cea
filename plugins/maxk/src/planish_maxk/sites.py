"""Finds, in the traced graph of a network, every aggregation that a ReLU stands directly before.

Between the two there may be dropout, which commutes with the choice of entries, and a linear layer, which commutes
with the aggregation.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from planish.errors import PlanishError
from planish_maxk import layers

PRODUCTS = {torch.sparse.mm, torch.spmm, torch.mm, torch.matmul, operator.matmul}
ROWS = object()
"""Stands, among a layer's arguments, for the rows it aggregates."""
PRODUCT_METHODS = {"mm", "matmul", "spmm"}
PLAIN_FUNCTIONS = {"propagate", "degree_scale"}
"""Functions of plain torch networks that are not looked into: ``propagate(x, edge_index, scale)`` multiplies with the
symmetrically normalised adjacency, scaled by ``degree_scale(edge_index, nodes)`` on both sides. Whether a function of that name does
so is checked by running the network both ways."""


@dataclass(frozen=True, slots=True)
class Site:
    """One nonlinearity and the aggregation behind it, as nodes of the traced graph.

    Attributes:
        relu, dropouts, linear: what stands between the activation's input and ``product``, in that order.
        layer: makes the layer that replaces ``product``; ``arguments`` are what it is called with, `ROWS` among them.
    """

    relu: fx.Node
    dropouts: tuple[fx.Node, ...]
    linear: fx.Node | None
    product: fx.Node
    layer: nn.Module
    arguments: tuple[Any, ...]
    keywords: dict[str, Any] = field(default_factory=dict)

    @property
    def width(self) -> int | None:
        """Columns of the activation, where a layer behind it tells."""
        conv = getattr(self.layer, "conv", None)
        if conv is not None:
            size = getattr(conv, "in_channels", None)
            return size if isinstance(size, int) and size > 0 else None
        linear = getattr(self.layer, "linear", None)
        return linear.in_features if linear is not None else None


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Leave every layer in the mode it is in: some may be frozen in evaluation mode while others train."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def trace(net: nn.Module) -> tuple[fx.GraphModule, dict[str, Any]]:
    """The network as a graph of calls, and its optional inputs, which were held at these defaults.

    Raises:
        PlanishError: its forward pass cannot be followed.
    """
    scopes = [getattr(forward, "__globals__", {}) for forward in {type(m).forward for m in net.modules()}]
    opaque = tuple(
        f
        for scope in scopes
        for name, f in scope.items()
        if inspect.isfunction(f) and (name in PLAIN_FUNCTIONS or f.__module__.startswith("planish_graph"))
    )
    optional = {
        name: p.default
        for name, p in inspect.signature(net.forward).parameters.items()
        if p.default is not p.empty and name != "edge_weight"
    }
    try:
        tracer = _Tracer(autowrap_functions=opaque)
        with modes_kept(net):
            net.train()  # so that a functional dropout is seen with its training flag up
            graph = tracer.trace(net, concrete_args=optional or None)
    except Exception as error:  # tracing runs the user's code on stand-ins: anything may be raised
        text = " ".join(str(error).split())
        raise PlanishError(
            f"{type(net).__name__}: its forward pass cannot be traced ({type(error).__name__}: {text[:160]})"
        ) from None
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target.__name__ == "_assert_is_none":
            graph.erase_node(node)
    return fx.GraphModule(net, graph), optional


def find(traced: fx.GraphModule) -> Iterator[Site]:
    """The sites, in the order of computation."""
    for node in traced.graph.nodes:
        for layer, rows, arguments, keywords, linears in _aggregations(traced, node):
            way = _back_to_relu(traced, rows, linears) if isinstance(rows, fx.Node) else None
            if way is None:
                continue
            relu, dropouts, linear = way
            if linear is not None and linear.op == "call_module":
                layer.linear = traced.get_submodule(str(linear.target))
            elif linear is not None:
                arguments = (*arguments, linear.args[1])
            yield Site(relu, dropouts, linear, node, layer, arguments, keywords)
            break


class _Tracer(fx.Tracer):
    """Layers of PyG stay whole, networks built of them do not."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if _is_message_passing(m):
            return True
        if type(m).__module__.startswith("torch_geometric."):
            return not any(_is_message_passing(child) for child in m.modules())
        own = type(m).__module__.startswith("planish_maxk.") and not any(m.children())
        return own or super().is_leaf_module(m, module_qualified_name)


def _is_message_passing(m: nn.Module) -> bool:
    return any(
        b.__name__ == "MessagePassing" and b.__module__.startswith("torch_geometric.")
        for b in type(m).__mro__
    )


def _aggregations(
    traced: fx.GraphModule, node: fx.Node
) -> Iterator[tuple[Any, Any, tuple[Any, ...], dict[str, Any], bool]]:
    """Ways to read a node as an aggregation: (layer, the rows it aggregates, arguments, keywords, whether a linear
    layer before it may be moved behind it)."""
    if node.op == "call_module":
        conv = traced.get_submodule(str(node.target))
        make = _convolution(conv)
        if make and node.args:
            yield make(conv), node.args[0], (ROWS, *node.args[1:]), dict(node.kwargs), False
        elif make and "x" in node.kwargs:
            yield (
                make(conv),
                node.kwargs["x"],
                (ROWS,),
                {n: a for n, a in node.kwargs.items() if n != "x"},
                False,
            )
        return
    args = node.args
    if node.op == "call_function" and getattr(node.target, "__name__", "") == "propagate" and len(args) == 3:
        yield layers.EdgeProduct(), args[0], (args[1], ROWS), {}, True
    is_product = node.op == "call_function" and (node.target in PRODUCTS or _is_own(node.target))
    if is_product or (node.op == "call_method" and node.target in PRODUCT_METHODS):
        matrix, rows = args[:2] if len(args) == 2 else (None, None)
        if isinstance(matrix, fx.Node) and _is_given(traced, matrix):
            yield layers.Product(), rows, (matrix, ROWS), {}, True


def _is_own(target: Any) -> bool:
    return getattr(target, "__module__", "") == "planish_graph.spmm" and target.__name__ == "spmm"


def _is_given(traced: fx.GraphModule, node: fx.Node) -> bool:
    """An adjacency is an input, a buffer, or made from an input by a function of planish_graph; never a parameter."""
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return not isinstance(getattr(traced.get_submodule(owner), name), nn.Parameter)
    made = node.op == "call_function" and getattr(node.target, "__module__", "").startswith("planish_graph")
    return node.op == "placeholder" or made


def _convolution(conv: nn.Module) -> Callable[[Any], nn.Module] | None:
    """The layer that stands in for a convolution of PyG, where there is one."""
    kind: Any = conv
    # Others write classes of these names, too, which compute something else.
    own = type(conv).__module__.startswith("torch_geometric.") and _is_message_passing(conv)
    if not own or kind.flow != "source_to_target":
        return None
    name = type(conv).__name__
    if name == "GCNConv" and kind.aggr in ("add", "sum"):
        return layers.GCN
    if name == "SAGEConv" and kind.aggr in ("mean", "add", "sum") and not kind.project:
        return layers.SAGE
    if name == "GINConv" and kind.aggr in ("add", "sum"):
        return layers.GIN
    return None


def _back_to_relu(
    traced: fx.GraphModule, node: fx.Node, linears: bool
) -> tuple[fx.Node, tuple[fx.Node, ...], fx.Node | None] | None:
    """From what is aggregated back to a ReLU: (ReLU, dropouts from it on, linear layer), or None."""
    dropouts: list[fx.Node] = []
    linear: fx.Node | None = None
    while not is_relu(traced, node):
        if is_dropout(traced, node):
            dropouts.append(node)
        elif linears and linear is None and not dropouts and _is_linear(traced, node):
            linear = node
        else:
            return None
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return None
        node = source
    return node, tuple(reversed(dropouts)), linear


def is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if not node.args:
        return False
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_")
    return node.op == "call_function" and node.target in (F.relu, F.relu_, torch.relu, torch.relu_)


def is_dropout(traced: fx.GraphModule, node: fx.Node) -> bool:
    if not node.args:
        return False
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.Dropout
    return node.op == "call_function" and node.target is F.dropout


def dropout_rate(traced: fx.GraphModule, node: fx.Node) -> float:
    """p of a dropout node; 0 for a functional one whose training flag was down in training mode."""
    if node.op == "call_module":
        return float(traced.get_submodule(str(node.target)).p)  # type: ignore[arg-type]
    bound = inspect.signature(F.dropout).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return float(bound.arguments["p"]) if bound.arguments["training"] else 0.0


def _is_linear(traced: fx.GraphModule, node: fx.Node) -> bool:
    """A linear layer, or a product with a parameter from the right."""
    if not node.args:
        return False
    if node.op == "call_module":
        return type(traced.get_submodule(str(node.target))) is nn.Linear
    product = node.op == "call_function" and node.target in PRODUCTS
    if not product or len(node.args) != 2 or not isinstance(node.args[1], fx.Node):
        return False
    weight = node.args[1]
    return weight.op == "get_attr" and not _is_given(traced, weight)
