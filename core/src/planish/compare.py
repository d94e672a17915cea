"""Models side by side, all measured in one run: size, non-zeros, quality, latency, and a verdict on the speed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from planish import timing
from planish.artifact import Artifact
from planish.measure import Measurement
from planish.model import TorchModel
from planish.timing import Quartiles, Timing
from planish.weights import Counts

if TYPE_CHECKING:
    from torch import nn

    from planish.tasks import Task

NOT_MEASURED = "not measured"
MARGIN = 1.05
"""Speed-ups whose lower quartile stays below this are not called faster: the rest is noise."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A model to be measured. ``given`` rebuilds artifacts of modules in memory."""

    label: str
    artifact: Artifact
    given: nn.Module | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """What was measured of one model; figures beside the ``reference`` row are ratios to that row.

    Attributes:
        label, digest, runtime: which model, and what ran it.
        size: bytes on disk of all its files.
        counts: stored values, non-zeros, layer by layer.
        quality: the task's metrics.
        latency: seconds a call on the task's example; None when no task was given.
        speedup: median and quartiles of reference time over own time, round by round.
        verdict: what the speed amounts to, in words; "not measured" without a latency.
    """

    label: str
    digest: str
    runtime: str
    size: int
    counts: Counts
    quality: list[Measurement]
    latency: Measurement | None
    speedup: Quartiles | None
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Row:
        data = dict(data)
        counts = data["counts"]
        counts["layers"] = {name: (int(n), int(z)) for name, (n, z) in counts["layers"].items()}
        data["counts"] = Counts(**counts)
        data["quality"] = [Measurement(**m) for m in data["quality"]]
        data["latency"] = Measurement(**data["latency"]) if data["latency"] else None
        data["speedup"] = Quartiles(*data["speedup"]) if data["speedup"] else None
        return cls(**data)


def compare(
    entries: Sequence[Entry],
    task: Task | None,
    *,
    reference: int = 0,
    device: str = "cpu",
    rounds: int = 21,
    report: Callable[[int, int, str], None] = lambda done, total, text: None,
) -> list[Row]:
    """Measure every entry; latencies are taken in alternation and compared with the entry number ``reference``.

    A model that cannot be called (generated code, say) is counted and weighed, and the rest is "not measured".
    """
    models: list[Any] = []
    quality: list[list[Measurement]] = []
    for number, entry in enumerate(entries):
        report(number, len(entries) + 1, f"quality of {entry.label}")
        model = entry.artifact.load(device, entry.given)
        quality.append(task.evaluate(model) if task and callable(model) else [])
        models.append(model)
    report(len(entries), len(entries) + 1, "latency, all models in turns")
    timings = _time(models, task, device, rounds) if task else {}
    base = timings.get(str(reference))
    base_counts = entries[reference].artifact.count()
    rows = []
    for number, (entry, model) in enumerate(zip(entries, models, strict=True)):
        counts = entry.artifact.count()
        taken = timings.get(str(number))
        ratio = timing.ratio(base, taken) if base and taken and number != reference else None
        rows.append(
            Row(
                entry.label,
                entry.artifact.digest,
                model.runtime,
                entry.artifact.bytes,
                counts,
                quality[number],
                _latency(taken, model.runtime, task) if taken and task else None,
                ratio,
                verdict(ratio, base_counts, counts) if base and taken else NOT_MEASURED,
            )
        )
    report(len(entries) + 1, len(entries) + 1, "measured")
    models.clear()
    gc.collect()
    return rows


def verdict(ratio: Quartiles | None, base: Counts, own: Counts) -> str:
    """What the figures allow to say. A model with more zeros in tensors of the same size is "masked only" unless it
    was measured to be faster."""
    if ratio is None:
        return "reference"
    _, low, high = ratio
    if low > MARGIN:
        return "faster"
    same_size = own.parameters == base.parameters
    if same_size and own.nonzeros < base.nonzeros * 0.99:
        return "masked only"
    return "slower" if high < 1 / MARGIN else "same speed"


def _time(models: Sequence[Any], task: Task, device: str, rounds: int) -> dict[str, Timing]:
    """Interleaved timings of one call on the task's example, by the models' place in the list.

    A sample is the mean of enough calls to last about 20 ms in the fastest program, and of 100 at most.
    """

    def program(model: Any) -> Callable[[], object]:
        batch = task.example(model)
        if isinstance(model, TorchModel):  # copies to the device are no part of a call
            batch = {name: value.to(model.device) for name, value in batch.items()}
        return lambda: model(batch)

    programs = {str(number): program(model) for number, model in enumerate(models) if callable(model)}
    if not programs:
        return {}
    pilot = timing.interleaved(programs, rounds=1, warmup=2, device=device)
    fastest = min(taken.seconds.median for taken in pilot.values())
    calls = min(100, max(1, round(0.02 / max(fastest, 1e-6))))
    return timing.interleaved(programs, rounds=rounds, warmup=2, calls=calls, device=device)


def _latency(taken: Timing, runtime: str, task: Task) -> Measurement:
    seconds = taken.seconds
    shape = f"batch {getattr(task, 'batch', 1)}" + (
        f" x {task.length} tokens" if hasattr(task, "length") else ""
    )
    how = f"median of {len(taken.samples)} rounds in alternation with the other rows, {shape}; spread is half the quartile range"
    return Measurement(
        "latency",
        seconds.median,
        "s",
        len(taken.samples),
        (seconds.high - seconds.low) / 2,
        runtime,
        how,
        lower_is_better=True,
    )
