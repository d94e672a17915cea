"""What the generation of one design ends in."""

from __future__ import annotations

from typing import Literal

from planish_promptv.types import BenchQuality, Record, SimResult, Stage, Status

State = Literal["success", "exhausted", "stalled", "format_error", "context_overflow", "budget", "cancelled"]
STATES: tuple[State, ...] = (
    "success",
    "exhausted",
    "stalled",
    "format_error",
    "context_overflow",
    "budget",
    "cancelled",
)


class Step(Record):
    """One simulation of the loop.

    Attributes:
        round: 0 is the simulation of the drafts.
        code, bench: digests of what was simulated; ``bench`` is empty where the task brings its own.
        signature: of stage, status and messages; equal where a repair changed nothing that shows.
        reviewed: verdict of the review before this step, empty before the drafts' simulation.
        reviewed_code: digest of the code that was reviewed.
        repaired: sides that a learner worked on. changed: sides whose text is another than before.
    """

    attempt: int
    round: int
    code: str
    bench: str = ""
    stage: Stage
    status: Status
    mismatches: int | None = None
    samples: int | None = None
    signature: str = ""
    accepted: bool = False
    vacuous: bool = False
    reviewed: str = ""
    reviewed_code: str = ""
    repaired: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


class GenerationResult(Record):
    """Outcome of `loop.generate`. Running out of rounds, budget or patience is a state, not an exception.

    Attributes:
        code, bench: the accepted pair, or the best candidate; None where no usable code came.
        sim, quality: its simulation, and whether its bench can fail.
        attempts: how each attempt ended. steps: every simulation.
        repairs: rounds in which a learner worked; no_ops: those of them that left both texts as they were.
        format_errors: replies that could not be used, the repeated question included.
        cost: US dollars, None where a price is unknown. estimated: some tokens were not counted by the server.
        model_s: seconds spent waiting for models; wall_s: in all.
        detail: which limit was reached, where one was.
    """

    task: str
    sample: int
    mode: str
    state: State
    code: str | None = None
    bench: str | None = None
    sim: SimResult | None = None
    quality: BenchQuality | None = None
    attempts: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    repairs: int = 0
    no_ops: int = 0
    format_errors: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    cost: float | None = None
    model_s: float = 0.0
    wall_s: float = 0.0
    detail: str = ""

    @property
    def succeeded(self) -> bool:
        """The loop accepted its own candidate; what a benchmark says about it is another question."""
        return self.state == "success"

    @property
    def rounds(self) -> int:
        """Repair rounds over all attempts."""
        return sum(step.round > 0 for step in self.steps)
