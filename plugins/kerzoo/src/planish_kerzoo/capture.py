"""CUDA graphs of forward passes: a step of a large model with short batches otherwise waits for the host to launch kernels.

The sweeps change weights where they lie, so that a graph of a forward pass, captured once, sees every perturbation.
"""

from __future__ import annotations

import functools
import itertools
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import PlanishError


class CapturedLoss:
    """A loss as one CUDA graph for each shape of its batch: ``optimizer.step(captured.bind(**batch))``.

    Each shape is captured when it is first evaluated, which costs two more forward passes, and replayed from then on,
    without gradients. All graphs share one memory pool, of the size that the largest needs. Evaluated as it is, without a
    graph, is a loss on another device than CUDA; and, after one warning that says why, one that draws random numbers (dropout
    that is on), waits for the device or has shapes that depend on values, or whose parameters are sharded.

    Args:
        module: the module whose weights are used; graphs are made anew when its parameters or buffers get other memory.
        loss: called with the tensors given to `bind`; returns a scalar, or the losses [k] of equal parts. Whatever else it
            depends on is as it was when a shape was captured.
        most: shapes that get a graph; further ones are evaluated as they are. Pad batches to a few lengths.
    """

    def __init__(self, module: nn.Module, loss: Callable[..., Tensor], most: int = 32) -> None:
        self.module = module
        self.loss = loss
        self.most = most
        self.refused: str | None = None
        """Why no graph is used, once that is known."""
        self._pool: Any = None
        self._graphs: dict[Hashable, _Graph] = {}
        self._addresses: tuple[int, ...] = ()

    @property
    def graphs(self) -> int:
        """Graphs in use, one for each shape so far."""
        return len(self._graphs)

    def bind(self, *values: Tensor, **named: Tensor) -> Callable[[], Tensor]:
        """The loss of one batch as a closure without arguments. Raises PlanishError for anything but tensors."""
        for name, value in [*enumerate(values), *named.items()]:
            if not isinstance(value, Tensor):
                raise PlanishError(
                    f"CapturedLoss: argument {name} is {type(value).__name__}: only tensors change from batch to batch; "
                    "give anything else in the loss itself"
                )
        if any(hasattr(parameter, "to_local") for parameter in self.module.parameters()):
            self._refuse("its parameters are sharded")
            return functools.partial(self.loss, *values, **named)
        held = itertools.chain(self.module.parameters(), self.module.buffers())
        addresses = tuple(tensor.data_ptr() for tensor in held)
        if addresses != self._addresses:
            self._graphs.clear()
            self._addresses = addresses
        return lambda: self._evaluate(values, named)

    @torch.no_grad()
    def _evaluate(self, values: tuple[Tensor, ...], named: dict[str, Tensor]) -> Tensor:
        inputs = [*values, *named.values()]
        if self.refused is not None or not all(value.is_cuda for value in inputs):
            return self.loss(*values, **named)
        key = (self.module.training, *named, *((value.shape, value.dtype, value.device) for value in inputs))
        if key not in self._graphs:
            if len(self._graphs) >= self.most:
                return self.loss(*values, **named)
            copies = [value.clone() for value in inputs]
            of_name = dict(zip(named, copies[len(values) :], strict=True))
            try:
                self._graphs[key] = self._capture(
                    copies, lambda: self.loss(*copies[: len(values)], **of_name)
                )
            except _Unfit as reason:
                self._refuse(str(reason))
                return self.loss(*values, **named)
        return self._graphs[key](inputs)

    def _capture(self, copies: list[Tensor], program: Callable[[], Tensor]) -> _Graph:
        device = copies[0].device
        before = torch.cuda.get_rng_state(device)
        with torch.cuda.device(device):
            aside(program)
            if not torch.equal(before, torch.cuda.get_rng_state(device)):
                raise _Unfit("it draws random numbers; is dropout on?")
            return self._record(copies, program)

    def _record(self, copies: list[Tensor], program: Callable[[], Tensor]) -> _Graph:
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        try:
            return _Graph(copies, *record(program, self._pool))
        except RuntimeError as error:
            torch.cuda.synchronize()
            first = str(error.__context__ or error).strip().partition("\n")[0]
            raise _Unfit(
                f"its capture failed; does it wait for the device, or do shapes depend on values? ({first})"
            ) from None

    def _refuse(self, reason: str) -> None:
        if self.refused is None:
            self.refused = reason
            warnings.warn(f"CapturedLoss: the loss is evaluated without a CUDA graph: {reason}", stacklevel=3)


class _Unfit(Exception):
    """Why a loss cannot be captured."""


class _Graph:
    """A captured loss with the memory that it reads its batch from and writes its result to."""

    def __init__(self, inputs: list[Tensor], graph: torch.cuda.CUDAGraph, result: Tensor) -> None:
        self.inputs, self.graph, self.result = inputs, graph, result

    def __call__(self, inputs: list[Tensor]) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.result.clone()


class Repeated:
    """A program without arguments that changes tensors in place: on CUDA captured in its third call, and then replayed."""

    def __init__(self, program: Callable[[], Any], device: torch.device) -> None:
        self.program = program
        self.calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager = device.type != "cuda"

    def __call__(self) -> None:
        self.calls += 1
        if self._eager:
            self.program()
        elif self.calls < 3:
            aside(self.program)
        else:
            if self._graph is None:
                self._graph, _ = record(self.program)
            self._graph.replay()


def aside(program: Callable[[], Any]) -> None:
    """Run beside the current stream, as everything must once before it is captured."""
    stream = _stream(torch.cuda.current_device())
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        program()
    torch.cuda.current_stream().wait_stream(stream)


def record(program: Callable[[], Any], pool: Any = None) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph of a program, which is not run by this, and what it returned: memory that a replay fills."""
    graph = torch.cuda.CUDAGraph()
    stream = _stream(torch.cuda.current_device())
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        result = program()
    return graph, result


@functools.cache
def _stream(device: int) -> torch.cuda.Stream:
    """One stream for both, because torch keeps 32 MB of workspace for every stream that multiplies matrices."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
