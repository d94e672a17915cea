from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import PlanishError
from planish.timing import Quartiles, Timing, interleaved, ratio


def test_programs_take_turns_in_changing_order():
    calls = []
    timings = interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, warmup=2, rounds=20)
    rounds = [tuple(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 2
    assert [len(timings[name].samples) for name in "abc"] == [20, 20, 20]
    assert all(timing.device == "cpu" for timing in timings.values())


def test_a_sample_is_the_mean_of_its_calls(monkeypatch):
    now = 0.0

    def work():
        nonlocal now
        now += 2.0

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    assert interleaved({"a": work}, warmup=1, rounds=3, calls=5)["a"].samples == (2.0, 2.0, 2.0)


def test_a_sample_covers_the_program(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timings = interleaved({"a": lambda: None, "b": lambda: None}, warmup=0, rounds=1)
    assert timings["a"].samples == (5.0,)
    assert timings["b"].seconds == Quartiles(2.0, 2.0, 2.0)


def test_ratio_pairs_rounds_so_that_drift_cancels():
    drift = (1.0, 10.0, 100.0, 1000.0, 10000.0)
    slow, fast = Timing("slow", "cpu", tuple(3 * t for t in drift)), Timing("fast", "cpu", drift)
    assert ratio(slow, fast) == Quartiles(3.0, 3.0, 3.0)


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=30))
def test_quartiles_are_ordered_and_within_the_samples(samples):
    found = Quartiles.of(tuple(samples))
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)
    assert Quartiles.of(tuple(reversed(samples))) == found


def test_quartiles_of_five():
    assert Quartiles.of((5.0, 1.0, 4.0, 2.0, 3.0)) == Quartiles(3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (Timing("b", "cpu", (1.0,)), "not timed together"),
        (Timing("b", "cuda", (1.0, 1.0)), "not timed together"),
        (Timing("b", "cpu", (0.0, 1.0)), "b took no measurable time"),
    ],
)
def test_ratio_refuses_what_cannot_be_compared(other, reason):
    with pytest.raises(PlanishError, match=reason):
        ratio(Timing("a", "cpu", (1.0, 2.0)), other)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"programs": {}}, "programs: got none"),
        ({"rounds": 0}, "rounds, warmup, calls: got 0, 3, 1"),
        ({"calls": 0}, "got 20, 3, 0"),
        ({"warmup": -1}, "got 20, -1, 1"),
        ({"device": "tpu"}, "device: got 'tpu', choose from cpu, cuda"),
    ],
)
def test_bad_arguments(arguments, reason):
    with pytest.raises(PlanishError, match=reason):
        interleaved(**{"programs": {"a": lambda: None}} | arguments)


def test_an_error_in_a_program_comes_through():
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda: 1 / 0})


@pytest.mark.gpu
def test_cuda_events_see_the_work_of_the_device():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    a = torch.randn(4096, 4096, device="cuda")
    timings = interleaved({"one": lambda: a @ a, "many": lambda: [a @ a for _ in range(20)]}, device="cuda")
    assert min(timings["one"].samples) > 0
    assert ratio(timings["many"], timings["one"]).median > 1
