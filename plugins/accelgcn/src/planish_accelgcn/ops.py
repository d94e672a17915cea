"""y = act(R A C x + bias) as a torch operator: forward and backward, compiled graphs and autocast included.

As in `planish_graph.spmm`, operators are given plain tensors and find the graph again that these belong to.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from planish.errors import DataError
from planish_accelgcn import candidates
from planish_accelgcn.reference import Fused
from planish_graph import check
from planish_graph.graph import Graph, found, given
from planish_graph.spmm import INDEX_SCHEMA, only_computed, transposed_values

FUSED_SCHEMA = "Tensor? row_scale, Tensor? column_scale, Tensor? bias, Tensor x, bool mean, bool relu, bool deterministic"
VALUE, BIAS, X = 2, 8, 9
"""Places of what may need a gradient among the arguments."""


def spmm(
    graph: Graph,
    x: Tensor,
    *,
    reduce: Literal["sum", "mean"] = "sum",
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    bias: Tensor | None = None,
    act: Literal["relu"] | None = None,
    deterministic: bool = False,
) -> Tensor:
    """act(R A C x + bias), differentiable in x, in bias and in the graph's values.

    With R = C = D^-1/2 and a graph without values this is a GCN layer's aggregation, normalised from one vector of
    degrees instead of a value for every edge.

    Args:
        graph: A [N, M].
        x: [M, D] features, fp16, bf16 (sums are fp32), fp32 or fp64; under autocast they are cast to its type.
        reduce: "mean" divides every row by its number of entries, whatever their values.
        row_scale, column_scale: [N] and [M], the diagonals of R and C; constants, without gradients.
        bias: [D]; act: "relu" or nothing.
        deterministic: the same kernel in every process, so that results repeat bit by bit; otherwise the fastest for
            this graph is measured once and kept. `torch.use_deterministic_algorithms` does the same.

    Returns:
        [N, D] of x's type.

    Raises:
        DataError: a wrong shape, type, device or name.
    """
    given(graph)
    check.features("features", x, graph.num_cols, graph.device)
    check.backward_only(x, bias, graph.value)
    for name, value, valid in (("reduce", reduce, ("sum", "mean")), ("act", act, (None, "relu"))):
        if value not in valid:
            raise DataError(f"{name} = {value!r}; valid: {', '.join(map(str, valid))}")
    if reduce == "mean" and row_scale is not None:
        raise DataError(
            "row_scale: given with reduce = 'mean', which scales rows itself; valid: one of the two"
        )
    sizes = {"row_scale": graph.num_rows, "column_scale": graph.num_cols, "bias": x.shape[1]}
    for (name, size), vector in zip(sizes.items(), (row_scale, column_scale, bias), strict=True):
        if vector is not None:
            _check_vector(name, vector, size, x.device, constant=name != "bias")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    exact = torch.promote_types(x.dtype, torch.float32)
    vectors = [None if v is None else v.to(exact).contiguous() for v in (row_scale, column_scale, bias)]
    deterministic = deterministic or torch.are_deterministic_algorithms_enabled()
    if only_computed(x, bias, graph.value):
        row_scale, column_scale, bias = vectors
        fused = Fused(row_scale, column_scale, bias, reduce == "mean", act == "relu")
        return _run(graph.checked(), x, fused, deterministic)
    out: Tensor = torch.ops.planish_accelgcn.spmm(
        *graph.plan(), *vectors, x, reduce == "mean", act == "relu", deterministic
    )
    return out


def _check_vector(name: str, vector: Tensor, size: int, device: torch.device, *, constant: bool) -> None:
    if not isinstance(vector, Tensor):
        raise DataError(f"{name}: {type(vector).__name__}; valid: a torch tensor [{size}]")
    if vector.shape != (size,):
        raise DataError(f"{name}: shape {list(vector.shape)}; valid: [{size}]")
    if vector.device != device:
        raise DataError(f"{name}: on {vector.device}, the features are on {device}; valid: one device")
    if not vector.is_floating_point():
        raise DataError(f"{name}: {check.short(vector.dtype)}; valid: a floating-point type")
    if constant and vector.requires_grad:
        raise DataError(
            f"{name}: requires a gradient, which scales have none of; valid: put it into the graph's values"
        )


@torch.library.custom_op(
    "planish_accelgcn::spmm", mutates_args=(), schema=f"({INDEX_SCHEMA}, {FUSED_SCHEMA}) -> Tensor"
)
def _spmm(*arguments: Any) -> Tensor:
    indptr, indices, value = arguments[:3]
    row_scale, column_scale, bias, x, mean, relu, deterministic = arguments[6:]
    fused = Fused(row_scale, column_scale, bias, mean, relu)
    return _run(_graph(indptr, indices, value, len(x)), x, fused, deterministic)


@_spmm.register_fake
def _(*arguments: Any) -> Tensor:
    x: Tensor = arguments[X]
    return x.new_empty(arguments[0].shape[0] - 1, x.shape[1])


def _graph(indptr: Tensor, indices: Tensor, value: Tensor | None, columns: int) -> Graph:
    return found(indptr, indices, value, columns) or Graph(indptr, indices, value, columns)


def _run(graph: Graph, x: Tensor, fused: Fused, deterministic: bool) -> Tensor:
    x = x.contiguous()
    if deterministic:
        return candidates.fixed(graph, x, fused)()
    if x.is_cuda:
        return candidates.FUSED(graph, x, *fused)
    return candidates.unfused(graph, x, *fused)()


@torch.library.custom_op("planish_accelgcn::spmm_backward", mutates_args=())
def _spmm_backward(
    indptr: Tensor,
    t_indptr: Tensor,
    t_indices: Tensor,
    t_entry: Tensor,
    value: Tensor | None,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    grad: Tensor,
    mean: bool,
    deterministic: bool,
) -> Tensor:
    """[M, D] the gradient of x: C A^T R grad."""
    value = transposed_values(t_indptr, t_indices, t_entry, value, len(grad))
    inner = _rows_of_mean(indptr, grad) if mean else row_scale
    graph = _graph(t_indptr, t_indices, value, len(grad))
    return _run(graph, grad, Fused(column_scale, inner), deterministic)


@_spmm_backward.register_fake
def _(indptr: Tensor, t_indptr: Tensor, *arguments: Any) -> Tensor:
    grad: Tensor = arguments[5]
    return grad.new_empty(t_indptr.shape[0] - 1, grad.shape[1])


@torch.library.custom_op("planish_accelgcn::edge_gradient", mutates_args=())
def _edge_gradient(
    indptr: Tensor,
    indices: Tensor,
    value: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    grad: Tensor,
    x: Tensor,
    mean: bool,
) -> Tensor:
    """[E] the gradient of A's values."""
    rows = _rows_of_mean(indptr, grad) if mean else row_scale
    graph = _graph(indptr, indices, value, len(x))
    return candidates.edge_gradient(graph, rows, column_scale, grad, x).to(value.dtype)


