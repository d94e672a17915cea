"""Waiting: token buckets for requests and tokens a minute, and how long to back off after a failure."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import Callable

Clock = Callable[[], float]


class TokenBucket:
    """At most ``per_minute`` units a minute, in bursts of at most as much; None lets everything pass.

    A caller takes what it needs and waits until the bucket is no longer in debt, so callers are served in order and an
    amount larger than the bucket passes too, only later.
    """

    def __init__(self, per_minute: float | None, clock: Clock = time.monotonic) -> None:
        self.rate = per_minute / 60 if per_minute else None
        self.level = self.size = per_minute or 0.0
        self._clock = clock
        self._filled = clock()

    def take(self, amount: float) -> float:
        """Take ``amount`` and return the seconds to wait before using it."""
        if self.rate is None:
            return 0.0
        now = self._clock()
        self.level = min(self.size, self.level + (now - self._filled) * self.rate) - amount
        self._filled = now
        return max(0.0, -self.level / self.rate)

    async def acquire(self, amount: float) -> None:
        """Take ``amount`` and wait for it."""
        if (seconds := self.take(amount)) > 0:
            await asyncio.sleep(seconds)

    def settle(self, difference: float) -> None:
        """Correct an earlier estimate: positive takes more, negative gives back."""
        if self.rate is not None:
            self.level = min(self.size, self.level - difference)


def backoff(failures: int, base: float, cap: float, asked: float | None, rng: random.Random) -> float:
    """Seconds to wait after the ``failures``-th failure in a row: full jitter, and never less than the server asked for.

    Args:
        base, cap: the wait is drawn from [0, min(cap, base * 2**(failures - 1))].
        asked: the server's Retry-After in seconds, or None.
    """
    drawn = rng.uniform(0.0, min(cap, base * 2 ** (failures - 1)))
    return drawn if asked is None else asked + drawn


def retry_after(header: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds that a Retry-After header asks for (a number, or a date), or None; nonsense counts as absent."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now()
        except (TypeError, ValueError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
