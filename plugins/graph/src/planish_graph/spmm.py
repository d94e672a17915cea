"""y = A x as a torch operator: any layout of graph, forward and backward, compiled graphs and autocast included.

Operators are given plain tensors, so that torch can trace them. When they run, they find the graph again that the
tensors belong to, and with it the kernel that was chosen for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from planish_graph import check
from planish_graph.dispatch import SDDMM, SPMM
from planish_graph.graph import Graph, Plan, found, given
from planish_graph.reference import default_product, sampled_product

INDEX_SCHEMA = (
    "Tensor indptr, Tensor indices, Tensor? value, Tensor t_indptr, Tensor t_indices, Tensor t_entry"
)


def spmm(graph: Graph, x: Tensor) -> Tensor:
    """A x, differentiable in x and in the graph's values.

    On a CUDA device the first call with a width and type times the candidates of `planish_graph.dispatch.SPMM`, and
    later ones run the fastest; gradients of x do the same with the transposed matrix.

    Args:
        graph: A [N, M].
        x: [M, D] features: fp16, bf16 (accumulated in fp32), fp32 or fp64, contiguous or not. Under autocast they are
            cast to its type, as those of a dense product are.

    Returns:
        [N, D] of x's type.

    Raises:
        DataError: x has the wrong shape or type, or is on another device than the graph.
    """
    given(graph)
    check.features("features", x, graph.num_cols, graph.device)
    check.backward_only(x, graph.value)
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    if only_computed(x, graph.value):
        return _run(graph.checked(), x)
    out: Tensor = torch.ops.planish_graph.spmm(*graph.plan(), x)
    return out


def only_computed(*tensors: Tensor | None) -> bool:
    """Whether torch neither differentiates nor traces nor transforms a call with these tensors.

    An operator can then be passed by: its way through torch takes longer than the product of a small graph, and nothing
    needs the transposed structure.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    graded = torch.is_grad_enabled()
    return all(
        t is None or (type(t) in (Tensor, Parameter) and not (graded and t.requires_grad)) for t in tensors
    )


@torch.library.custom_op(
    "planish_graph::spmm", mutates_args=(), schema=f"({INDEX_SCHEMA}, Tensor x) -> Tensor"
)
def _spmm(
    indptr: Tensor,
    indices: Tensor,
    value: Tensor | None,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_entry: Tensor,
    x: Tensor,
) -> Tensor:
    return _product(indptr, indices, value, x)


def _product(indptr: Tensor, indices: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    if x.is_cuda and (graph := found(indptr, indices, value, len(x))) is not None:
        return _run(graph, x)
    return default_product(indptr, indices, value, x)


def _run(graph: Graph, x: Tensor) -> Tensor:
    if x.is_cuda:
        return SPMM(graph, x.contiguous())
    return default_product(graph.indptr, graph.indices, graph.value, x)


@_spmm.register_fake
def _(
    indptr: Tensor,
    indices: Tensor,
    value: Tensor | None,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_entry: Tensor,
    x: Tensor,
) -> Tensor:
    return x.new_empty(indptr.shape[0] - 1, x.shape[1])


@torch.library.custom_op("planish_graph::edge_gradient", mutates_args=())
def _edge_gradient(indptr: Tensor, indices: Tensor, value: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    if x.is_cuda and (graph := found(indptr, indices, value, len(x))) is not None:
        return SDDMM(graph, grad, x.contiguous()).to(value.dtype)
    return sampled_product(indptr, indices, grad, x).to(value.dtype)


@_edge_gradient.register_fake
def _(indptr: Tensor, indices: Tensor, value: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(value)


def _remember(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    *plan, x = inputs
    # x is needed for the gradient of the values alone.
    ctx.save_for_backward(*plan, x if ctx.needs_input_grad[2] else None)
    ctx.graph = found(plan[0], plan[1], plan[2], len(x))  # keeps what was derived until the backward pass


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, x = ctx.saved_tensors
    plan = Plan(*tensors)
    grad = grad.contiguous()
    of_x = of_value = None
    if ctx.needs_input_grad[6]:
        # The transpose of the transpose is A, but nothing reads it: a second backward of x's gradient is not offered.
        of_x = torch.ops.planish_graph.spmm_backward(
            plan.t_indptr, plan.t_indices, plan.t_entry, plan.value, grad
        )
    if ctx.needs_input_grad[2] and plan.value is not None:
        of_value = torch.ops.planish_graph.edge_gradient(plan.indptr, plan.indices, plan.value, grad, x)
    return None, None, of_value, None, None, None, of_x


@torch.library.custom_op("planish_graph::spmm_backward", mutates_args=())
def _spmm_backward(
    t_indptr: Tensor, t_indices: Tensor, t_entry: Tensor, value: Tensor | None, grad: Tensor
) -> Tensor:
    return _product(
        t_indptr, t_indices, transposed_values(t_indptr, t_indices, t_entry, value, len(grad)), grad
    )


def transposed_values(
    t_indptr: Tensor, t_indices: Tensor, t_entry: Tensor, value: Tensor | None, rows: int
) -> Tensor | None:
    """[E] ``value`` in the order of the transpose; kept as long as neither changes."""
    if value is None:
        return None
    values = value.detach()
    make = lambda: values.index_select(0, t_entry)  # noqa: E731
    graph = found(t_indptr, t_indices, values, rows)
    return make() if graph is None else graph.kept("values of the transpose", make, values=True)


@_spmm_backward.register_fake
def _(t_indptr: Tensor, t_indices: Tensor, t_entry: Tensor, value: Tensor | None, grad: Tensor) -> Tensor:
    return grad.new_empty(t_indptr.shape[0] - 1, grad.shape[1])


_spmm.register_autograd(_backward, setup_context=_remember)
