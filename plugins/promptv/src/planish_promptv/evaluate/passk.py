"""The unbiased estimator of pass@k (Chen et al., arXiv 2107.03374) and intervals for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from planish.errors import PlanishError
from planish_promptv.types import Record

CONFIDENCE = 0.95
_Z = 1.959963984540054
_RESAMPLES = 2000


class PassAtK(Record):
    """An estimate with its 95 % interval.

    Attributes:
        tasks, samples: how many tasks, and samples of each (the fewest, where tasks differ).
        how: how the interval was taken.
    """

    k: int
    value: float
    low: float
    high: float
    tasks: int
    samples: int
    how: str


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of ``k`` of ``n`` samples, ``c`` of which are right, is right: 1 - C(n-c,k)/C(n,k).

    Computed as a product, so that no large number arises.

    Raises:
        PlanishError: fewer samples than ``k``, or more right ones than samples.
    """
    if k < 1 or n < k:
        raise PlanishError(f"pass@{k} needs at least {max(k, 1)} samples a task, there are {n}")
    if not 0 <= c <= n:
        raise PlanishError(f"c = {c}: of {n} samples between 0 and {n} can be right")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a share, at 95 %."""
    share = successes / trials
    centre = share + _Z**2 / (2 * trials)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    scale = 1 + _Z**2 / trials
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def estimate(counts: Sequence[tuple[int, int]], k: int, seed: int = 0) -> PassAtK:
    """Mean pass@k over tasks, with its interval.

    One task: Wilson's interval of the success rate p, carried through 1 - (1 - p)^k. Several: percentiles of a
    bootstrap that draws tasks, and samples within each task. Where every draw gives the same mean, Wilson's interval over
    tasks.

    Args:
        counts: (samples, right ones) of each task that was attempted.
        seed: of the bootstrap.

    Raises:
        PlanishError: no task, or one with fewer samples than ``k``.
    """
    if not counts:
        raise PlanishError(f"pass@{k}: no task was attempted")
    values = [pass_at_k(n, c, k) for n, c in counts]
    value = math.fsum(values) / len(values)
    samples = min(n for n, _ in counts)
    if len(counts) == 1:
        n, c = counts[0]
        low, high = (1 - (1 - p) ** k for p in wilson(c, n))
        how = "Wilson, over samples"
    else:
        low, high = _bootstrap(counts, k, seed)
        how = "bootstrap over tasks and samples"
        if low == high:
            low, high = wilson(value * len(counts), len(counts))
            how = "Wilson, over tasks"
    return PassAtK(
        k=k,
        value=value,
        low=min(low, value),
        high=max(high, value),
        tasks=len(counts),
        samples=samples,
        how=how,
    )


def _bootstrap(counts: Sequence[tuple[int, int]], k: int, seed: int) -> tuple[float, float]:
    """Percentiles of the mean over tasks, tasks drawn with replacement and samples drawn anew in each."""
    rng = np.random.default_rng(seed)
    n, c = (np.array(column) for column in zip(*counts, strict=True))
    tables = np.zeros((len(counts), int(n.max()) + 1))
    for row, size in enumerate(n):
        tables[row, : size + 1] = [pass_at_k(int(size), right, k) for right in range(size + 1)]
    drawn = rng.integers(len(counts), size=(_RESAMPLES, len(counts)))
    right = rng.binomial(n[drawn], (c / n)[drawn])
    means = np.sort(tables[drawn, right].mean(axis=1))
    tail = round(_RESAMPLES * (1 - CONFIDENCE) / 2)
    return float(means[tail]), float(means[-tail - 1])
