"""Which kernel runs a product: every candidate is checked and timed once for a graph and a kind of features."""

from __future__ import annotations

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Hashable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar

import torch
from torch import Tensor

from planish.errors import PlanishError
from planish_graph import cusparse
from planish_graph.graph import Graph
from planish_graph.reference import CHUNK, bag_product, csr_product, gathered_product, sampled_product

Program = Callable[[], Tensor]
HOST_CYCLES = 300_000
"""GPU cycles in which the host surely queues one call, about 0.2 ms."""
ALIKE = 1 << 20
"""Entries up to which graphs of like sizes share a choice."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a product.

    Attributes:
        name: what a choice is called.
        prepare: ``prepare(graph, *operands)`` returns the program to run, with what can be done once already done, or
            None where the candidate does not apply.
        deterministic: whether two runs give the same bits.
        keeps: first words of the keys, tuples, under which it keeps things on a graph. They are freed where it was tried
            and another one was chosen.
    """

    name: str
    prepare: Callable[..., Program | None]
    deterministic: bool = True
    keeps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Choice:
    """What was chosen and why.

    Attributes:
        name: the candidate that runs.
        seconds: median seconds a call of each candidate that gave the right result; empty when nothing was timed.
        rejected: candidate -> why it was not timed.
    """

    name: str
    seconds: dict[str, float]
    rejected: dict[str, str]


