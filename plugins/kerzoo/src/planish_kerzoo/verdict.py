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


VIEWS = {"last": ("tuning", "objective"), "averaged": ("averaged tuning", "averaged objective")}
"""The weights of a run that count, those of its last step or the mean of its last half: where a result holds the objective of the
tuning seeds, and that of the others."""
BEST = "best of ours on the tuning seeds"


def verdict(result: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Our best estimator beside MeZO: both by the weights of the last step, both by the mean of the last half, and, in
    ``either``, each by what serves it better on the tuning seeds, MeZO task by task and ours once for all."""
    found = {model: result[model] for model in budget.plans if MEZO in result.get(model, {})}
    choices = {**{view: (view,) for view in VIEWS}, "either": tuple(VIEWS)}
    return {name: _verdict(found, budget.tasks, views) for name, views in choices.items()}


def _verdict(found: dict[str, Any], tasks: Sequence[str], views: Sequence[str]) -> dict[str, Any]:
    """On how many tasks of each model the mean final objective is at most MeZO's, and on which it is worse by more than one
    standard error of the difference over paired seeds.

    One estimator and one view for all models: those with the least sum of places, over models and tasks, by tuning objective.
    """
    names = [name for name in OURS if found and all(name in entries for entries in found.values())]
    ours = [(name, view) for name in names for view in views]
    if not ours:
        return {}
    ranks = {one: sum(_rank(entries, one, ours, tasks) for entries in found.values()) for one in ours}
    best, view = min(ours, key=lambda one: ranks[one])
    places = {f"{name}, {view}": place for (name, view), place in ranks.items()}
    verdicts: dict[str, Any] = {BEST: best, "weights": view, "sums of places": places}
    for model, entries in found.items():
        mezo = {task: min(views, key=lambda v: _best_tuning(entries[MEZO], task, v)) for task in tasks}
        finals = {
            task: [entries[name][VIEWS[v][1]][task] for name, v in ((best, view), (MEZO, mezo[task]))]
            for task in tasks
        }
        pairs = {task: _paired(*both) for task, both in finals.items()}
        at_least = [task for task, (mean, _) in pairs.items() if mean <= 0]
        worse = [task for task, (mean, error) in pairs.items() if mean > error]
        verdicts[model] = {
            "final objectives": finals,
            "weights of MeZO": mezo,
            "difference and standard error": pairs,
            "at or below MeZO": at_least,
            "worse": worse,
            "holds": len(at_least) >= math.ceil(5 / 7 * len(tasks)) and not worse,
        }
    return verdicts


def _rank(
    found: dict[str, Any], one: tuple[str, str], among: Sequence[tuple[str, str]], tasks: Sequence[str]
) -> int:
    """Sum over tasks of the place that the best tuning objective of an estimator and a view takes."""
    best = {other: {task: _best_tuning(found[other[0]], task, other[1]) for task in tasks} for other in among}
    return sum(sum(best[other][task] < best[one][task] for other in among) for task in tasks)


def _best_tuning(found: dict[str, Any], task: str, view: str) -> float:
    values, steady = found[VIEWS[view][0]][task], found["steady"][task]
    index = best_stable(values, steady)
    return float(values[index]) if steady[index] else math.inf


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the difference."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        return math.inf, 0.0
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
