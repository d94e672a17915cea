"""The ways in which compressed rows are aggregated, by name. Faster kernels are added here, by any distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from planish.errors import DataError
from planish_graph.graph import Plan
from planish_graph.partition import Segments
from planish_maxk import kernels, product


@dataclass(frozen=True, slots=True)
class Way:
    """One implementation of the product and of its backward pass.

    Attributes:
        forward: ``forward(plan, cut, values, index, width)`` gives y [N, width] of the values' type.
        backward: ``backward(plan, cut, grad, values, index, wanted)`` gives the gradients of the kept values [M, k] and
            of A's values [E], where ``wanted`` says which; the other may be empty.
        usable: whether it runs on such values [M, k].
        segment: longest segment of rows that it wants in ``cut``; 0 wants none and gets None.
        deterministic: whether two runs give the same bits.
    """

    forward: Callable[[Plan, Segments | None, Tensor, Tensor, int], Tensor]
    backward: Callable[
        [Plan, Segments | None, Tensor, Tensor, Tensor, tuple[bool, bool]], tuple[Tensor, Tensor]
    ]
    usable: Callable[[Tensor], bool] = lambda values: True
    segment: int = 0
    deterministic: bool = False


def find(name: str) -> Way:
    """The way of that name.

    Raises:
        DataError: there is none.
    """
    if name not in WAYS:
        raise DataError(f"aggregate: how = {name!r} is not one of auto, {', '.join(WAYS)}")
    return WAYS[name]


def _dense(plan: Plan, cut: Segments | None, values: Tensor, index: Tensor, width: int) -> Tensor:
    return product.through_dense(plan, values, index, width)


def _entries(plan: Plan, cut: Segments | None, values: Tensor, index: Tensor, width: int) -> Tensor:
    return product.entrywise(plan, values, index, width)


def _plain_backward(
    of_values: Callable[[Plan, Tensor, Tensor], Tensor],
) -> Callable[..., tuple[Tensor, Tensor]]:
    """Both gradients, each only where wanted."""

    def backward(
        plan: Plan,
        cut: Segments | None,
        grad: Tensor,
        values: Tensor,
        index: Tensor,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        one = of_values(plan, grad, index) if wanted[0] else grad.new_empty(0)
        two = product.entry_gradient(plan, grad, values, index) if wanted[1] else grad.new_empty(0)
        return one, two

    return backward


def _triton(plan: Plan, cut: Segments | None, values: Tensor, index: Tensor, width: int) -> Tensor:
    assert cut is not None
    return kernels.forward(cut, plan.indices, plan.value, values, index, width, len(plan.indptr) - 1)


def _triton_backward(
    plan: Plan, cut: Segments | None, grad: Tensor, values: Tensor, index: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    assert cut is not None
    return kernels.backward(cut, plan.indices, plan.value, grad, values, index, wanted)


WAYS = {
    "dense": Way(_dense, _plain_backward(product.through_dense_backward), deterministic=True),
    "triton": Way(_triton, _triton_backward, kernels.usable, kernels.SEGMENT),
    "entries": Way(_entries, _plain_backward(product.entrywise_backward), deterministic=True),
}
"""``"dense"`` is the fallback, ``"entries"`` the reference; all others are kernels. See `planish_maxk.cbsr.choose`."""
