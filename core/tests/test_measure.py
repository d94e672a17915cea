"""How figures are taken, with programs and a clock that are known."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish import measure
from planish.measure import Measurement, Timing


class Clock:
    """Time passes only when a program lets it pass; the machine may be slow at times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def program(self, name: str, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.calls.append(name)
            self.now += seconds

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


class TestInterleaved:
    def test_all_samples_come_back(self, clock: Clock) -> None:
        programs = {"a": clock.program("a", 2.0), "b": clock.program("b", 0.5)}
        timings = measure.interleaved(programs, rounds=6, warmup=2, calls=3)
        assert timings["a"].samples == [2.0] * 6
        assert timings["b"].samples == [0.5] * 6
        assert clock.calls.count("a") == clock.calls.count("b") == (6 + 2) * 3

    def test_programs_take_turns_in_changing_order(self, clock: Clock) -> None:
        programs = {name: clock.program(name, 1.0) for name in "abc"}
        measure.interleaved(programs, rounds=20, warmup=0)
        rounds = [tuple(clock.calls[i : i + 3]) for i in range(0, 60, 3)]
        assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
        assert len(set(rounds)) > 2

    def test_asynchronous_work_is_waited_for(self, clock: Clock) -> None:
        waiting = [0.0]

        def launch() -> None:
            waiting[0] += 3.0

        def synchronize() -> None:
            clock.now += waiting[0]
            waiting[0] = 0.0

        timings = measure.interleaved({"k": launch}, rounds=2, calls=2, synchronize=synchronize)
        assert timings["k"].samples == [3.0, 3.0]

    def test_speedup_of_known_programs(self, clock: Clock) -> None:
        """The machine becomes ten times slower half-way: the ratio round by round does not notice."""
        slow = Iter([1.0] * 5 + [10.0] * 5)
        programs = {"base": clock.program("base", 0.0), "fast": clock.program("fast", 0.0)}

        def with_factor(name: str, seconds: float) -> Callable[[], None]:
            def call() -> None:
                programs[name]()
                clock.now += seconds * slow.factor(name)

            return call

        timings = measure.interleaved(
            {"base": with_factor("base", 3.0), "fast": with_factor("fast", 2.0)}, rounds=10, warmup=0
        )
        assert measure.speedup(timings["base"], timings["fast"]) == pytest.approx((1.5, 1.5, 1.5))
        assert measure.speedup(timings["fast"], timings["base"])[0] == pytest.approx(2 / 3)


class Iter:
    """The n-th factor for the n-th call of each name."""

    def __init__(self, factors: list[float]) -> None:
        self.factors = factors
        self.taken: dict[str, Iterator[float]] = {}

    def factor(self, name: str) -> float:
        return next(self.taken.setdefault(name, iter(self.factors)))


@settings(deadline=None)
@given(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40))
def test_quartiles_and_median(samples: list[float]) -> None:
    low, high = Timing(samples).quartiles
    middle = Timing(samples).median
    assert min(samples) <= low <= middle <= high <= max(samples)
    assert sum(s <= middle for s in samples) >= len(samples) / 2
    one, least, most = measure.speedup(Timing(samples), Timing(samples))
    assert (one, least, most) == (1.0, 1.0, 1.0)


def test_unequal_rounds_are_no_ratio() -> None:
    with pytest.raises(ValueError):
        measure.speedup(Timing([1.0]), Timing([1.0, 2.0]))


def test_measurement_as_dict() -> None:
    value = Measurement("size", 1.5, "MB", 3, 0.1, "CPU", "counted", True)
    assert Measurement(**value.as_dict()) == value


class TestPeakMemory:
    SIZE = 200 << 20

    def test_an_allocation_that_is_gone_again_is_seen(self) -> None:
        before = measure.resident()
        with measure.peak_memory() as meter:
            block = bytearray(self.SIZE)
            del block
        assert 0.8 * self.SIZE < meter.peak - before < 1.5 * self.SIZE
        assert meter.how

    def test_each_body_has_its_own_peak(self) -> None:
        with measure.peak_memory() as first:
            bytearray(self.SIZE)
        with measure.peak_memory() as second:
            pass
        assert second.peak < first.peak - 0.8 * self.SIZE

    @pytest.fixture
    def no_reset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container that forbids to reset the kernel's mark."""

        def refuse(path: Path, text: str) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "write_text", refuse)

    def test_sampled_where_the_mark_cannot_be_reset(self, no_reset: None) -> None:
        before = measure.resident()
        with measure.peak_memory() as meter:
            block = bytearray(self.SIZE)
            deadline = time.monotonic() + 10
            while meter.peak < before + 0.8 * self.SIZE and time.monotonic() < deadline:
                time.sleep(0.01)
            del block
        assert meter.how == "resident memory sampled every 5 ms"
        assert 0.8 * self.SIZE < meter.peak - before < 1.5 * self.SIZE

    def test_a_body_shorter_than_a_sample_has_a_peak(self, no_reset: None) -> None:
        with measure.peak_memory() as meter:
            pass
        assert meter.peak > 1 << 20

    def test_stopped_when_the_body_raises(self, no_reset: None) -> None:
        with pytest.raises(ZeroDivisionError), measure.peak_memory() as meter:
            1 / 0  # noqa: B018
        assert meter.peak > 0
        assert meter._thread is not None
        assert not meter._thread.is_alive()

    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "_status", lambda key: 0)
        assert measure.resident() > 1 << 20


def test_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"4567")
    assert measure.bytes_on_disk(tmp_path) == 7


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = measure.device_name()
    assert name.endswith(f", {measure.cores()} cores")
    assert len(name) > len(", 1 cores")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert measure.cores() >= 1