class Dispatcher:
    """Chooses among candidates, never a slower one than it measured.

    The choice is kept on the graph for each kind of operands (widths and types), and made anew when the graph changes. Small
    graphs whose sizes agree but for a factor of two share one: mini-batches, each of which is a new graph, are not all timed.
    Candidates whose result is further from the first one's than rounding explains are not timed. With
    `torch.use_deterministic_algorithms` nothing is timed: the last deterministic candidate runs, so that two runs
    agree bit by bit, in kernels of other distributions where there are any. While a CUDA graph is captured nothing
    can be timed either: what was not chosen before runs the first candidate.

    Args:
        name: of the product, for the cache.
        candidates: the first is the reference and always applies.
        group: entry points that name functions without arguments, each giving more candidates; they are asked at the
            first choice on a CUDA device.
    """

    TOLERANCE: ClassVar[dict[torch.dtype, tuple[float, float]]] = {
        torch.float64: (1e-12, 1e-10),
        torch.float32: (1e-5, 1e-4),
        torch.float16: (6e-4, 4e-3),
        torch.bfloat16: (5e-3, 3e-2),
    }
    """By type: of the difference's norm relative to the result's, and of its largest number relative to the largest."""

    def __init__(
        self, name: str, candidates: Sequence[Candidate], rounds: int = 5, group: str | None = None
    ) -> None:
        self.name = name
        self.candidates = list(candidates)
        self.rounds = rounds
        self._group = group
        self._settled_for: dict[Hashable, Choice] = {}

    def register(self, candidate: Candidate) -> None:
        """Add a candidate; graphs that chose before choose again.

        Raises:
            PlanishError: the name is taken.
        """
        if any(candidate.name == other.name for other in self.candidates):
            raise PlanishError(f"dispatcher {self.name}: candidate {candidate.name!r} is registered already")
        self.candidates.append(candidate)

    def choose(self, graph: Graph, *operands: Any) -> Choice:
        """The choice for this graph and operands like these; measured on first use."""
        return self._choice(graph, operands, capturing=False)

    def __call__(self, graph: Graph, *operands: Any) -> Tensor:
        """Run the chosen candidate."""
        capturing = graph.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        chosen = self._choice(graph, operands, capturing).name
        program = self._named(chosen).prepare(graph, *operands)
        assert program is not None
        return program()

    def _choice(self, graph: Graph, operands: tuple[Any, ...], capturing: bool) -> Choice:
        if self._group and graph.device.type == "cuda":
            self._discover()
        strict = torch.are_deterministic_algorithms_enabled()
        values = None if graph.value is None else graph.value.dtype
        key: Hashable = ("dispatch", self.name, len(self.candidates), strict, values, *map(_kind, operands))
        if capturing and not graph.has(key):
            return Choice(self.candidates[0].name, {}, {})
        return graph.kept(key, lambda: self._settled(graph.checked(), operands, strict, key))

    def _settled(self, graph: Graph, operands: tuple[Any, ...], strict: bool, key: Hashable) -> Choice:
        """The choice of an earlier graph of like sizes, if it applies and the graph is small; else a measured one."""
        if graph.num_edges > ALIKE:
            return self._measure(graph, operands, strict)
        sizes = graph.num_rows, graph.num_cols, graph.num_edges, graph.longest_row
        like = key, graph.device, *map(int.bit_length, sizes)
        choice = self._settled_for.get(like)
        if choice is None or not self._ready(choice, graph, operands):
            choice = self._settled_for[like] = self._measure(graph, operands, strict)
        return choice

    def _ready(self, choice: Choice, graph: Graph, operands: tuple[Any, ...]) -> bool:
        """Run what was chosen, so that its next call may be captured in a CUDA graph; whether it applies."""
        program = self._named(choice.name).prepare(graph, *operands)
        if program is not None:
            program()
        return program is not None

    def _discover(self) -> None:
        group, self._group = self._group, None
        for entry in entry_points(group=group or ""):
            try:
                for candidate in entry.load()():
                    if all(candidate.name != other.name for other in self.candidates):
                        self.register(candidate)
            except Exception as error:
                warnings.warn(
                    f"dispatcher {self.name}: {entry.value} gives no candidates: {error}", stacklevel=4
                )

    def _measure(self, graph: Graph, operands: tuple[Any, ...], strict: bool) -> Choice:
        if strict:
            fixed = (c for c in reversed(self.candidates) if c.deterministic and c.prepare(graph, *operands))
            return Choice(next(fixed, self.candidates[0]).name, {}, {})
        before, operands = graph.keys(), _telling(operands)
        programs: dict[str, Program] = {}
        rejected: dict[str, str] = {}
        expected: Tensor | None = None
        for candidate in self.candidates:
            try:
                program = candidate.prepare(graph, *operands)
                if program is None:
                    rejected[candidate.name] = "does not apply"
                    continue
                result = program()
            except (RuntimeError, NotImplementedError, PlanishError) as error:
                # A type or device that it does not know, or too little memory.
                rejected[candidate.name] = str(error).splitlines()[0]
                continue
            if expected is None:
                expected = result
            wrong = _wrong(expected, result, *self.TOLERANCE[expected.dtype])
            if wrong:
                rejected[candidate.name] = wrong
            else:
                programs[candidate.name] = program
        if not programs:
            raise PlanishError(f"dispatcher {self.name}: no candidate applies ({rejected})")
        choice = self._timed(programs, rejected, graph.device)
        self._free(graph, before)
        self._ready(choice, graph, operands)  # again, since what it kept is gone
        return choice

    def _named(self, name: str) -> Candidate:
        return next(candidate for candidate in self.candidates if candidate.name == name)

    def _free(self, graph: Graph, before: set[Hashable]) -> None:
        """Forget what candidates have kept on the graph since: work lists and buffers of many add up to its own size."""
        kinds = {kind for candidate in self.candidates for kind in candidate.keeps}
        for key in graph.keys() - before:
            if isinstance(key, tuple) and key[0] in kinds:
                graph.forget(key)

    def _timed(self, programs: dict[str, Program], rejected: dict[str, str], device: torch.device) -> Choice:
        on_gpu = device.type == "cuda"
        clock = gpu_seconds if on_gpu else _cpu_seconds
        with torch.cuda.device(device) if on_gpu else nullcontext():
            taken = {name: [clock(program, 1)] for name, program in programs.items()}
            rough = min(min(times) for times in taken.values())
            calls = max(1, min(20, int(2e-3 / max(rough, 1e-6))))
            # Clearly slower ones are not run again. Round after round, so that a drifting machine hurts all alike.
            near = [name for name, times in taken.items() if times[0] <= 1.3 * rough + 5e-5]
            for name in near:
                taken[name].clear()
            for _, name in itertools.product(range(self.rounds), near):
                taken[name].append(clock(programs[name], calls))
        seconds = {name: statistics.median(times) for name, times in taken.items()}
        return Choice(min(seconds, key=lambda name: seconds[name]), seconds, rejected)


