"""Which rate an estimator is run with, and whether our best estimator keeps up with MeZO."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from planish_kerzoo.contest import MEZO, OURS, Budget


def best_stable(final: Sequence[float], steady: Sequence[bool]) -> int:
    """Index of the lowest final objective among the rates, in rising order, below the first that is not steady: some run of it
    exploded, or ended above its start. The first rate where none is left."""
    below = [value for value, _ in itertools.takewhile(lambda pair: pair[1], zip(final, steady, strict=True))]
    return below.index(min(below)) if below else 0


def verdict(result: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Our best estimator beside MeZO, by the weights of the last step and by the mean of the last half."""
    found = {model: result[model] for model in budget.plans if MEZO in result.get(model, {})}
    return {
        "last": _verdict(found, budget.tasks, "tuning", "objective"),
        "averaged": _verdict(found, budget.tasks, "averaged tuning", "averaged objective"),
    }


def _verdict(found: dict[str, Any], tasks: Sequence[str], tuning: str, metric: str) -> dict[str, Any]:
    """On how many tasks of each model the mean final objective is at most MeZO's, and on which it is worse by more than one
    standard error of the difference over paired seeds.

    One estimator for all models: that with the least sum of places, over models and tasks, by tuning objective.
    """
    ours = [name for name in OURS if found and all(name in entries for entries in found.values())]
    if not ours:
        return {}
    ranks = {
        name: sum(_rank(entries, name, ours, tasks, tuning) for entries in found.values()) for name in ours
    }
    best = min(ours, key=lambda name: ranks[name])
    verdicts: dict[str, Any] = {"best of ours on the tuning seeds": best, "sums of places": ranks}
    for model, entries in found.items():
        pairs = {task: _paired(entries[best][metric][task], entries[MEZO][metric][task]) for task in tasks}
        at_least = [task for task, (mean, _) in pairs.items() if mean <= 0]
        worse = [task for task, (mean, error) in pairs.items() if mean > error]
        verdicts[model] = {
            "difference and standard error": pairs,
            "at or below MeZO": at_least,
            "worse": worse,
            "holds": len(at_least) >= math.ceil(5 / 7 * len(tasks)) and not worse,
        }
    return verdicts


def _rank(found: dict[str, Any], name: str, among: Sequence[str], tasks: Sequence[str], tuning: str) -> int:
    """Sum over tasks of the place that the best tuning objective of ``name`` takes."""
    best = {other: {task: _best_tuning(found[other], task, tuning) for task in tasks} for other in among}
    return sum(sum(best[other][task] < best[name][task] for other in among) for task in tasks)


def _best_tuning(found: dict[str, Any], task: str, tuning: str) -> float:
    values, steady = found[tuning][task], found["steady"][task]
    index = best_stable(values, steady)
    return float(values[index]) if steady[index] else math.inf


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the difference."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        return math.inf, 0.0
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
