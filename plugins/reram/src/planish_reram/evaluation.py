"""The quality of a network over many chips: mean, standard deviation and worst."""

from __future__ import annotations

import statistics
from typing import Any

from planish import registry
from planish.measure import Measurement
from planish.method import resolve
from planish.tasks import Task

NAME = "reram-chips"


def over_chips(model: Any, task: Task) -> list[Measurement]:
    """Every other metric of the task on each chip of a simulated model; nothing for other models.

    The spread is the standard deviation over chips; the worst chip stands in a measurement of its own.
    """
    if getattr(model, "kind", "") != "reram" or len(model.seeds) < 2:
        return []
    found: dict[str, list[Measurement]] = {}
    for _ in model.chips():
        for owned in registry.host().evaluators(task.kind):
            if owned.record.name != NAME:
                for m in resolve(owned.record.target)(model, task):
                    found.setdefault(m.name, []).append(m)
    return [row for chips in found.values() for row in _summary(chips)]


def _summary(chips: list[Measurement]) -> list[Measurement]:
    first, values = chips[0], [m.value for m in chips]
    count = len(values)
    how = f"{count} chips, each with its own faults; {first.how.partition(',')[0]} a chip"
    rows = [
        Measurement(
            f"{first.name}, mean of chips", statistics.fmean(values), first.unit, count, statistics.stdev(values),
            first.device, f"{how}; spread is the standard deviation over chips", first.lower_is_better,
        )
    ]  # fmt: skip
    if first.lower_is_better is not None:
        worst = max(values) if first.lower_is_better else min(values)
        rows.append(
            Measurement(
                f"{first.name}, worst chip",
                worst,
                first.unit,
                count,
                None,
                first.device,
                how,
                first.lower_is_better,
            )
        )
    return rows
