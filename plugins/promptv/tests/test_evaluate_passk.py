"""pass@k: check values, bounds, intervals."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import PlanishError
from planish_promptv.evaluate.passk import estimate, pass_at_k, wilson


@pytest.mark.parametrize(
    ("n", "c", "k", "value"),
    [
        (20, 0, 10, 0),
        (20, 1, 10, 0.5),
        (20, 1, 5, 0.25),
        (20, 3, 5, 0.600877),
        (20, 11, 10, 1),
        (5, 1, 1, 0.2),
    ],
)
def test_check_values(n: int, c: int, k: int, value: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(value, abs=1e-6)


@settings(deadline=None)
@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_product_form_equals_binomials(nck: tuple[int, int, int]) -> None:
    n, c, k = nck
    assert pass_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-9)


def test_large_counts_do_not_overflow() -> None:
    assert 0 < pass_at_k(1_000_000, 1, 1000) < 1


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0)])
def test_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(PlanishError, match=r"pass@|c ="):
        pass_at_k(n, c, k)
    with pytest.raises(PlanishError, match="no task"):
        estimate([], 1)


def test_denominator_is_the_number_of_tasks() -> None:
    assert estimate([(20, 20)] * 50, 5).value == 1.0
    assert estimate([(20, 20)] * 49 + [(20, 0)], 5).value == pytest.approx(49 / 50)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.sampled_from([1, 5, 10]))
def test_interval_holds_the_estimate(counts: list[int], k: int) -> None:
    found = estimate([(20, c) for c in counts], k)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    held = 0
    runs = 60
    for _ in range(runs):
        rates = [rng.betavariate(2, 3) for _ in range(30)]
        counts = [(20, sum(rng.random() < p for _ in range(20))) for p in rates]
        found = estimate(counts, 5)
        # Truth over the population that tasks are drawn from: E[1 - (1-p)^5], p ~ Beta(2, 3).
        truth = 1 - math.prod((3 + i) / (5 + i) for i in range(5))
        held += found.low <= truth <= found.high
    assert held >= 0.88 * runs


def test_wilson() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-3))
    low, high = wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))