@_edge_gradient.register_fake
def _(indptr: Tensor, indices: Tensor, value: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(value)


def _rows_of_mean(indptr: Tensor, grad: Tensor) -> Tensor:
    """[N] what "mean" multiplies rows with."""
    return indptr.diff().clamp_min(1).to(torch.promote_types(grad.dtype, torch.float32)).reciprocal()


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *plan, row_scale, column_scale, bias, x, ctx.mean, ctx.relu, ctx.deterministic = inputs
    # x is needed for the gradient of the values alone, the output for that of the activation.
    kept = x if ctx.needs_input_grad[VALUE] else None
    ctx.save_for_backward(*plan, row_scale, column_scale, kept, output if ctx.relu else None)
    ctx.bias_type = None if bias is None else bias.dtype
    ctx.graph = found(plan[0], plan[1], plan[2], len(x))  # keeps what was derived until the backward pass


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indptr, indices, value, t_indptr, t_indices, t_entry, row_scale, column_scale, x, out = ctx.saved_tensors
    # As torch's own: what the activation cut off gets 0 even where the gradient is infinite.
    grad = grad.contiguous() if out is None else torch.ops.aten.threshold_backward(grad, out, 0)
    result: list[Tensor | None] = [None] * (X + 4)
    if ctx.needs_input_grad[BIAS]:
        result[BIAS] = grad.sum(0, dtype=ctx.bias_type)
    if ctx.needs_input_grad[X]:
        result[X] = torch.ops.planish_accelgcn.spmm_backward(
            indptr,
            t_indptr,
            t_indices,
            t_entry,
            value,
            row_scale,
            column_scale,
            grad,
            ctx.mean,
            ctx.deterministic,
        )
    if ctx.needs_input_grad[VALUE] and value is not None:
        result[VALUE] = torch.ops.planish_accelgcn.edge_gradient(
            indptr, indices, value, row_scale, column_scale, grad, x, ctx.mean
        )
    return tuple(result)


_spmm.register_autograd(_backward, setup_context=_remember)
