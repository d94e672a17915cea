"""What repairs do to code: the paper asserts that one agent which checks itself degenerates, and gives no measure.

These measures are ours. A repair step is a round in which a learner worked; it is compared with the simulation before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from planish_promptv.agents.result import Step
from planish_promptv.evaluate.folder import Scored
from planish_promptv.types import Record


class Share(Record):
    """``count`` of ``of``."""

    count: int = 0
    of: int = 0

    @property
    def value(self) -> float | None:
        """The share, or None of nothing."""
        return self.count / self.of if self.of else None

    def __str__(self) -> str:
        return "not measured" if self.value is None else f"{100 * self.value:.1f} % of {self.of}"


class Degeneration(Record):
    """The measures of one mode.

    Attributes:
        retained_error: repair steps after which stage, status and messages are what they were.
        no_op: repair steps after which the text is what it was; a stalled attempt ends in one.
        regression: repair steps that lost a stage which had been passed, by round.
        recall: reviews of wrong code that saw an error in it, by round.
        false_alarm: reviews of right code that saw an error, by round.
        accuracy: reviews that were right either way, by round.
    """

    retained_error: Share
    no_op: Share
    regression: dict[int, Share]
    recall: dict[int, Share]
    false_alarm: dict[int, Share]
    accuracy: dict[int, Share]


def measure(samples: Sequence[Scored]) -> Degeneration:
    """The measures over finished samples."""
    retained: list[bool] = []
    regressions: list[tuple[int, bool]] = []
    for scored in samples:
        for before, after in _repairs(scored.result.steps):
            retained.append(after.signature == before.signature)
            regressions.append((after.round, after.stage.rank < before.stage.rank))
    # A repair that changes nothing is not simulated again: it ends its attempt, and its error is retained.
    no_ops = sum(scored.result.no_ops for scored in samples)
    repairs = sum(scored.result.repairs for scored in samples)
    reviews = [review for scored in samples for review in scored.reviews]
    return Degeneration(
        retained_error=Share(count=sum(retained) + no_ops, of=len(retained) + no_ops),
        no_op=Share(count=no_ops, of=repairs),
        regression=_by_round(regressions),
        recall=_by_round((r.round, r.saw_error) for r in reviews if r.wrong),
        false_alarm=_by_round((r.round, r.saw_error) for r in reviews if not r.wrong),
        accuracy=_by_round((r.round, r.saw_error == r.wrong) for r in reviews),
    )


def _repairs(steps: Sequence[Step]) -> Iterable[tuple[Step, Step]]:
    """Simulations before and after each repair, within one attempt."""
    for before, after in pairwise(steps):
        if after.attempt == before.attempt and after.repaired:
            yield before, after


def _by_round(pairs: Iterable[tuple[int, bool]]) -> dict[int, Share]:
    counts: dict[int, list[bool]] = {}
    for number, holds in pairs:
        counts.setdefault(number, []).append(holds)
    return {number: Share(count=sum(found), of=len(found)) for number, found in sorted(counts.items())}
