"""Watch the matrix products of a block and hand each weight's inputs and outputs to observers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from planish.errors import PlanishError
from planish_sdk._capture import map_tensors
from planish_sdk.views import WeightView


class Observer(Protocol):
    """Accumulates statistics of one input and of the weights that share it."""

    def update(self, x: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """One batch: `x` [T, d_in]; `outputs[view name]` [T, d_out] = x W^T, without bias (empty unless asked for).

        Both are in the model's dtype, on the block's device, without padding; they must not be written to.
        """


ObserverFactory = Callable[[tuple[WeightView, ...]], Observer]

# function -> where it takes its input and its weight (position, keyword), and whether it reads x @ w, not x @ w.T
_Place = tuple[int, str]
_PRODUCTS: dict[Any, tuple[_Place, _Place, bool]] = {
    F.linear: ((0, "input"), (1, "weight"), False),
    torch.addmm: ((1, "mat1"), (2, "mat2"), True),
    torch.Tensor.addmm: ((1, "mat1"), (2, "mat2"), True),
    torch.matmul: ((0, "input"), (1, "other"), True),
    torch.Tensor.matmul: ((0, "self"), (1, "other"), True),
    torch.mm: ((0, "input"), (1, "mat2"), True),
    torch.Tensor.mm: ((0, "self"), (1, "mat2"), True),
    torch.bmm: ((0, "input"), (1, "mat2"), True),
    torch.Tensor.bmm: ((0, "self"), (1, "mat2"), True),
    torch.baddbmm: ((1, "batch1"), (2, "batch2"), True),
}
_BIASED = {torch.addmm, torch.Tensor.addmm}


@dataclass
class _Shared:
    """An input seen in the running forward pass, with the outputs of the weights it has met so far.

    `original` keeps the model's tensor alive, so that its address cannot be reused while the entry is open.
    """

    original: Tensor
    x: Tensor
    keep: Tensor | None
    names: list[str] = field(default_factory=list)
    outputs: dict[str, Tensor] = field(default_factory=dict)


class Tap(TorchFunctionMode):
    """Recognises the weights of `views` by their memory in every product that runs inside `listening`.

    Weights that meet the very same input tensor form a group with one observer. Groups are learned in the
    first pass that shows a weight; from then on a group is fed as soon as its last member was seen.
    """

    def __init__(self, views: Mapping[str, WeightView], factory: ObserverFactory, *, outputs: bool) -> None:
        super().__init__()
        self._views = views
        self._factory = factory
        self._wants_outputs = outputs
        self._by_address = {view.stored().data_ptr(): view for view in views.values()}
        self._groups: dict[str, frozenset[str]] = {}
        self._observers: dict[str, Observer] = {}
        self._open: dict[tuple[int, int, int], _Shared] = {}
        self._keep: Tensor | None = None
        self._muted = False

    @contextmanager
    def listening(self, keep: Tensor | None) -> Iterator[None]:
        """Feed the observers from one forward pass; `keep` [B * S] is False at padding, None without any."""
        self._keep = keep
        hooks = [] if keep is None else [self._replay_real_tokens(m, keep) for m in self._routing_modules()]
        try:
            with self:
                yield
            for key in list(self._open):
                self._feed(self._open.pop(key))
        finally:
            self._open.clear()
            for hook in hooks:
                hook()

    def finish(self) -> dict[str, Observer]:
        """The observers by view name; an expert that no token reached has none.

        Raises:
            PlanishError: a matrix was never used in a product this class knows.
        """
        seen = {self._views[name].family for name in self._observers}
        for view in self._views.values():
            if view.family not in seen:
                raise PlanishError(
                    f"{view.name}: its product with the input was never seen; it cannot be calibrated"
                )
        return {name: self._observers[name] for name in self._views if name in self._observers}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        product = _PRODUCTS.get(func)
        if product is not None and not self._muted:
            x, weight = (_argument(place, args, kwargs) for place in product[:2])
            if isinstance(x, Tensor) and isinstance(weight, Tensor) and x.numel():
                linear_bias = func is F.linear and _argument((2, "bias"), args, kwargs) is not None
                self._see(x, weight, product[2], result, biased=linear_bias or func in _BIASED)
        return result

    def _see(self, x: Tensor, weight: Tensor, plain: bool, result: Tensor, *, biased: bool) -> None:
        view = self._by_address.get(weight.data_ptr())
        if view is None:
            return
        used = weight.mT if plain else weight  # [d_out, d_in] as the product reads it
        if used.ndim == 3 and view.expert is not None:
            raise PlanishError(
                f"{view.family}: all experts run in one batched product; their tokens cannot be told apart"
            )
        square = view.shape[0] == view.shape[1]  # only the strides tell a square matrix from its transpose
        if tuple(used.shape) != view.shape or (square and used.stride() != view.read().stride()):
            raise PlanishError(
                f"{view.name}: multiplied as {list(used.shape)}, its view is {list(view.shape)}; wrong layout"
            )
        group = self._groups.get(view.name)
        key = (x.data_ptr(), x.numel(), x._version)
        shared = self._open.get(key)
        if shared is None:
            # What waits for the end of the pass is copied: the model may go on to change it in place.
            shared = self._open[key] = _Shared(x, x.clone() if group is None else x, self._keep)
        shared.names.append(view.name)
        complete = group == frozenset(shared.names)
        if self._wants_outputs:
            # Subtracting a large bias again would cancel the digits that matter, hence a second product.
            output = F.linear(x, used) if biased else result
            shared.outputs[view.name] = output if biased or complete else output.clone()
        if complete:
            self._feed(self._open.pop(key))

    def _feed(self, shared: _Shared) -> None:
        names = frozenset(shared.names)
        known = {self._groups.get(name) for name in names}
        if known == {None}:
            members = tuple(view for name, view in self._views.items() if name in names)
            observer = self._factory(members)
            for name in names:
                self._groups[name] = names
                self._observers[name] = observer
        elif known != {names}:
            raise PlanishError(f"{', '.join(sorted(names))}: share an input in one batch but not in another")
        rows = _Rows(shared.keep, min(names))
        self._observers[shared.names[0]].update(
            rows(shared.x), {name: rows(output) for name, output in shared.outputs.items()}
        )

    def _routing_modules(self) -> list[nn.Module]:
        found = {id(v.routed_by): v.routed_by for v in self._views.values() if v.routed_by is not None}
        return list(found.values())

    def _replay_real_tokens(self, module: nn.Module, keep: Tensor) -> Callable[[], None]:
        """Observe a mixture of experts on the real tokens alone, in a second pass of this module.

        Inside, rows are in an order that only the router knows, so padding cannot be cut from them later;
        every token takes its own way through the experts, so a pass over the real ones shows the same rows.
        """

        def before(module: nn.Module, args: Any) -> None:
            self._muted = True

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self._muted = False
            self._keep = None
            real_args, real_kwargs = map_tensors(lambda tensor: _real_tokens(tensor, keep), (args, kwargs))
            module.forward(*real_args, **real_kwargs)
            self._keep = keep

        handles = [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after, with_kwargs=True),
        ]

        def remove() -> None:
            self._muted = False
            for handle in handles:
                handle.remove()

        return remove


def _argument(place: _Place, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    position, keyword = place
    return args[position] if position < len(args) else kwargs.get(keyword)


def _real_tokens(tensor: Tensor, keep: Tensor) -> Tensor:
    """The rows of real tokens of [B * S, ...], or [1, n, ...] of [B, S, ...]; other tensors as they are."""
    if tensor.ndim and tensor.shape[0] == keep.numel():
        return tensor[keep.to(tensor.device)]
    if tensor.ndim > 1 and tensor.shape[0] * tensor.shape[1] == keep.numel():
        return tensor.flatten(0, 1)[keep.to(tensor.device)][None]
    return tensor


@dataclass(frozen=True)
class _Rows:
    """Flattens [..., d] to [T, d] and drops padding."""

    keep: Tensor | None
    name: str

    def __call__(self, tensor: Tensor) -> Tensor:
        rows = tensor.reshape(-1, tensor.shape[-1])
        if self.keep is None:
            return rows
        if rows.shape[0] != self.keep.numel():
            raise PlanishError(
                f"{self.name}: its input has {rows.shape[0]} rows for {self.keep.numel()} positions; padding cannot be removed"
            )
        return rows[self.keep.to(rows.device)]
