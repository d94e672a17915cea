"""The acceptance run: every reference design against its own bench, beside the verdicts that are known for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from planish_promptv.harness.simulator import Simulator
from planish_promptv.harness.tools import icarus_major
from planish_promptv.types import SimResult, Status, Task

COMPILE_ERRORS = frozenset({Status.SYNTAX_ERROR, Status.ELAB_ERROR, Status.UNSUPPORTED})


@dataclass(frozen=True, slots=True)
class Outcome:
    """The reference of one task, judged.

    Attributes:
        known: the verdict on record for the installed Icarus Verilog, or None.
    """

    task: Task
    result: SimResult
    known: Status | None

    @property
    def agrees(self) -> bool | None:
        """Whether the verdict is the one on record: status (compile errors are one kind there) and TIMEOUT marker."""
        if self.known is None:
            return None
        if self.known in COMPILE_ERRORS:
            return self.result.status in COMPILE_ERRORS
        return self.result.status is self.known and self.result.timeout_flag == self.task.golden_timeout


@dataclass(frozen=True, slots=True)
class Report:
    """All outcomes of one benchmark in its own order; ``seconds`` is the wall time of the whole pass."""

    outcomes: tuple[Outcome, ...]
    seconds: float

    @property
    def counts(self) -> dict[str, int]:
        """Verdict -> tasks; a pass with a TIMEOUT marker counts apart."""
        return dict(sorted(Counter(map(label, self.outcomes)).items()))

    @property
    def disagreements(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.agrees is False]

    @property
    def refused(self) -> int:
        """References that the guard refused."""
        return sum(outcome.result.status is Status.GUARD_REJECT for outcome in self.outcomes)


def label(outcome: Outcome) -> str:
    """The status, with ``+timeout`` for a pass whose bench printed TIMEOUT."""
    flagged = outcome.result.passed and outcome.result.timeout_flag
    return f"{outcome.result.status}{'+timeout' if flagged else ''}"


def run(
    tasks: Sequence[Task], simulator: Simulator, progress: Callable[[Outcome], None] | None = None
) -> Report:
    """Judge the reference of every task that is not excluded, ``simulator.slots`` at a time."""
    major = icarus_major()

    def judge(task: Task) -> Outcome:
        assert task.reference is not None
        result = simulator.simulate_sync(task, task.reference)
        outcome = Outcome(task, result, task.golden.get(major) if major else None)
        if progress:
            progress(outcome)
        return outcome

    start = time.monotonic()
    chosen = [task for task in tasks if task.reference is not None and not task.excluded]
    with ThreadPoolExecutor(simulator.slots) as threads:
        outcomes = tuple(threads.map(judge, chosen))
    return Report(outcomes, time.monotonic() - start)
