"""The optimizer on small networks: what moves, what does not, and that the order of everything else is irrelevant."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.errors import DataError, PlanishError, RunError
from planish_kerzoo import CapturedLoss, noise, sweep
from planish_kerzoo.layout import lay_out
from planish_kerzoo.optimizer import KerZOO
from planish_kerzoo.sweep import round_stochastically

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


class Net(nn.Module):
    """Tied weights, a buffer, a frozen layer and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.norm = nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x: Tensor = self.head(self.drop(self.norm(torch.tanh(self.frozen(self.embed(ids))))))
        return x


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(0)
    return Net().to(dtype)


def objective(model: nn.Module) -> Callable[[], Tensor]:
    ids = torch.arange(64) % 20
    return lambda: nn.functional.cross_entropy(model(ids).float(), (ids * 7 + 3) % 20)


def train(model: nn.Module, steps: int = 5, **options: Any) -> list[Tensor]:
    optimizer = KerZOO(model, **{"lr": 1e-3, "seed": 3, **options})
    for _ in range(steps):
        optimizer.step(objective(model))
    optimizer.finish()
    return weights(model)


def weights(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.state_dict().values()]


def equal(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_only_what_is_trained_moves_and_tied_weights_move_once() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = KerZOO(model, lr=1e-3, kernel="mezo")
    assert [work.segment.name for work in optimizer.works] == ["embed.weight", "norm.bias", "norm.weight"]
    optimizer.step(objective(model))
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"embed.weight", "head.weight", "norm.weight", "norm.bias"}
    assert model.head.weight is model.embed.weight
    assert model.training
    assert model.drop.training
    model.norm.eval()
    optimizer.step(objective(model))
    assert not model.norm.training


def test_one_step_is_the_formula() -> None:
    """theta - lr sum_i a_i d_i u_i with the directions of `noise`, each d by itself."""
    model = nn.Linear(6, 5).double()
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(1)).double()
    start = [p.detach().clone() for p in (model.bias, model.weight)]
    optimizer = KerZOO(model, lr=0.1, eps=0.01, n=3, seed=11, restore="exact")
    samples = optimizer.estimator.samples(11, 0)

    def loss_at(bias: Tensor, weight: Tensor) -> Tensor:
        return (x @ weight.T + bias).pow(3).mean().float().double()

    expected = [value.clone() for value in start]
    for sample in samples:
        u = noise.directions(torch.tensor([noise.as_int64(sample.seed)]), 0, 2, "gaussian")[0].double()
        parts = [
            u[:5],
            u[noise.CHUNK : noise.CHUNK + 30].view(5, 6),
        ]  # bias before weight, each from its own chunk
        plus, minus = (
            loss_at(*(v + sign * 0.01 * sample.r * p for v, p in zip(start, parts, strict=True)))
            for sign in (1, -1)
        )
        d = (plus - minus) / 0.02
        expected = [v - 0.1 * sample.weight * d * p for v, p in zip(expected, parts, strict=True)]
    optimizer.step(lambda: model(x).pow(3).mean())
    torch.testing.assert_close([model.bias.detach(), model.weight.detach()], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"n": 3}, {"sides": 1, "n": 3, "kernel": "mezo"}], ids=str)
