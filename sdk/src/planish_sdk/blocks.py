"""Go through a decoder block by block: one block's inputs at a time, whatever the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_sdk._capture import Batch, Call, capture
from planish_sdk._inference import inference
from planish_sdk._tap import Observer, ObserverFactory, Tap
from planish_sdk.views import WeightView, weight_views

__all__ = [
    "BlockStep",
    "BlockWalker",
    "Observer",
    "ObserverFactory",
    "WeightView",
    "find_blocks",
    "weight_views",
]

Propagate = Literal["pruned", "dense"]


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the `ModuleList` of the model's repeated decoder blocks.

    It is the outermost list with the most parameters whose items share a class: `model.layers`,
    `transformer.h`, `model.decoder.layers`.

    Raises:
        PlanishError: there is none; the text lists the lists that were looked at.
    """
    outermost: dict[str, nn.ModuleList] = {}
    for path, module in model.named_modules():
        nested = any(path.startswith(f"{outer}." if outer else "") for outer in outermost)
        if isinstance(module, nn.ModuleList) and not nested and any(True for _ in module.parameters()):
            outermost[path] = module
    stacks = {path: items for path, items in outermost.items() if len({type(item) for item in items}) == 1}
    if not stacks:
        seen = [
            f"{path} ({', '.join(sorted({type(i).__name__ for i in m}))})" for path, m in outermost.items()
        ]
        raise PlanishError(
            f"decoder blocks of {type(model).__name__}: found no ModuleList of one class; looked at: {'; '.join(seen) or 'none'}"
        )
    path = max(stacks, key=lambda name: sum(p.numel() for p in stacks[name].parameters()))
    return path, stacks[path]


@dataclass(eq=False)
class BlockStep:
    """One block of the walk, on the working device, with the hidden states that enter it.

    Attributes:
        index, name: position and path, as `3` and `"model.layers.3"`.
        block: the module; change its weights in place, or load others into it.
        views: its weight matrices by name.
    """

    index: int
    name: str
    block: nn.Module
    views: dict[str, WeightView]
    _walker: BlockWalker = field(repr=False)
    _propagated: bool = field(default=False, repr=False)

    def collect(self, factory: ObserverFactory, *, outputs: bool = False) -> dict[str, Observer]:
        """Run the block over all batches and show each weight's input to an observer.

        `factory(views)` is called once for every group of views that receive the very same input tensor
        (q, k and v; gate and up), in block order, and returns the group's observer; `observer.update(x,
        outputs)` then runs once a batch. Padding is removed; an expert's matrices get their routed tokens.

        Args:
            factory: makes one observer for a group.
            outputs: also pass each view's x W^T (without bias).

        Returns:
            view name -> its group's observer. An expert that no token reached is absent.

        Raises:
            PlanishError: the block's inputs are gone, its weights are missing, or a product was not seen.
        """
        tap = Tap(self.views, factory, outputs=outputs)
        dense = self._walker.propagate == "dense"
        self._run(tap, advance=dense)
        return tap.finish()

    def forward_dense(self) -> None:
        """Send the hidden states through the block as it is now, before other weights are loaded into it."""
        self._run(None, advance=True)

    def _run(self, tap: Tap | None, *, advance: bool) -> None:
        if self._propagated:
            raise PlanishError(f"{self.name}: the hidden states have already passed it; collect before that")
        self._propagated = advance
        self._walker._run(self.index, self.block, tap, advance=advance)


