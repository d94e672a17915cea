"""What a sample and an evaluation spend, and the limits at which they stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from planish_promptv.config import Budget
from planish_promptv.models.protocol import Provider, Reply, Request, Usage


class BudgetReached(Exception):
    """A limit is reached; the text names it. ``total`` where it is the evaluation's."""

    def __init__(self, text: str, total: bool = False) -> None:
        super().__init__(text)
        self.total = total


class Cancelled(Exception):
    """The user asked to stop."""


@dataclass(slots=True)
class Spending:
    """Counts calls, tokens, money and waiting, and refuses what would begin beyond a limit.

    Calls that a ledger answers count like paid ones, and limits are looked at before questions that are asked together,
    not between them: a resumed or replayed sample stops where the uninterrupted one did.

    Attributes:
        cost: US dollars, or None once a model without a known price was called.
        above: the spending of the whole evaluation, or None.
        stopping: once it answers True, no further call begins; calls in flight are finished, because they are paid for.
    """

    budget: Budget = field(default_factory=lambda: Budget())
    above: Spending | None = None
    stopping: Callable[[], bool] = lambda: False
    calls: int = 0
    prompt: int = 0
    completion: int = 0
    estimated: bool = False
    seconds: float = 0.0
    cost: float | None = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt + self.completion

    def allow(self, calls: int) -> None:
        """Let ``calls`` more calls begin.

        Raises:
            BudgetReached: a limit is reached.
        """
        for spending in filter(None, (self.above, self)):
            for name in ("calls", "tokens", "cost", "seconds"):
                limit, spent = getattr(spending.budget, name), getattr(spending, name)
                after = (spent or 0) + calls - 1 if name == "calls" else spent
                if limit is not None and after is not None and after >= limit:
                    raise BudgetReached(f"{name}: {spent:g} of {limit:g}", total=spending is self.above)

    async def call(self, provider: Provider, request: Request) -> Reply:
        """Ask ``provider`` and count what it took.

        Raises:
            Cancelled: the user asked to stop.
            ModelError: as the provider raises it.
        """
        if self.stopping():
            raise Cancelled
        reply = await provider.complete(request)
        price = provider.price(request.model)
        for spending in filter(None, (self, self.above)):
            spending._count(reply.usage, reply.latency_s, price.of(reply.usage) if price else None)
        return reply

    def _count(self, usage: Usage, seconds: float, cost: float | None) -> None:
        self.calls += 1
        self.prompt += usage.prompt
        self.completion += usage.completion
        self.estimated |= usage.estimated
        self.seconds += seconds
        self.cost = None if cost is None or self.cost is None else self.cost + cost