def test_a_step_without_an_update_restores_exactly(dtype: torch.dtype, options: dict[str, Any]) -> None:
    model = net(dtype)
    before = weights(model)
    optimizer = KerZOO(model, restore="exact", **options)
    seen: list[Tensor] = []

    def closure() -> Tensor:
        seen.append(model.embed.weight.detach().clone())
        return torch.tensor(float("nan"))

    optimizer.step(closure)
    assert equal(weights(model), before)
    assert all(not torch.equal(value, before[0]) for value in seen)  # it was perturbed meanwhile


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
@pytest.mark.parametrize("n", [1, 3])
def test_deferring_and_cutting_differently_change_no_bit(
    dtype: torch.dtype, restore: str, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(net(dtype), restore=restore, n=n)
    assert equal(train(net(dtype), restore=restore, n=n, defer=True), plain)
    monkeypatch.setattr(sweep, "BLOCK", 1)
    assert equal(train(net(dtype), restore=restore, n=n), plain)


def test_the_order_of_parameters_and_groups_changes_no_bit() -> None:
    plain = train(net())
    model = net()
    named = list(model.named_parameters())[::-1]
    optimizer = KerZOO([{"params": named[:2]}, {"params": named[2:]}], lr=1e-3, seed=3)
    model.eval()
    for _ in range(5):
        optimizer.step(objective(model))
    assert equal(weights(model), plain)


def test_deferred_steps_need_two_sweeps() -> None:
    model = net()
    optimizer = KerZOO(model, defer=True)
    for _ in range(10):
        optimizer.step(objective(model))
    assert optimizer.sweeps == 20
    assert optimizer.forwards == 20


def test_loss_falls_with_every_estimator() -> None:
    for options in (
        {"kernel": "mezo", "lr": 1e-2},
        {"kernel": "order3", "lr": 5e-3},
        {"kernel": "nodes3", "n": 2, "sampling": "fixed", "lr": 1e-2},
        {"kernel": "mezo", "sides": 1, "n": 4, "u": "rademacher", "lr": 2e-2},
        {"kernel": "mezo", "sides": 1, "n": 4, "baseline": "unperturbed", "normalize": True, "lr": 1e-2},
        {"compat": "authors", "lr": 1e-3},
    ):
        model = net().eval()
        before = float(objective(model)().detach())
        train(model, steps=40, **options)
        assert float(objective(model)().detach()) < before - 0.03, options


def test_groups_have_their_own_rates_and_schedulers_work() -> None:
    model = net()
    start = weights(model)
    optimizer = KerZOO(
        [{"params": [model.embed.weight], "lr": 1e-12}, {"params": [model.norm.weight], "eps": 1e-2}], lr=1e-2
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    model.eval()
    for _ in range(3):
        optimizer.step(objective(model))
        scheduler.step()
    assert optimizer.param_groups[1]["lr"] == pytest.approx(1e-2 / 8)
    assert float((model.embed.weight.detach() - start[0]).abs().max()) < 1e-6
    assert float((model.norm.weight.detach() - 1).abs().max()) > 1e-4


@pytest.mark.parametrize(
    "options", [{}, {"restore": "exact", "dtype_policy": "masters"}, {"compat": "authors"}], ids=str
)
def test_state_dict_continues(options: dict[str, Any]) -> None:
    whole = train(net(torch.float16), steps=6, **options)
    model = net(torch.float16)
    first = KerZOO(model, lr=1e-3, seed=3, defer=True, **options)
    for _ in range(3):
        first.step(objective(model))
    state, saved = copy.deepcopy(first.state_dict()), copy.deepcopy(model.state_dict())
    again = net(torch.float16)
    again.load_state_dict(saved)
    second = KerZOO(again, lr=1e-3, seed=0, **options)
    second.load_state_dict(state)
    for _ in range(3):
        second.step(objective(again))
    assert equal(weights(again), whole)


# ---- number formats ---------------------------------------------------------------------------------------------------


def test_stochastic_rounding_is_unbiased_and_exact_where_nothing_is_lost() -> None:
    x = torch.full((65536,), 1 + 2**-7 * 0.3)
    found = round_stochastically(x, torch.arange(65536))
    assert set(found.unique().tolist()) == {1.0, 1 + 2**-7}
    assert float(found.mean()) == pytest.approx(1 + 2**-7 * 0.3, abs=1e-6)
    kept = torch.tensor([0.0, -0.0, 1.5, -2.0, float("inf"), float("-inf")])
    assert torch.equal(round_stochastically(kept, torch.full((6,), 65535)), kept)
    assert bool(round_stochastically(torch.tensor([float("nan")]), torch.tensor([65535])).isnan())


def test_small_updates_survive_in_bfloat16_by_chance_and_in_masters() -> None:
    """Steps of a hundredth of the spacing at 1 are lost by rounding to nearest."""

    def moved(**options: Any) -> float:
        weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
        optimizer = KerZOO(
            [("w", weight)], lr=1e-4, kernel="mezo", restore="exact", u="rademacher", **options
        )
        optimizer._checked = (
            True  # the losses below come from a list, so a second look would take the next one
        )
        for _ in range(40):
            losses = iter([1e-3, -1e-3])  # d = 1
            optimizer.step(lambda losses=losses: torch.tensor(next(losses)))
        copy_ = optimizer.works[0].copy
        assert copy_ is not None
        return float((copy_.float() - 1).abs().mean())

    assert moved(dtype_policy="nearest") == 0
    assert moved(dtype_policy="stochastic") > 1e-4
    assert moved(dtype_policy="masters") > 1e-4


# ---- the authors' code ------------------------------------------------------------------------------------------------


def test_clip_bounds_the_update_of_every_tensor() -> None:
    model = net()
    before = weights(model)[0]
    train(model, steps=1, clip=0.5, lr=1.0, kernel="mezo", restore="exact")
    free = net()
    train(free, steps=1, lr=1.0, kernel="mezo", restore="exact")
    assert float((weights(model)[0] - before).norm()) == pytest.approx(0.5, rel=1e-3)
    assert float((weights(free)[0] - before).norm()) > 0.6


def test_averaging_draws_weights_back_to_the_step_before() -> None:
    plain, averaged = net(), net()
    one, two = KerZOO(plain, lr=1e-2), KerZOO(averaged, lr=1e-2, averaging=4.0)
    one.step(objective(plain))
    two.step(objective(averaged))
    first = [p.detach().clone() for p in averaged.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), averaged.parameters(), strict=True))
    one.step(objective(plain))
    two.step(objective(averaged))
    for p, q, c in zip(plain.parameters(), averaged.parameters(), first, strict=True):
        torch.testing.assert_close(q.detach(), c / 4 + 0.75 * p.detach())