class BlockWalker:
    """Iterates the blocks of `model` while the hidden states of all batches travel along.

    Capturing what the model hands to its blocks costs the embedding and the mask of each batch, no block.
    Iterating yields `BlockStep`s. On advancing, the hidden states pass the block just handled: as it is
    then (`propagate="pruned"`), or as it was when collected (`"dense"`, one forward a block instead of two).
    A step without `collect` passes them through the block as it is.

    A block is on `device` during its step and then returns to where it was; one that was on the meta device
    must be given weights before it runs and is dropped to meta again. Modes and configs of the model are
    unchanged outside the calls. Hidden states are overwritten in place; a walker is iterated once.

    Args:
        model: any decoder with a `ModuleList` of blocks.
        batches: mappings of the model's keyword arguments, or tensors of token ids [B, S]. A 2-D
            `attention_mask` also says where padding is.
        device: where blocks and hidden states are worked on; None leaves each block where it is.
        propagate: `"pruned"` or `"dense"`.
        batch_size: cut larger batches into pieces of at most this many samples.
        include_routers: list routers of experts among the views.

    Raises:
        PlanishError: no blocks, a bad option, no batch, or a model that cannot be run block by block.

    Source: sequential calibration as in SparseGPT (Frantar and Alistarh 2023, section 4); generic capture is ours.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Tensor | Mapping[str, Tensor]],
        *,
        device: torch.device | str | None = None,
        propagate: Propagate = "pruned",
        batch_size: int | None = None,
        include_routers: bool = False,
    ) -> None:
        if propagate not in get_args(Propagate):
            raise PlanishError(f"propagate: got {propagate!r}, choose from {', '.join(get_args(Propagate))}")
        if batch_size is not None and batch_size < 1:
            raise PlanishError(f"batch_size: got {batch_size}, needs at least 1")
        self.model = model
        self.path, self.blocks = find_blocks(model)
        self.propagate = propagate
        self.device = None if device is None else torch.device(device)
        self._batches = [batches] if isinstance(batches, Tensor) else batches
        self._batch_size = batch_size
        self._include_routers = include_routers
        self._keep: list[Tensor | None] = []
        self._calls: list[list[Call]] | None = None
        self.hidden: list[Tensor] = []

    def __len__(self) -> int:
        return len(self.blocks)

    def __iter__(self) -> Iterator[BlockStep]:
        if self._calls is not None:
            raise PlanishError("BlockWalker: already iterated; its hidden states are used up, make a new one")
        self.hidden, self._calls = capture(self.model, list(self.blocks), self._prepared(), self.device)
        if not self.hidden:
            raise PlanishError("batches: got none, needs at least one")
        for index, block in enumerate(self.blocks):
            home = _device(block)
            try:
                self._place(block)
                views = weight_views(block, include_routers=self._include_routers, model=self.model)
                step = BlockStep(index, f"{self.path}.{index}", block, views, self)
                yield step
                if not step._propagated:
                    step.forward_dense()
            finally:
                if _device(block) != home:
                    block.to(home)
            self._calls[index] = []

    def _prepared(self) -> Iterator[Batch]:
        inner = {id(p) for p in self.blocks.parameters()}
        entry = next((p.device for p in self.model.parameters() if id(p) not in inner), None)
        for batch in self._batches:
            named = batch if isinstance(batch, Mapping) else {self._first_argument(): batch}
            for piece in _pieces(named, self._batch_size):
                self._keep.append(_keep(piece, self.device))
                yield {
                    key: value.to(device=entry) if isinstance(value, Tensor) else value
                    for key, value in piece.items()
                }

    def _first_argument(self) -> str:
        return next(iter(inspect.signature(self.model.forward).parameters))

    def _place(self, block: nn.Module) -> None:
        here = _device(block)
        if self.device is not None and here not in (self.device, torch.device("meta")):
            block.to(self.device)

    def _run(self, index: int, block: nn.Module, tap: Tap | None, *, advance: bool) -> None:
        assert self._calls is not None
        self._place(block)
        where = _device(block)
        if where is not None and where.type == "meta":
            raise PlanishError(
                f"{self.path}.{index}: has no weights (meta device); load them before running it"
            )
        with inference(block, eager_experts=tap is not None):
            for batch, call in enumerate(self._calls[index]):
                hidden = self.hidden[batch].to(device=where)
                with nullcontext() if tap is None else tap.listening(self._keep[batch]):
                    output = call.run(block, hidden)
                if advance:
                    self._store(batch, output)

    def _store(self, batch: int, output: Tensor) -> None:
        old = self.hidden[batch]
        if (old.shape, old.dtype, old.device) == (output.shape, output.dtype, output.device):
            old.copy_(output)
        else:
            self.hidden[batch] = output


def _device(block: nn.Module) -> torch.device | None:
    return next((p.device for p in block.parameters()), None)


def _pieces(batch: Batch, size: int | None) -> Iterator[Batch]:
    tensors = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim]
    samples = tensors[0].shape[0] if tensors else 0
    if size is None or samples <= size:
        yield batch
        return
    for start in range(0, samples, size):
        yield {
            key: value[start : start + size] if isinstance(value, Tensor) and value.ndim else value
            for key, value in batch.items()
        }


def _keep(batch: Batch, device: torch.device | None) -> Tensor | None:
    """[B * S], True at real tokens; None when the batch has no 2-D mask or no padding."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2:
        return None
    keep = mask.bool().flatten()
    return None if bool(keep.all()) else keep.to(device)
