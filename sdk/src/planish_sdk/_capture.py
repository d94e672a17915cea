"""Learn what a model hands to each of its decoder blocks, without running any block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_sdk._inference import inference

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Call:
    """How the model calls one block on one batch, without the hidden states.

    `keyword` is the hidden states' argument name when they are not the first positional argument.
    """

    keyword: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output hidden states for `hidden` [B, S, d]."""
        args, kwargs = map_tensors(lambda tensor: tensor.to(hidden.device), (self.args, self.kwargs))
        if self.keyword is None:
            output = block(hidden, *args, **kwargs)
        else:
            output = block(*args, **{self.keyword: hidden}, **kwargs)
        if isinstance(output, (tuple, list)):
            output = output[0]
        if not isinstance(output, Tensor):
            raise PlanishError(
                f"block output: got {type(output).__name__}, needs a tensor or a tuple that begins with one"
            )
        return output


def capture(
    model: nn.Module, blocks: Sequence[nn.Module], batches: Iterator[Batch], device: torch.device | None
) -> tuple[list[Tensor], list[list[Call]]]:
    """Hidden states entering block 0, by batch, and the calls, by block and batch.

    Every block answers with its input while the model runs, so only the embedding and the mask are
    computed, and the last block stops the run. Equal tensors of different batches are stored once.

    Raises:
        PlanishError: the model does not call its blocks once each, in order, each on its predecessor's
            output alone.
    """
    share = _Share(device)
    hidden: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in blocks]
    for batch in batches:
        recorder = _Recorder(blocks)
        with inference(model), recorder.standing_in(), suppress(_Stop):
            model(**batch)
        if len(recorder.calls) < len(blocks):
            raise PlanishError(f"blocks: the model called {len(recorder.calls)} of its {len(blocks)} blocks")
        if recorder.calls[0][0].is_meta:
            raise PlanishError("hidden states: on the meta device; load the weights outside the blocks first")
        # A private copy: the walker overwrites it, while the model may hand the original to later blocks.
        hidden.append(recorder.calls[0][0].to(device=device, copy=True))
        for index, (_, call) in enumerate(recorder.calls):
            args, kwargs = map_tensors(share, (call.args, call.kwargs))
            calls[index].append(Call(call.keyword, args, kwargs))
        share.next_batch()
    return hidden, calls


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """`value` with `function` applied to the tensors in its tuples, lists and dicts; caches become None."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [map_tensors(function, item) for item in value]
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    return None if hasattr(value, "get_seq_length") else value


class _Stop(Exception):
    """All blocks have been called; what follows in the model is of no interest."""


class _Recorder:
    """Stands in for every block during one run of the model and records the calls in order."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = blocks
        self.calls: list[tuple[Tensor, Call]] = []
        self._answers: list[Tensor] = []
        self._returned: object = None
        self._answers_are_tuples = True

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        own = {id(block): block.__dict__.get("forward") for block in self.blocks}
        try:
            for block in self.blocks:
                block.__dict__["forward"] = self._stand_in(block)
            yield
        finally:
            for block in self.blocks:
                if (forward := own[id(block)]) is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.__dict__["forward"] = forward

    def _stand_in(self, block: nn.Module) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            index = len(self.calls)
            if self.blocks[index] is not block:
                raise PlanishError(
                    f"blocks: call {index} of the model is not block {index}; it does not run them in order"
                )
            hidden, call = _split(args, kwargs, index)
            if index == 1 and hidden is self._returned:
                # The model passes a block's answer on as it is, so its blocks return bare tensors.
                self._answers_are_tuples = False
                hidden = self._answers[0]
            self._check(index, hidden, call)
            self.calls.append((hidden, call))
            if index == len(self.blocks) - 1:
                raise _Stop
            answer = hidden.view_as(hidden)  # a new object, recognisable when the next block receives it
            self._answers.append(answer)
            self._returned = (answer,) if self._answers_are_tuples else answer
            return self._returned

        return forward

    def _check(self, index: int, hidden: Any, call: Call) -> None:
        if not isinstance(hidden, Tensor):
            raise PlanishError(
                f"block {index}: first argument is {type(hidden).__name__}, needs the hidden states"
            )
        if index and hidden is not self._answers[-1]:
            raise PlanishError(
                f"block {index}: the model changes the hidden states between blocks; cannot go block by block"
            )

        def refuse(tensor: Tensor) -> Tensor:
            if any(tensor is answer for answer in self._answers):
                raise PlanishError(
                    f"block {index}: takes an earlier block's output beside the hidden states; cannot go block by block"
                )
            return tensor

        map_tensors(refuse, (call.args, call.kwargs))


def _split(args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> tuple[Any, Call]:
    if args:
        return args[0], Call(None, args[1:], dict(kwargs))
    if not kwargs:
        raise PlanishError(f"block {index}: called without arguments, needs the hidden states")
    keyword = next(iter(kwargs))
    return kwargs[keyword], Call(keyword, (), {k: v for k, v in kwargs.items() if k != keyword})


class _Share:
    """Replaces a tensor by an equal one seen before, so that batches share masks and rotary tables."""

    _DEPTH = 8  # how many recent tensors of one shape a new one is compared with

    def __init__(self, device: torch.device | None) -> None:
        self._device = device
        self._recent: dict[tuple[torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
        self._this_batch: dict[int, tuple[Tensor, Tensor]] = {}

    def next_batch(self) -> None:
        self._this_batch.clear()

    def __call__(self, tensor: Tensor) -> Tensor:
        if (known := self._this_batch.get(id(tensor))) is not None:
            return known[1]
        moved = tensor.to(self._device) if self._device is not None else tensor
        recent = self._recent.setdefault((moved.shape, moved.dtype, moved.device), [])
        shared = next((old for old in recent if torch.equal(old, moved)), None)
        if shared is None:
            shared = moved
            recent[:] = [moved, *recent[: self._DEPTH - 1]]
        self._this_batch[id(tensor)] = (tensor, shared)
        return shared
