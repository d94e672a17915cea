"""The operators of MaxK for torch: registered with fakes and gradients, so that compiled graphs stay whole.

A segmented plan is three more tensors beside `planish_graph.graph.Plan`; without them the plain torch path runs.
What a backward pass keeps is [N, k] values and positions, never a matrix of the full width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from planish_graph.graph import Plan
from planish_graph.partition import Segments
from planish_maxk import kernels, topk, ways

PLAN = (
    "Tensor indptr, Tensor indices, Tensor? weight, Tensor t_indptr, Tensor t_indices, Tensor t_entry, "
    "Tensor? row, Tensor? start, Tensor? count"
)
WEIGHT, VALUES = 2, 9
"""Places of what may need a gradient among the arguments of ``aggregate``."""


@torch.library.custom_op("planish_maxk::top_k", mutates_args=())
def top_k(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if kernels.usable(x) and x.shape[1] <= kernels.WIDEST:
        return kernels.top_k(x.contiguous(), k, topk.position_type(x.shape[1]))
    return topk.top_k(x, k)


@top_k.register_fake
def _(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (x.shape[0], k)
    return x.new_empty(shape), x.new_empty(shape, dtype=topk.position_type(x.shape[1]))


@torch.library.custom_op("planish_maxk::expand", mutates_args=())
def expand(values: Tensor, index: Tensor, width: int) -> Tensor:
    return topk.expand(values, index, width)


@expand.register_fake
def _(values: Tensor, index: Tensor, width: int) -> Tensor:
    return values.new_empty(values.shape[0], width)


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
    schema=f"({PLAN}, Tensor values, Tensor index, int width, str how) -> Tensor",
)
def aggregate(*arguments: Any) -> Tensor:
    *plan, values, index, width, how = arguments
    return ways.find(how).forward(*_split(plan), values, index, width)


@aggregate.register_fake
def _(*arguments: Any) -> Tensor:
    indptr, values, width = arguments[0], arguments[VALUES], arguments[VALUES + 2]
    return values.new_empty(indptr.shape[0] - 1, width)  # type: ignore[no-any-return]


@torch.library.custom_op(
    "planish_maxk::aggregate_backward",
    mutates_args=(),
    schema=f"({PLAN}, Tensor grad, Tensor values, Tensor index, bool of_values, bool of_weight, str how) "
    "-> (Tensor, Tensor)",
)
def aggregate_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, grad, values, index, of_values, of_weight, how = arguments
    one, two = ways.find(how).backward(*_split(plan), grad, values, index, (of_values, of_weight))
    return one.to(values.dtype), two.to(grad.dtype if plan[WEIGHT] is None else plan[WEIGHT].dtype)


@aggregate_backward.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    *plan, grad, values, _, of_values, of_weight, _ = arguments
    weight_type = grad.dtype if plan[WEIGHT] is None else plan[WEIGHT].dtype
    one = torch.empty_like(values) if of_values else values.new_empty(0)
    return one, grad.new_empty(plan[1].shape[0] if of_weight else 0, dtype=weight_type)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, _, how = inputs
    ctx.how = how
    ctx.save_for_backward(*tensors)


def _aggregate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *plan, values, index = ctx.saved_tensors
    wanted = ctx.needs_input_grad[VALUES], ctx.needs_input_grad[WEIGHT]
    of_values, of_weight = torch.ops.planish_maxk.aggregate_backward(
        *plan, grad.contiguous(), values, index, *wanted, ctx.how
    )
    result: list[Tensor | None] = [None] * (VALUES + 4)
    result[VALUES] = of_values if wanted[0] else None
    result[WEIGHT] = of_weight if wanted[1] else None
    return tuple(result)


aggregate.register_autograd(_aggregate_backward, setup_context=_remember)


def _split(plan: list[Any]) -> tuple[Plan, Segments | None]:
    *csr, row, start, count = plan
    # The kernels read neither which rows are cut nor a schedule.
    return Plan(*csr), None if row is None else Segments(row, start, count, row, row, 0)
