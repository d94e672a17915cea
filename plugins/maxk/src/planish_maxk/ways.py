"""The ways in which compressed rows are aggregated, by name. Faster kernels are added here, by any distribution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from planish.errors import DataError
from planish_graph.graph import Graph, Plan
from planish_maxk import cuda, kernels, product, topk

Work = tuple[Tensor, ...]
"""Up to three tensors."""
Divide = Callable[[Graph, Tensor, int], Work]


@dataclass(frozen=True, slots=True)
class Way:
    """One implementation of the product and of its backward pass.

    Attributes:
        forward: ``forward(plan, work, values, index, width)`` gives y [N, width] of the values' type.
        backward: ``backward(plan, work, grad, values, index, wanted)`` gives the gradients of the kept values [M, k] and
            of A's values [E], where ``wanted`` says which; the other may be empty.
        usable: ``usable(values, width)`` says whether it runs on such values [M, k] of rows of that width.
        divide: ``divide(graph, values, width)`` is how it divides the work; what this gives, kept on the graph, comes back
            as ``work``.
        divide_back: the same for the backward pass, where it differs.
        forget: ``forget(graph, values, width)`` frees what that keeps, for a way that was tried and not chosen.
        deterministic: whether two runs give the same bits where `torch.use_deterministic_algorithms` is on.
    """

    forward: Callable[[Plan, Work, Tensor, Tensor, int], Tensor]
    backward: Callable[[Plan, Work, Tensor, Tensor, Tensor, tuple[bool, bool]], tuple[Tensor, Tensor]]
    usable: Callable[[Tensor, int], bool] = lambda values, width: True
    divide: Divide = lambda graph, values, width: ()
    divide_back: Divide | None = None
    forget: Callable[[Graph, Tensor, int], None] | None = None
    deterministic: bool = False

    def division(self, backward: bool) -> Divide:
        """How the work of a pass is divided."""
        return self.divide_back if backward and self.divide_back else self.divide


def find(name: str) -> Way:
    """The way of that name.

    Raises:
        DataError: there is none.
    """
    if not isinstance(name, str) or name not in WAYS:
        raise DataError(f"aggregate: how = {name!r} is not one of auto, {', '.join(WAYS)}")
    return WAYS[name]


def _plain(forward: Callable[..., Tensor], of_values: Callable[[Plan, Tensor, Tensor], Tensor]) -> Way:
    """Of functions in plain torch; each gradient only where it is wanted."""

    def product_of(plan: Plan, work: Work, values: Tensor, index: Tensor, width: int) -> Tensor:
        topk.within(index, width)
        return forward(plan, values, index, width)

    def backward(
        plan: Plan, work: Work, grad: Tensor, values: Tensor, index: Tensor, wanted: tuple[bool, bool]
    ) -> tuple[Tensor, Tensor]:
        one = of_values(plan, grad, index) if wanted[0] else grad.new_empty(0)
        two = product.entry_gradient(plan, grad, values, index) if wanted[1] else grad.new_empty(0)
        return one, two

    return Way(product_of, backward, deterministic=True)


def _cuda(window: int | None) -> Way:
    """The same kernels, with long work first among so many consecutive rows, or among all."""
    return Way(
        cuda.forward if window else partial(cuda.forward, far=True),
        cuda.backward,
        cuda.fits,
        lambda graph, values, width: cuda.divide(graph, window),
        deterministic=True,
    )


def _tiled(way: Way) -> Way:
    """The same forward pass, and the backward pass by tiles of destinations."""

    def rows(values: Tensor, width: int) -> int:
        return cuda.tile_rows(width, values.device.index)

    return replace(
        way,
        backward=cuda.backward_tiles,
        usable=lambda values, width: cuda.fits(values, width) and cuda.fits_tiles(values, width),
        divide_back=lambda graph, values, width: cuda.divide_tiles(graph, rows(values, width)),
        forget=lambda graph, values, width: cuda.forget_tiles(graph, rows(values, width)),
    )


WINDOWS = _cuda(cuda.WINDOW)
WAYS = {
    "dense": _plain(product.through_dense, product.through_dense_backward),
    "cuda": WINDOWS,
    "cuda-sorted": _cuda(None),
    "cuda-tiles": _tiled(WINDOWS),
    "cuda-gather": replace(WINDOWS, backward=cuda.backward_gathered, usable=cuda.fits_gather),
    "triton": Way(
        kernels.forward,
        kernels.backward,
        lambda values, width: kernels.usable(values),
        lambda graph, values, width: kernels.divide(graph),
    ),
    "entries": _plain(product.entrywise, product.entrywise_backward),
}
"""``"dense"`` is the fallback, ``"entries"`` the reference; all others are kernels, the preferred first. See
`planish_maxk.cbsr.choose`."""
