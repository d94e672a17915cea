"""Time programs against each other within one run, so that a drifting machine hurts all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from planish.errors import PlanishError

__all__ = ["Quartiles", "Timing", "interleaved", "ratio"]

Program = Callable[[], object]


class Quartiles(NamedTuple):
    """Median with the 25 % and 75 % quantiles (linear interpolation between samples)."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Self:
        if len(samples) == 1:
            return cls(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Timing:
    """How long one program took: `samples` in seconds, one a round, and the device that was timed."""

    name: str
    device: str
    samples: tuple[float, ...]

    @property
    def seconds(self) -> Quartiles:
        return Quartiles.of(self.samples)


def ratio(a: Timing, b: Timing) -> Quartiles:
    """Quartiles of a's time over b's, round by round: above 1 when `b` is faster.

    Rounds pair neighbours in time, so slow drifts of the machine cancel.

    Raises:
        PlanishError: the timings are from different runs, or `b` was too short for the clock.
    """
    if len(a.samples) != len(b.samples) or a.device != b.device:
        raise PlanishError(f"ratio of {a.name} and {b.name}: not timed together")
    if min(b.samples) <= 0:
        raise PlanishError(f"ratio of {a.name} and {b.name}: {b.name} took no measurable time")
    return Quartiles.of(tuple(x / y for x, y in zip(a.samples, b.samples, strict=True)))


def interleaved(
    programs: Mapping[str, Program],
    *,
    warmup: int = 3,
    rounds: int = 20,
    calls: int = 1,
    device: str = "cpu",
) -> dict[str, Timing]:
    """Time `programs` in turn, `rounds` times over, in an order drawn anew each round.

    With a fixed order a program would always run in the caches that one and the same other program left.
    On CUDA a sample is the time between two events on the current stream, host gaps between kernels
    included; otherwise it is wall-clock time. Each program runs `warmup` times untimed before.

    Args:
        programs: name -> a function without arguments.
        warmup: untimed runs of each program.
        rounds: timed runs of each program.
        calls: calls in one run; a sample is their mean. For programs that are short beside the clock.
        device: `"cpu"`, or `"cuda"` with an optional index, where the programs compute.

    Raises:
        PlanishError: no programs, a bad number, or a device that cannot be timed.
    """
    if not programs:
        raise PlanishError("programs: got none, needs at least one")
    if rounds < 1 or warmup < 0 or calls < 1:
        raise PlanishError(
            f"rounds, warmup, calls: got {rounds}, {warmup}, {calls}; need at least 1, 0 and 1"
        )
    timed = _timer(device)
    for program in programs.values():
        for _ in range(warmup):
            timed(program, calls)
    order = list(programs)
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            samples[name].append(timed(programs[name], calls) / calls)
    return {name: Timing(name, device, tuple(taken)) for name, taken in samples.items()}


def _timer(device: str) -> Callable[[Program, int], float]:
    kind = device.partition(":")[0]
    if kind == "cpu":
        return _wall_clock
    if kind != "cuda":
        raise PlanishError(f"device: got {device!r}, choose from cpu, cuda, cuda:N")

    import torch

    if not torch.cuda.is_available():
        raise PlanishError(f"device: got {device!r}, but no CUDA device is available")

    def between_events(program: Program, calls: int) -> float:
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                program()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return between_events


def _wall_clock(program: Program, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        program()
    return time.perf_counter() - start
