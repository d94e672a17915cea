"""The kernel among the candidates of dispatchers: of `planish_graph.dispatch.SPMM` and of the fused product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from planish_accelgcn import kernel, reference, settings
from planish_accelgcn.reference import Fused
from planish_accelgcn.settings import FIXED, NAMED, Setting, fitted
from planish_accelgcn.work import LISTS
from planish_graph import nvrtc
from planish_graph.check import INT32_MAX
from planish_graph.dispatch import SPMM, Candidate, Dispatcher, Program
from planish_graph.graph import Graph
from planish_graph.reference import bag_product, default_product, sampled_product

KEEPS = (kernel.PRODUCT, LISTS)


def usable(graph: Graph, x: Tensor) -> bool:
    """Whether the kernel can compute with this graph and such features."""
    return (
        x.is_cuda
        and x.dtype in kernel.STORAGE
        and x.is_contiguous()
        and min(graph.num_rows, graph.num_cols, graph.num_edges, x.shape[1]) > 0
        and max(graph.num_rows, graph.num_cols) <= INT32_MAX
        and nvrtc.available()
        and settings.known(x.device)
    )


def spmm() -> list[Candidate]:
    """For `planish_graph.dispatch.SPMM`: A x with the settings that suit a graph."""
    return [Candidate(f"accelgcn {name}", _plain(name), keeps=KEEPS) for name in NAMED]


def sddmm() -> list[Candidate]:
    """For `planish_graph.dispatch.SDDMM`: the gradient of A's values."""

    def prepare(graph: Graph, grad: Tensor, x: Tensor) -> Program | None:
        if not usable(graph, x) or grad.dtype != x.dtype:
            return None
        return lambda: kernel.edge_gradient(graph, None, None, grad.contiguous(), x)

    return [Candidate("accelgcn", prepare)]


def _plain(name: str) -> Callable[[Graph, Tensor], Program | None]:
    return lambda graph, x: _fitted(graph, x, Fused(), name)


def _fused(name: str) -> Callable[..., Program | None]:
    return lambda graph, x, *fused: _fitted(graph, x, Fused(*fused), name)


def _fitted(graph: Graph, x: Tensor, fused: Fused, name: str) -> Program | None:
    def fit() -> Setting | None:
        return fitted(NAMED[name], graph, x.shape[1], x.element_size()) if usable(graph, x) else None

    setting = graph.kept(("accelgcn fit", name, x.shape[1], x.dtype, x.is_contiguous()), fit)
    return None if setting is None else _program(graph, x, fused, setting)


def _program(graph: Graph, x: Tensor, fused: Fused, setting: Setting) -> Program:
    own = graph.value is not None and graph.value.dtype == x.dtype
    return kernel.program(graph, x, graph.value if own else graph.values32(), fused, setting)


def fixed(graph: Graph, x: Tensor, fused: Fused) -> Program:
    """What repeats bit by bit: the kernel with one setting, whatever is fastest, and torch's embedding bag where the kernel
    cannot run."""
    if usable(graph, x):
        return _program(graph, x, fused, FIXED)
    return lambda: reference.product(graph, x, fused, _bag)


def unfused(graph: Graph, x: Tensor, *fused: Any) -> Program:
    """One step after the other, the product by the fastest candidate that there is."""
    return lambda: reference.product(graph, x, Fused(*fused), _product)


def _bag(graph: Graph, x: Tensor) -> Tensor:
    return bag_product(graph.indptr, graph.indices, graph.value, x)


def _product(graph: Graph, x: Tensor) -> Tensor:
    return SPMM(graph, x) if x.is_cuda else default_product(graph.indptr, graph.indices, graph.value, x)


FUSED = Dispatcher(
    "accelgcn",
    [
        Candidate("unfused", unfused),
        *(Candidate(f"fused {name}", _fused(name), keeps=KEEPS) for name in NAMED),
    ],
)
"""act(R A C x + bias) without gradients; operands are x and those of `planish_accelgcn.reference.Fused`."""


def edge_gradient(
    graph: Graph, row_scale: Tensor | None, column_scale: Tensor | None, grad: Tensor, x: Tensor
) -> Tensor:
    """[E] row_scale[i] column_scale[j] <grad[i], x[j]> at the entries (i, j) of A; fp32 at least."""
    grad, x = grad.contiguous(), x.contiguous()
    if usable(graph, x) and grad.dtype == x.dtype:
        return kernel.edge_gradient(graph, row_scale, column_scale, grad, x)
    out = sampled_product(graph.indptr, graph.indices, grad, x)
    if row_scale is not None:
        out = out * row_scale[graph.rows.long()]
    return out if column_scale is None else out * column_scale[graph.indices.long()]
