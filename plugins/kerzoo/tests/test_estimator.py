"""Moments by exact arithmetic, and bias and variance on losses whose gradients are known."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.config import validate
from planish.errors import ConfigError, DataError
from planish_kerzoo import curves
from planish_kerzoo.config import Options
from planish_kerzoo.contest import MEZO, OURS, Budget, Plan
from planish_kerzoo.estimator import LAWS, Estimator, Nodes, Uniform
from planish_kerzoo.verdict import best_stable, verdict

# (E[r K], E[r^3 K], E[r^5 K], E[(r K)^2]) at C = 1, rho = 1
TABLE = {
    "mezo": (1, 1, 1, 1),
    "order1": (1, Fraction(3, 5), Fraction(3, 7), Fraction(9, 5)),
    "order3": (1, 0, Fraction(-5, 21), Fraction(25, 4)),
    "order5": (1, 0, 0, None),
    "order5-printed": (Fraction(13, 7), 0, 0, None),
    "nodes3": (1, 0, Fraction(-1, 16), Fraction(289, 225)),
    "nodes5": (1, 0, 0, None),
}


@pytest.mark.parametrize("name", LAWS)
def test_moments_are_those_of_the_table(name: str) -> None:
    law = LAWS[name]  # type: ignore[index]
    first, third, fifth, second = TABLE[name]
    assert [law.moment(1), law.moment(3), law.moment(5)] == [first, third, fifth]
    if second is not None:
        assert law.second() == second


def test_printed_constant_of_order_5_is_wrong_by_13_sevenths() -> None:
    assert LAWS["order5"].moment(1) == 1
    assert LAWS["order5-printed"].moment(1) == Fraction(13, 7)
    assert float(LAWS["order5"].second()) == pytest.approx(13.25, abs=0.01)
    assert float(LAWS["order5-printed"].second()) == pytest.approx(45.7, abs=0.05)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["order1", "order3", "order5"]),
    rho=st.fractions(Fraction(1, 100), Fraction(10), max_denominator=100),
)
def test_moments_hold_for_every_rho(name: str, rho: Fraction) -> None:
    """K_rho(r) = K(r / rho) / rho, integrated term by term over [-rho, rho]."""
    law = LAWS[name]  # type: ignore[index]
    assert isinstance(law, Uniform)
    for power in (1, 3, 5):
        terms = [(c / rho ** (2 * j + 2), 2 * j + 1 + power) for j, c in enumerate(law.coefficients)]
        assert sum(c * rho**k / (k + 1) for c, k in terms) == rho ** (power - 1) * law.moment(power)
    estimator = Estimator(name, rho=float(rho))  # type: ignore[arg-type]
    for sample in estimator.samples(7, 3):
        x = sample.r / float(rho)
        assert sample.weight == pytest.approx(law.kernel(x) / float(rho), rel=1e-12)


def test_fixed_argument_on_a_smaller_interval_is_a_hidden_learning_rate() -> None:
    law = LAWS["order3"]
    assert isinstance(law, Uniform)
    for rho in (Fraction(1, 2), Fraction(77, 100), Fraction(1, 10), Fraction(1)):
        assert law.moment(1, rho) == Fraction(15, 4) * (5 * rho**2 / 3 - 7 * rho**4 / 5)
        assert law.moment(3, rho) == Fraction(15, 4) * (rho**4 - rho**6)
    assert float(law.moment(1, Fraction(1, 2))) == pytest.approx(1.23, abs=0.01)
    values = [float(law.moment(1, Fraction(k, 1000))) for k in range(1, 1001)]
    assert max(values) == pytest.approx(1.86, abs=0.005)
    assert values.index(max(values)) + 1 == pytest.approx(770, abs=10)


@settings(max_examples=40, deadline=None)
@given(numbers=st.lists(st.integers(1, 40), min_size=1, max_size=5, unique=True))
def test_any_nodes_keep_the_gradient_and_remove_one_moment_a_further_node(numbers: list[int]) -> None:
    law = Nodes(tuple(Fraction(n, 7) for n in sorted(numbers)))
    assert [law.moment(2 * k + 1) for k in range(len(numbers))] == [1] + [0] * (len(numbers) - 1)
    probabilities = [abs(w) / law.total for w in law.weights]
    assert sum(probabilities) == 1
    for node, probability, weight in zip(law.nodes, probabilities, law.weights, strict=True):
        assert law.kernel(float(node)) * float(node * probability) == pytest.approx(float(weight), rel=1e-9)


@pytest.mark.parametrize(("kernel", "n"), [("nodes3", 2), ("nodes3", 6), ("nodes5", 3)])
def test_fixed_nodes_hold_their_moments_in_every_step(kernel: str, n: int) -> None:
    for step in range(3):
        samples = Estimator(kernel, n, "fixed", rho=2.0, scale=3.0).samples(0, step)  # type: ignore[arg-type]
        assert sum(s.weight * s.r for s in samples) == pytest.approx(3)
        assert sum(s.weight * s.r**3 for s in samples) == pytest.approx(0, abs=1e-12)


def test_strata_are_hit_once_each_and_nodes_in_proportion() -> None:
    radii = sorted(s.r for s in Estimator("order3", 8, "stratified").samples(1, 2))
    assert [int((r + 1) * 4) for r in radii] == list(range(8))
    nodes = [s.r for s in Estimator("nodes3", 17, "stratified").samples(1, 2)]
    assert nodes.count(0.25) in (16, 17)
    assert all(s.r == 1 and s.weight == 1 for s in Estimator("mezo").samples(5, 5))


def test_directions_are_a_function_of_run_seed_and_step() -> None:
    estimator = Estimator("order3", 3)
    assert estimator.samples(1, 2) == estimator.samples(1, 2)
    seeds = {s.seed for run in range(4) for step in range(4) for s in estimator.samples(run, step)}
    assert len(seeds) == 48


def radii_and_kernels(law: Uniform | Nodes, positions: list[float]) -> tuple[list[float], list[float]]:
    radii = [law.quantile(v) for v in positions]
    return radii, [law.kernel(x) for x in radii]


# ---- bias and variance: L(theta) = sum_k c_k <b_k, theta>^k, at theta = 0, so that the gradient is c_1 b_1 --------------


def estimates(kernel: str, degree: int, count: int = 40_000, eps: float = 0.5) -> torch.Tensor:
    """Estimates [count, 3] of the gradient of x + 5 x^degree at 0 along (1, 0, 0), eps large enough to see the bias."""
    law = LAWS[kernel]  # type: ignore[index]
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    v = torch.rand(count, generator=generator, dtype=torch.float64)
    x, k = (torch.tensor(values, dtype=torch.float64) for values in radii_and_kernels(law, v.tolist()))

    def loss(t: torch.Tensor) -> torch.Tensor:
        return t + 5 * t**degree

    step = eps * x * u[:, 0]
    return ((loss(step) - loss(-step)) / (2 * eps) * k)[:, None] * u


@pytest.mark.parametrize(
    ("kernel", "degree", "unbiased"),
    [
        *((kernel, 2, True) for kernel in ("mezo", "order1", "order3", "order5", "nodes3", "nodes5")),
        ("mezo", 3, False),
        ("order1", 3, False),
        ("order3", 3, True),
        ("nodes3", 3, True),
        ("order5", 3, True),
        ("nodes5", 3, True),
        ("order3", 5, False),
        ("nodes3", 5, False),
        ("order5", 5, True),
        ("nodes5", 5, True),
    ],
)
def test_bias_on_quadratic_cubic_and_quintic_losses(kernel: str, degree: int, unbiased: bool) -> None:
    found = estimates(kernel, degree)
    mean, error = found.mean(0), found.std(0) / len(found) ** 0.5
    off = (mean - torch.tensor([1.0, 0, 0], dtype=torch.float64)).abs() / error
    assert bool((off[1:] < 5).all())
    assert bool(off[0] < 5) == unbiased


@pytest.mark.parametrize("kernel", ["mezo", "order1", "order3", "order5", "nodes3", "nodes5"])
def test_variance_grows_by_the_second_moment(kernel: str) -> None:
    """On a linear loss with P parameters the mean square of the estimate is (P + 2) E[(r K)^2]."""
    found = estimates(kernel, 2)  # the even term cancels between the signs
    squares = found.square().sum(1)
    expected = 5 * float(LAWS[kernel].second())  # type: ignore[index]
    assert abs(float(squares.mean()) - expected) < 5 * float(squares.std()) / len(squares) ** 0.5


def test_n_directions_are_combined_one_by_one() -> None:
    losses = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0, 4.5], dtype=torch.float64)
    many = Estimator("order3", 3)
    d = many.differences(losses, 0.5)
    assert torch.equal(d, torch.tensor([2.0, -3.0, -0.5]))
    single = [Estimator("order3").differences(pair, 0.5) for pair in losses.view(3, 2)]
    assert torch.equal(d, torch.cat(single))


def test_one_sided_differences() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 5.0], dtype=torch.float64)
    mean = Estimator("mezo", 4, sides=1).differences(losses, 0.5)
    for i in range(4):  # each loss against the mean of the others
        others = torch.cat([losses[:i], losses[i + 1 :]]).mean()
        assert float(mean[i]) == pytest.approx(float(losses[i] - others) / 0.5)
    first = Estimator("mezo", 3, sides=1, baseline="unperturbed")
    assert first.forwards == 4
    assert torch.equal(first.differences(losses, 0.5), torch.tensor([2.0, 6.0, 8.0]))
    fzoo = Estimator("mezo", 3, sides=1, baseline="unperturbed", normalize=True)
    torch.testing.assert_close(
        fzoo.differences(losses, 0.5), torch.tensor([1.0, 3.0, 4.0]) / float(losses[1:].std())
    )


REFUSED = [
    ({"kernel": "order7"}, "kernel = 'order7'"),
    ({"sampling": "fixed"}, 'sampling "fixed" with kernel "order3"'),
    ({"sampling": "fixed", "kernel": "nodes3", "n": 3}, "needs nodes3 with an even n"),
    ({"sides": 1}, "sides = 1 with n = 1"),
    ({"normalize": True}, "normalize with sides = 2"),
    ({"dtype_policy": "masters"}, 'it needs restore "exact"'),
    ({"per_tensor_r": True, "sampling": "stratified"}, "per_tensor_r with sampling"),
    ({"fixed_argument": True, "kernel": "nodes3"}, "fixed_argument with kernel"),
    ({"eps": 0.0}, "eps = 0.0"),
    ({"lr": -1}, "lr = -1"),
    ({"epsilon": 1}, "unknown field 'epsilon'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_options_that_do_not_fit_are_one_line(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(Options, options, "KerZOO")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_compat_sets_what_the_authors_code_does_and_can_be_overridden() -> None:
    options = Options(compat="authors")
    assert (options.C, options.n, options.per_tensor_r, options.clip) == (4, 3, True, 400_000)
    assert (options.shrink, options.fixed_argument, options.averaging) == (4000, True, 100)
    assert Options(compat="authors", n=1).n == 1
    estimator = options.estimator()
    for step, rho in ((0, 1.0), (2000, 0.5), (4000, 1e-4), (9000, 1e-4)):
        drawn = [s for sample in estimator.samples(0, step) for s in estimator.per_tensor(sample, step, 50)]
        largest = max(abs(s.r) for s in drawn)
        assert 0.9 * rho < largest <= rho
        assert len({s.r for s in drawn}) == 150
        for s in drawn:  # 15 r (5 - 7 r^2) over n = 3
            assert s.weight == pytest.approx(15 * s.r * (5 - 7 * s.r**2) / 3)


def test_rates_beyond_the_first_that_explodes_are_not_chosen() -> None:
    final = [0.68, 0.67, 0.70, 32.0, 0.66]  # 0.66 is what exploded weights may end at
    assert best_stable(final, [True, True, True, False, False]) == 1
    assert best_stable(final, [True, False, True, True, True]) == 0
    assert best_stable([0.8, 0.6], [True, True]) == 1
    assert best_stable([float("inf"), 0.1], [False, True]) == 0


def test_verdict_and_curves_of_a_comparison(tmp_path: Path) -> None:
    def entry(final: float, tuning: float, averaged: float = 0.0) -> dict[str, Any]:
        tasks = ("sst2", "cb")
        seeds = [final, final + 0.01, final - 0.01]
        objective = {"sst2": seeds, "cb": [v + 0.005 * (i - 1) for i, v in enumerate(seeds)]}
        rates = {key: [tuning, tuning + 0.1] for key in tasks}
        return {
            "lr": dict.fromkeys(tasks, 1e-4),
            "tuning": rates,
            "averaged tuning": {key: [v + averaged for v in values] for key, values in rates.items()},
            "steady": {key: [True, True] for key in tasks},
            "objective": objective,
            "averaged objective": {key: [v + averaged for v in values] for key, values in objective.items()},
            "curve forwards": [0, 4, 8],
            "curve objective": {key: [1.0, 0.9, final] for key in tasks},
            "curve accuracy": {key: [0.5, 0.6, 0.7] for key in tasks},
        }

    ours, other = OURS[:2]
    budget = Budget(
        {"m": Plan(8, (1e-4, 1e-3), (100,), (MEZO, ours, other))}, ("sst2", "cb"), seeds=(0, 1, 2)
    )
    result: dict[str, Any] = {
        "m": {"grid": [], MEZO: entry(0.6, 0.6), ours: entry(0.5, 0.5), other: entry(0.4, 0.9)}
    }
    found = verdict(result, budget)["last"]
    assert found["best of ours on the tuning seeds"] == ours  # although the other one ends lower
    assert found["m"]["at or below MeZO"] == ["sst2", "cb"]
    assert found["m"]["holds"]
    result["m"][ours] = entry(0.7, 0.5)
    assert verdict(result, budget)["averaged"]["m"]["worse"] == ["sst2", "cb"]
    result["m"] |= {MEZO: entry(0.6, 0.6, averaged=0.2), ours: entry(0.7, 0.5, averaged=-0.2)}
    assert verdict(result, budget)["last"]["m"]["worse"] == ["sst2", "cb"]
    either = verdict(result, budget)["either"]  # MeZO by its last weights, ours by their mean
    assert (either["weights"], either["m"]["weights of MeZO"]["cb"], either["m"]["holds"]) == (
        "averaged",
        "last",
        True,
    )
    assert either["m"]["difference and standard error"]["sst2"][0] == pytest.approx(-0.1)
    result["m"][ours]["steady"]["cb"] = [False, True]  # no rate can be relied on
    result["m"][ours]["steady"]["sst2"] = [False, True]
    assert verdict(result, budget)["last"]["best of ours on the tuning seeds"] == other
    (tmp_path / "c.json").write_text(json.dumps({"parts": {"compare": result}}))
    curves.main(tmp_path / "c.json", tmp_path / "c.svg")
    assert ElementTree.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "c.svg").read_text().count("<polyline") == 2 * 2 * 3
    with pytest.raises(DataError, match="holds no comparison"):
        curves.main(tmp_path / "absent", tmp_path / "c.svg")
