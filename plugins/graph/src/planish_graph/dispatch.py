"""Which kernel runs a product: every candidate is checked and timed once for a graph and a kind of features."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from planish import timing
from planish.errors import PlanishError
from planish_graph.graph import Graph
from planish_graph.reference import bag_product, csr_product, gathered_product

Program = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to compute a product.

    Attributes:
        name: what a choice is called.
        prepare: ``prepare(graph, *operands)`` returns the program to run, with what can be done once already done, or
            None where the candidate does not apply.
        deterministic: whether two runs give the same bits.
    """

    name: str
    prepare: Callable[..., Program | None]
    deterministic: bool = True


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

    The choice is kept on the graph for each kind of operands (widths and types), and made anew when the graph changes.
    Candidates whose result differs from the first one's by more than ``tolerance`` of its largest number are not
    timed. With `torch.use_deterministic_algorithms` nothing is timed: the first deterministic candidate runs, so that
    two runs agree bit by bit.

    Args:
        name: of the product, for the cache.
        candidates: in order of preference; the first is the reference, always applies and is deterministic.
        tolerance: relative to the largest number of the reference result, by type.
    """

    TOLERANCE: ClassVar[dict[torch.dtype, float]] = {
        torch.float64: 1e-10,
        torch.float32: 1e-4,
        torch.float16: 4e-3,
        torch.bfloat16: 3e-2,
    }

    def __init__(self, name: str, candidates: Sequence[Candidate], rounds: int = 5) -> None:
        self.name = name
        self.candidates = list(candidates)
        self.rounds = rounds

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
        strict = torch.are_deterministic_algorithms_enabled()
        names = tuple(candidate.name for candidate in self.candidates)
        key: Hashable = ("dispatch", self.name, names, strict, *map(_kind, operands))
        return graph.checked().kept(key, lambda: self._measure(graph, operands, strict))

    def __call__(self, graph: Graph, *operands: Any) -> Tensor:
        """Run the chosen candidate."""
        chosen = self.choose(graph, *operands).name
        candidate = next(c for c in self.candidates if c.name == chosen)
        program = candidate.prepare(graph, *operands)
        assert program is not None
        return program()

    def _measure(self, graph: Graph, operands: tuple[Any, ...], strict: bool) -> Choice:
        if strict:
            chosen = next(c for c in self.candidates if c.deterministic and c.prepare(graph, *operands))
            return Choice(chosen.name, {}, {})
        programs: dict[str, Program] = {}
        rejected: dict[str, str] = {}
        expected: Tensor | None = None
        for candidate in self.candidates:
            program = candidate.prepare(graph, *operands)
            if program is None:
                rejected[candidate.name] = "does not apply"
                continue
            try:
                result = program()
            except (RuntimeError, NotImplementedError) as error:  # a type or device its library does not know
                rejected[candidate.name] = str(error).splitlines()[0]
                continue
            if expected is None:
                expected = result
            worst = _difference(expected, result)
            if worst <= self.TOLERANCE[expected.dtype]:
                programs[candidate.name] = program
            else:
                rejected[candidate.name] = f"wrong by {worst:.1e} of the largest number"
        if not programs:
            raise PlanishError(f"dispatcher {self.name}: no candidate applies ({rejected})")
        device = "cuda" if graph.device.type == "cuda" else "cpu"
        taken = timing.interleaved(programs, warmup=1, rounds=self.rounds, device=device)
        seconds = {name: t.seconds.median for name, t in taken.items()}
        return Choice(min(seconds, key=lambda name: seconds[name]), seconds, rejected)


def _kind(operand: Any) -> Hashable:
    """What a choice depends on: the shape beyond the first axis, and the type. Other operands stand for themselves."""
    if isinstance(operand, Tensor):
        return (tuple(operand.shape[1:]), operand.dtype, operand.is_contiguous())
    return operand  # type: ignore[no-any-return]


def _difference(expected: Tensor, result: Tensor) -> float:
    if result.numel() == 0:
        return 0.0
    scale = expected.abs().max().double().clamp_min(1e-30)
    worst = float((expected.double() - result.double()).abs().max() / scale)
    return worst if worst == worst else float("inf")


def _plain(product: Callable[..., Tensor]) -> Callable[[Graph, Tensor], Program]:
    return lambda graph, x: lambda: product(graph.indptr, graph.indices, graph.value, x)


def _bag(graph: Graph, x: Tensor) -> Program | None:
    fits = x.dtype in (torch.float32, torch.float64) and graph.num_edges > 0
    return (lambda: bag_product(graph.indptr, graph.indices, graph.value, x)) if fits else None


SPMM = Dispatcher(
    "spmm",
    [
        Candidate("torch CSR", _plain(csr_product)),
        Candidate("torch embedding bag", _bag),
        Candidate("torch gather and add", _plain(gathered_product), deterministic=False),
    ],
)
"""A x without gradients. Distributions with kernels add theirs by `Dispatcher.register`."""