# ---- bad input --------------------------------------------------------------------------------------------------------


def test_steps_with_nan_are_skipped_counted_and_stop_the_run() -> None:
    model = net()
    optimizer = KerZOO(model, max_skipped=3, restore="exact")
    before = weights(model)
    for _ in range(2):
        optimizer.step(lambda: torch.tensor(float("nan")))
    with pytest.raises(RunError, match="not finite in 3 steps in a row") as caught:
        optimizer.step(lambda: torch.tensor(float("nan")))
    assert "\n" not in str(caught.value)
    assert optimizer.skipped == 3
    assert equal(weights(model), before)


def test_a_loss_that_changes_is_told_once() -> None:
    model = net().eval()
    draws = iter(range(1000))
    optimizer = KerZOO(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            optimizer.step(lambda: objective(model)() + next(draws))
    assert len([w for w in caught if "different losses" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = net()
        KerZOO(same).step(objective(same))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KerZOO(net().requires_grad_(False)), "all are frozen"),
        (lambda: KerZOO([]), "none was given"),
        (
            lambda: KerZOO(
                [
                    ("ids", nn.Parameter(torch.arange(4), requires_grad=False)),
                    ("w", nn.Parameter(torch.ones(2))),
                ]
            ),
            "parameter 'ids' is int64",
        ),
        (lambda: KerZOO([("w", nn.Parameter(torch.ones(3, 4).T))]), "'w' is not contiguous"),
        (lambda: KerZOO(net(), lr=0), "KerZOO: lr = 0"),
        (lambda: KerZOO(net(), learning_rate=1), "unknown field 'learning_rate'"),
        (lambda: KerZOO(net(), seed=-1), "seed = -1"),
        (lambda: KerZOO(net(), seed=1.5), "seed = 1.5"),
        (lambda: KerZOO([{"params": [nn.Parameter(torch.ones(2))], "eps": 0.0}]), "eps = 0.0 of a parameter"),
        (lambda: KerZOO([{"params": [nn.Parameter(torch.ones(2))], "lr": "1"}]), "lr = '1' of a parameter"),
        (
            lambda: KerZOO(net()).load_state_dict(torch.optim.SGD([torch.ones(1)]).state_dict()),
            "not of a KerZOO",
        ),
        (
            lambda: KerZOO(net(), restore="exact").load_state_dict(KerZOO(net()).state_dict()),
            "option restore",
        ),
        (lambda: CapturedLoss(net(), lambda x, k: x).bind(torch.ones(1), k=3), "argument k is int"),
        (lambda: KerZOO(net()).step(), "needs a closure"),
    ],
)
def test_bad_input_is_one_line(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PlanishError) as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("failing", [1, 2, 3, 4])
@pytest.mark.parametrize("options", [{"restore": "exact"}, {}, {"sides": 1, "n": 4}], ids=str)
def test_a_closure_that_raises_leaves_the_weights_as_they_were(
    options: dict[str, Any], failing: int, n: int
) -> None:
    model = net().eval()
    optimizer = KerZOO(model, **{"n": n, "lr": 1e-3, "eps": 0.1, "defer": True, **options})
    optimizer.step(objective(model))
    optimizer.finish()
    before = weights(model)
    calls = iter(range(1, 100))

    def closure() -> Tensor:
        if next(calls) == failing:
            raise MemoryError
        return objective(model)()

    if failing > optimizer.estimator.forwards:
        return
    with pytest.raises(MemoryError):
        optimizer.step(closure)
    assert optimizer.steps == 1
    for value, expected in zip(weights(model), before, strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=0 if "restore" in options else 1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([torch.empty(0)], "the batch is empty"),
        ([None], "returned NoneType, not a loss"),
        ([torch.ones(2), torch.ones(2), torch.ones(3)], "returned 2 and then 3 losses"),
    ],
)
def test_what_is_no_loss_is_refused(values: list[Any], message: str) -> None:
    given = iter(values)
    with pytest.raises(DataError, match=message):
        KerZOO(net()).step(lambda: next(given))


def test_more_than_32_bits_of_offset() -> None:
    """On the meta device nothing is stored: the second tensor lies beyond 2^32 elements, and its noise is of that place."""
    big = nn.Parameter(torch.empty(2**32 + 5, dtype=torch.float16, device="meta"))
    small = nn.Parameter(torch.zeros(100))
    start = lay_out([("a", big, 0), ("b", small, 0)])[1].start
    assert start == 2**32 + noise.CHUNK
    u = noise.directions(torch.tensor([1]), start // noise.CHUNK, 1, "gaussian")[0]
    word = noise.philox((start // 8 & noise.MASK, start // 8 >> 32, 0, 0), 1)[0]
    radius, cosine, _ = noise.tables(torch.device("cpu"))
    assert float(u[0]) == float(radius[word >> 16] * cosine[word & 0xFFFF])
