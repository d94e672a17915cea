"""The operators of MaxK for torch: registered with fakes and gradients, so that compiled graphs stay whole.

Beside `planish_graph.graph.Plan` there are up to three tensors that say how a way divides the work, and as many for the
backward pass. What is kept for that is [N, k] positions, and values where A's have gradients, never a matrix of the
full width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from planish_graph.graph import Plan
from planish_maxk import cuda, kernels, topk, ways

PLAN = "Tensor indptr, Tensor indices, Tensor? weight, Tensor t_indptr, Tensor t_indices, Tensor t_entry"
WORK = "Tensor? work0, Tensor? work1, Tensor? work2"
BACK = "Tensor? back0, Tensor? back1, Tensor? back2"
WEIGHT, WORKS, BACKS, VALUES = 2, 6, 9, 12
"""Places of what may need a gradient among the arguments of ``aggregate``."""


@torch.library.custom_op("planish_maxk::top_k", mutates_args=())
def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    width = x.shape[1]
    if k == width:
        return x.clone(), torch.arange(k, device=x.device).to(topk.position_type(k)).repeat(len(x), 1)
    if width <= cuda.WIDEST_TOP_K and cuda.usable(x):
        return cuda.top_k(x.contiguous(), k, topk.position_type(width))
    if width <= kernels.WIDEST and kernels.usable(x):
        return kernels.top_k(x.contiguous(), k, topk.position_type(width))
    return topk.top_k(x, k)


@top_k.register_fake
def _(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=topk.position_type(x.shape[1]))


def _dense(values: Tensor, index: Tensor, width: int) -> Tensor:
    if cuda.fits(values, width):
        return cuda.expand(values.contiguous(), index, width)
    topk.within(index, width)
    return topk.expand(values, index, width)


@torch.library.custom_op("planish_maxk::expand", mutates_args=())
def expand(values: Tensor, index: Tensor, width: int) -> Tensor:
    """Without a gradient of its own, so that a second backward pass raises; `to_dense` has one."""
    return _dense(values, index, width)


@torch.library.custom_op("planish_maxk::to_dense", mutates_args=())
def to_dense(values: Tensor, index: Tensor, width: int) -> Tensor:
    return _dense(values, index, width)


@expand.register_fake
@to_dense.register_fake
def _(values: Tensor, index: Tensor, width: int) -> Tensor:
    return values.new_empty(values.shape[0], width)


@torch.library.custom_op("planish_maxk::pick", mutates_args=())
def pick(dense: Tensor, index: Tensor) -> Tensor:
    if cuda.usable(dense):
        return cuda.pick(dense.contiguous(), index)
    return dense.gather(1, index.long())


@pick.register_fake
def _(dense: Tensor, index: Tensor) -> Tensor:
    return dense.new_empty(index.shape)


to_dense.register_autograd(
    lambda ctx, grad: (torch.ops.planish_maxk.pick(grad, ctx.saved_tensors[0]), None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[1]),
)


def _keep_positions(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.width = inputs[0].shape[1]
    ctx.save_for_backward(output[1])


def _top_k_backward(ctx: Any, of_values: Tensor, of_index: Tensor | None) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return torch.ops.planish_maxk.expand(of_values, index, ctx.width), None


top_k.register_autograd(_top_k_backward, setup_context=_keep_positions)


@torch.library.custom_op(
    "planish_maxk::aggregate",
    mutates_args=(),
    schema=f"({PLAN}, {WORK}, {BACK}, Tensor values, Tensor index, int width, str how, str back) -> Tensor",
)
def aggregate(*arguments: Any) -> Tensor:
    values, index, width, how, _ = arguments[VALUES:]
    return ways.find(how).forward(*_split(arguments[:BACKS]), values, index, width)


@aggregate.register_fake
def _(*arguments: Any) -> Tensor:
    indptr, values, width = arguments[0], arguments[VALUES], arguments[VALUES + 2]
    return values.new_empty(indptr.shape[0] - 1, width)  # type: ignore[no-any-return]


@torch.library.custom_op(
    "planish_maxk::aggregate_backward",
    mutates_args=(),
    schema=f"({PLAN}, {BACK}, Tensor grad, Tensor values, Tensor index, bool of_values, bool of_weight, str how) "
    "-> (Tensor, Tensor)",
)
def aggregate_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, grad, values, index, of_values, of_weight, how = arguments
    one, two = ways.find(how).backward(*_split(plan), grad, values, index, (of_values, of_weight))
    return one.to(values.dtype), two.to(grad.dtype if plan[WEIGHT] is None else plan[WEIGHT].dtype)


@aggregate_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, grad, _, index, of_values, of_weight, _ = arguments
    weight_type = grad.dtype if plan[WEIGHT] is None else plan[WEIGHT].dtype
    one = grad.new_empty(index.shape if of_values else 0)
    return one, grad.new_empty(plan[1].shape[0] if of_weight else 0, dtype=weight_type)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.back = inputs[-1]
    values, index = inputs[VALUES : VALUES + 2]
    # The kept values are needed for the gradient of the weights alone.
    values = values if ctx.needs_input_grad[WEIGHT] else values.new_empty(0)
    ctx.save_for_backward(*inputs[:WORKS], *inputs[BACKS:VALUES], values, index)


def _aggregate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *plan, values, index = ctx.saved_tensors
    wanted = ctx.needs_input_grad[VALUES], ctx.needs_input_grad[WEIGHT]
    of_values, of_weight = torch.ops.planish_maxk.aggregate_backward(
        *plan, grad.contiguous(), values, index, *wanted, ctx.back
    )
    result: list[Tensor | None] = [None] * (VALUES + 5)
    result[VALUES] = of_values if wanted[0] else None
    result[WEIGHT] = of_weight if wanted[1] else None
    return tuple(result)


aggregate.register_autograd(_aggregate_backward, setup_context=_remember)


def _split(tensors: Sequence[Any]) -> tuple[Plan, ways.Work]:
    return Plan(*tensors[:WORKS]), tuple(tensor for tensor in tensors[WORKS:] if tensor is not None)
