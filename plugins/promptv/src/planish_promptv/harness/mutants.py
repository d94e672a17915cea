"""First-order mutants of a known good design, to measure how much a bench sees."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from planish.errors import PlanishError
from planish_promptv.harness import equivalence
from planish_promptv.harness.simulator import Simulator
from planish_promptv.harness.verilog import Token, tokens
from planish_promptv.types import Bench, SimResult, Stage, Task

Kind = Literal["operator", "constant", "edge"]
_FLIPS = {
    "&": "|",
    "|": "&",
    "^": "&",
    "~^": "^",
    "&&": "||",
    "||": "&&",
    "==": "!=",
    "!=": "==",
    "<": ">=",
    ">": "<=",
    ">=": "<",
    "+": "-",
    "-": "+",
    "<<": ">>",
    ">>": "<<",
    "~": "",
    "!": "",
}
_BASES = {"b": 2, "o": 8, "d": 10, "h": 16}
_NUMBER = re.compile(r"(?P<size>\d*)\s*'(?P<sign>[sS]?)(?P<base>[bodhBODH])\s*(?P<digits>[0-9a-fA-F_]+)\Z")


@dataclass(frozen=True, slots=True)
class Mutant:
    """A design with one token changed. ``before`` and ``after`` are the token's texts, ``line`` counts from 1."""

    task: str
    kind: Kind
    line: int
    before: str
    after: str
    text: str


@dataclass(frozen=True, slots=True)
class Judged:
    """What the bench, and the second oracle where it was asked, say about a mutant."""

    mutant: Mutant
    result: SimResult
    proof: equivalence.Proof | None = None

    @property
    def stillborn(self) -> bool:
        """It never ran: not counted."""
        return self.result.stage is not Stage.SIMULATE

    @property
    def caught(self) -> bool:
        """The bench did not accept it."""
        return not self.stillborn and not self.result.passed

    @property
    def found(self) -> bool:
        """The bench did not accept it, or it is proven to differ from the reference."""
        return self.caught or (self.proof is not None and self.proof.verdict == "different")


@dataclass(frozen=True, slots=True)
class Score:
    """Counts over the mutants that ran."""

    judged: tuple[Judged, ...] = field(repr=False)

    @property
    def counted(self) -> list[Judged]:
        return [one for one in self.judged if not one.stillborn]

    @property
    def caught(self) -> int:
        return sum(one.caught for one in self.counted)

    @property
    def found(self) -> int:
        return sum(one.found for one in self.counted)

    @property
    def share(self) -> float:
        """Caught by the bench alone."""
        return self.caught / len(self.counted) if self.counted else float("nan")

    @property
    def share_with_proof(self) -> float:
        """Caught by the bench or proven different."""
        return self.found / len(self.counted) if self.counted else float("nan")

    def survivors(self) -> dict[str, tuple[int, int]]:
        """Kind of mutation -> (survivors of the bench, all)."""
        kinds = sorted({one.mutant.kind for one in self.counted})
        return {
            kind: (
                sum(not one.caught for one in self.counted if one.mutant.kind == kind),
                sum(one.mutant.kind == kind for one in self.counted),
            )
            for kind in kinds
        }


def mutants(task: Task, limit: int = 8) -> list[Mutant]:
    """Up to ``limit`` mutants of the task's reference, the same ones every time, in the order of the text.

    Operators are exchanged, constants get their lowest bit flipped, clock edges are turned. Widths, delays and
    indices stay.

    Raises:
        PlanishError: the task has no reference.
    """
    if task.reference is None:
        raise PlanishError(f"task {task.id}: no reference design to mutate")
    places = _places(tokens(task.reference))
    seed = hashlib.sha256(task.id.encode()).digest()
    chosen = random.Random(int.from_bytes(seed[:8], "little")).sample(places, min(limit, len(places)))
    return [
        Mutant(
            task.id,
            kind,
            token.line,
            token.text,
            after,
            task.reference[: token.start] + after + task.reference[token.start + len(token.text) :],
        )
        for token, kind, after in sorted(chosen, key=lambda place: place[0].start)
    ]


def score(
    tasks: Sequence[Task],
    simulator: Simulator,
    *,
    limit: int = 8,
    bench: Callable[[Task], Bench | str | None] = lambda task: None,
    prove: bool = False,
    progress: Callable[[Judged], None] | None = None,
) -> Score:
    """Judge the mutants of every task whose reference passes.

    Args:
        limit: mutants a task at most.
        bench: the bench to score, a task; the provided one by default.
        prove: ask the second oracle about what the bench accepts.
    """

    def judge(pair: tuple[Task, Mutant]) -> Judged:
        task, mutant = pair
        result = simulator.simulate_sync(task, mutant.text, bench(task))
        proof = None
        if prove and result.passed:
            assert task.reference is not None
            proof = equivalence.prove(simulator, task.reference, mutant.text, task.top_name)
        judged = Judged(mutant, result, proof)
        if progress:
            progress(judged)
        return judged

    with ThreadPoolExecutor(simulator.slots) as threads:
        usable = [task for task in tasks if task.reference is not None and not task.excluded]
        results = threads.map(
            lambda task: simulator.simulate_sync(task, task.reference or "", bench(task)), usable
        )
        pairs = [
            (task, mutant)
            for task, result in zip(usable, list(results), strict=True)
            if result.passed
            for mutant in mutants(task, limit)
        ]
        return Score(tuple(threads.map(judge, pairs)))


def _places(stream: Sequence[Token]) -> list[tuple[Token, Kind, str]]:
    """Every token that can be changed, with what it becomes."""
    found: list[tuple[Token, Kind, str]] = []
    brackets = 0
    for i, token in enumerate(stream):
        before = stream[i - 1].text if i else ""
        brackets += (token.text == "[") - (token.text == "]")
        if token.text in ("posedge", "negedge"):
            if before == "(":  # the first event of a list is the clock, the others are asynchronous resets
                found.append((token, "edge", "negedge" if token.text == "posedge" else "posedge"))
        elif brackets or before in ("#", "`timescale", "/"):
            continue
        elif token.kind == "mark" and token.text in _FLIPS:
            found.append((token, "operator", _FLIPS[token.text]))
        elif token.kind == "number" and (after := _other(token.text)):
            found.append((token, "constant", after))
    return found


def _other(text: str) -> str:
    """The number with its lowest bit flipped, or empty where it has unknown bits or a fraction."""
    if text.isdigit():
        return str(int(text) ^ 1)
    match = _NUMBER.match(text)
    if not match:
        return ""
    base = match["base"].lower()
    value = int(match["digits"].replace("_", ""), _BASES[base]) ^ 1
    digits = {"b": f"{value:b}", "o": f"{value:o}", "d": f"{value:d}", "h": f"{value:x}"}[base]
    width = len(match["digits"].replace("_", ""))
    return f"{match['size']}'{match['sign']}{match['base']}{digits.zfill(width if base != 'd' else 1)}"