def _cpu_seconds(program: Program, calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        program()
    return (time.perf_counter() - began) / calls


def gpu_seconds(program: Program, calls: int) -> float:
    """Seconds of a call on the GPU, or of the host where it takes longer to queue it: the longer of both is what a program of
    many calls waits for. The GPU is kept busy while the calls are queued, so that they are told apart."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(calls * HOST_CYCLES)
    start.record()
    began = time.perf_counter()
    for _ in range(calls):
        program()
    host = time.perf_counter() - began
    end.record()
    end.synchronize()
    return max(float(start.elapsed_time(end)) / 1000, host) / calls


def _kind(operand: Any) -> Hashable:
    """What a choice depends on: the shape beyond the first axis, and the type. Other operands stand for themselves."""
    if isinstance(operand, Tensor):
        return (tuple(operand.shape[1:]), operand.dtype, operand.is_contiguous())
    return operand  # type: ignore[no-any-return]


def _telling(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """Operands that a kernel can be judged by: random numbers in the place of a tensor whose numbers are all the same, as
    the first gradients of a network often are, or not all finite. The choice is for all that come later."""
    generator: torch.Generator | None = None
    found = list(operands)
    for place, operand in enumerate(operands):
        if not isinstance(operand, Tensor) or not operand.is_floating_point() or not operand.numel():
            continue
        low, high = torch.aminmax(operand)
        if not bool((low != high) & low.isfinite() & high.isfinite()):
            generator = generator or torch.Generator(operand.device).manual_seed(0)
            found[place] = torch.empty_like(operand).normal_(generator=generator)
    return tuple(found)


def _wrong(expected: Tensor, result: Tensor, norm: float, largest: float) -> str | None:
    """What is wrong with a result, or None. Compared some rows at a time, because large ones leave little memory; where
    the expected number is not finite, because a value of the graph is not, nothing is compared."""
    step = max(1, CHUNK // max(1, expected.numel() // max(1, len(expected))))
    squares = torch.zeros(2, dtype=torch.float64, device=expected.device)
    tops = torch.zeros_like(squares)
    for part, other in zip(torch.split(expected, step), torch.split(result, step), strict=True):
        if part.numel():
            exact = part.double()
            both = (
                torch.stack([exact - other.double(), exact])
                .masked_fill(~exact.isfinite(), 0)
                .flatten(1)
                .abs()
            )
            squares += both.square().sum(1)
            tops = torch.maximum(tops, both.amax(1))
    for what, bound, (off, of) in (
        ("norm", norm, squares.sqrt().tolist()),
        ("largest number", largest, tops.tolist()),
    ):
        worst = off / max(of, 1e-30)
        if not worst <= bound:  # NaN too
            return f"wrong by {worst:.1e} of the {what}"
    return None


def _plain(product: Callable[..., Tensor]) -> Callable[[Graph, Tensor], Program]:
    return lambda graph, x: lambda: product(graph.indptr, graph.indices, graph.value, x)


def _on_cpu(product: Callable[..., Tensor]) -> Callable[[Graph, Tensor], Program | None]:
    """For what is never the fastest on a GPU, and may be so slow there that it is not worth timing."""
    return lambda graph, x: _plain(product)(graph, x) if graph.device.type == "cpu" else None


def _cusparse(algorithm: str) -> Candidate:
    program = lambda graph, x: cusparse.product(graph, x, algorithm)  # noqa: E731
    return Candidate(f"cuSPARSE {algorithm}", program, deterministic=False, keeps=cusparse.KEEPS)


SPMM = Dispatcher(
    "spmm",
    [
        Candidate("torch CSR", _plain(csr_product), deterministic=False),
        Candidate("torch embedding bag", _plain(bag_product)),
        Candidate("torch gather and add", _on_cpu(gathered_product), deterministic=False),
        *map(_cusparse, cusparse.ALGORITHMS),
    ],
    group="planish.spmm",
)
"""A x without gradients. Distributions with kernels add theirs by `Dispatcher.register`, or by an entry point of the
group ``planish.spmm``, which is found without any call."""


SDDMM = Dispatcher(
    "sddmm",
    [
        Candidate(
            "torch in chunks",
            lambda graph, grad, x: lambda: sampled_product(graph.indptr, graph.indices, grad, x),
        )
    ],
    group="planish.sddmm",
)
"""[E] inner products of grad [N, D] and x [M, D] at the entries of A: the gradient of its values."""
