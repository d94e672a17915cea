"""``planish bench kerzoo``: each estimator beside MeZO at equal forward passes, both with tuned learning rates.

The learning rate of every estimator and task is chosen from one grid on tuning seeds, among the rates below the first that
diverges; what is reported are other seeds. An estimator with more losses a step takes fewer steps.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from planish import measure
from planish.bench import Row
from planish.errors import DataError
from planish_kerzoo.estimator import Estimator
from planish_kerzoo.noise import Distribution
from planish_kerzoo.population import Curves, Population, Run
from planish_kerzoo.prompts import TASKS, load
from planish_kerzoo.stacked import StackedLlama

COMMAND = "planish bench kerzoo"
MEZO, KERZOO, ADAMW = "MeZO", "order 3 (KerZOO)", "AdamW"

ESTIMATORS: dict[str, tuple[Estimator, Distribution]] = {
    MEZO: (Estimator("mezo"), "gaussian"),
    KERZOO: (Estimator("order3"), "gaussian"),
    "nodes 3": (Estimator("nodes3", rho=4.0), "gaussian"),
    "leave-one-out, n=4": (Estimator("mezo", n=4, sides=1), "gaussian"),
    "leave-one-out, n=8": (Estimator("mezo", n=8, sides=1), "gaussian"),
    "leave-one-out, n=8, normalized": (Estimator("mezo", n=8, sides=1, normalize=True), "gaussian"),
    "FZOO-like": (Estimator("mezo", n=8, sides=1, baseline="unperturbed", normalize=True), "rademacher"),
    "order 1": (Estimator("order1"), "gaussian"),
    "order 5, corrected": (Estimator("order5"), "gaussian"),
    "order 3, n=4, stratified": (Estimator("order3", n=4, sampling="stratified"), "gaussian"),
}
"""nodes 3 has rho = 4, so that most of its probes are as far out as MeZO's and some are four times as far."""

OURS = ("nodes 3", "leave-one-out, n=4", "leave-one-out, n=8", "leave-one-out, n=8, normalized")
"""The estimators that are our own. The best of them by model is chosen on the tuning seeds and judged on the others."""

EPS_SWEEP = (MEZO, KERZOO, "nodes 3")


@dataclass(frozen=True)
class Budget:
    """How much of the comparison is run: by model, forward passes and grid of learning rates."""

    forwards: dict[str, int]
    grids: dict[str, tuple[float, ...]]
    tasks: tuple[str, ...] = tuple(TASKS)
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    tuning: tuple[int, ...] = (100,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    batch: int = 16
    eps: tuple[float, ...] = (1e-3, 1e-1, 1e-2)
    sizes: dict[str, int] = field(default_factory=dict)
    evaluations: int = 8

    @classmethod
    def full(cls) -> Budget:
        half_decades = tuple(10 ** (k / 2) for k in range(-10, -3))
        return cls(
            {"stories260k": 1200, "testbed:lm": 600},
            {"stories260k": half_decades, "testbed:lm": tuple(lr / 10 for lr in half_decades)},
        )

    @classmethod
    def quick(cls) -> Budget:
        """Minutes on two CPU cores: the small model, two tasks, three estimators, two seeds."""
        return cls(
            {"stories260k": 64},
            {"stories260k": (1e-4, 1e-3)},
            ("sst2", "cb"),
            (MEZO, KERZOO, "leave-one-out, n=4"),
            seeds=(0, 1),
            batch=8,
            eps=(1e-3,),
            sizes={"train": 64, "test": 32},
            evaluations=2,
        )

    @classmethod
    def smoke(cls) -> Budget:
        """Every code path, nothing worth reading."""
        return cls(
            {"stories260k": 9, "testbed:lm": 9},
            {"stories260k": (1e-4,), "testbed:lm": (1e-5,)},
            ("sst2", "cb"),
            seeds=(0, 1),
            batch=4,
            eps=(1e-3, 1e-2),
            sizes={"train": 20, "test": 8},
        )

    def jobs(self) -> list[tuple[str, str, float]]:
        """(model, estimator or AdamW, eps), what matters most first."""
        models, first = list(self.forwards), [e for e in self.estimators if e in (MEZO, KERZOO, *OURS)]
        rest = [e for e in self.estimators if e not in first]
        jobs = [(model, name, self.eps[0]) for model in models for name in [*first, ADAMW]]
        jobs += [(models[0], name, self.eps[0]) for name in rest]
        return jobs + [(models[0], n, eps) for eps in self.eps[1:] for n in EPS_SWEEP if n in self.estimators]


def compare(
    data: Path,
    budget: Budget,
    device: str,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    until: float = math.inf,
) -> dict[str, Any]:
    """Final objective, test loss, test accuracy and curves of every estimator, by model and task, as JSON.

    ``keep`` is called with the result so far after every job. What would, going by the slowest job of its model so far,
    not end before the monotonic time ``until`` is left out and listed. Raises DataError where the data is not there.
    """
    result: dict[str, Any] = {
        "seeds": list(budget.seeds),
        "tuning seeds": list(budget.tuning),
        "batch": budget.batch,
    }
    result["left out"] = []
    populations: dict[str, Population] = {}
    slowest: dict[str, float] = {}
    for model, name, eps in budget.jobs():
        start = time.monotonic()
        if start + slowest.get(model, 0.0) > until:
            result["left out"].append([model, name, eps])
            continue
        forwards = budget.forwards[model]
        if model not in populations:
            populations[model], sizes = _population(model, data, budget, device)
            result[model] = {"forwards": forwards, "grid": list(budget.grids[model]), "examples": sizes}
        population = populations[model]
        train: Callable[[Sequence[Run]], Curves]
        if name == ADAMW:
            train = functools.partial(
                population.first_order, steps=forwards // 3, evaluations=budget.evaluations
            )
        else:
            train = _zeroth(population, name, eps, forwards, budget.evaluations)
        found = _tuned(budget, model, train)
        found["seconds"] = time.monotonic() - start
        slowest[model] = max(slowest.get(model, 0.0), found["seconds"])
        result[model][name if eps == budget.eps[0] else f"{name}, eps {eps:g}"] = found
        result["bar"] = verdict(result, budget)
        keep(result)
    return result


def _zeroth(
    population: Population, name: str, eps: float, forwards: int, evaluations: int
) -> Callable[[Sequence[Run]], Curves]:
    estimator, u = ESTIMATORS[name]
    return lambda runs: population.zeroth_order(runs, estimator, eps, forwards, evaluations, u)


def _tuned(budget: Budget, model: str, train: Callable[[Sequence[Run]], Curves]) -> dict[str, Any]:
    """Choose lr by task on the tuning seeds, then run the seeds of the report."""
    grid, tasks = budget.grids[model], range(len(budget.tasks))
    trials = [Run(task, seed, lr) for task in tasks for lr in grid for seed in budget.tuning]
    objective = train(trials).objective.view(-1, len(budget.tasks), len(grid), len(budget.tuning)).mean(3)
    final = objective[-1]
    chosen = [
        grid[best_stable(row, start)]
        for row, start in zip(final.tolist(), objective[0, :, 0].tolist(), strict=True)
    ]
    curves = train([Run(task, seed, chosen[task]) for task in tasks for seed in budget.seeds])

    def by_task(values: torch.Tensor) -> dict[str, list[float]]:
        return dict(zip(budget.tasks, values.view(len(budget.tasks), -1).tolist(), strict=True))

    return {
        "lr": dict(zip(budget.tasks, chosen, strict=True)),
        "tuning": by_task(final),
        "objective": by_task(curves.objective[-1]),
        "test loss": by_task(curves.test_loss[-1]),
        "accuracy": by_task(curves.accuracy[-1]),
        "start": by_task(curves.objective[0]),
        "curve forwards": curves.forwards,
        "curve objective": by_task(curves.objective.view(len(curves.forwards), len(tasks), -1).mean(2).T),
        "curve accuracy": by_task(curves.accuracy.view(len(curves.forwards), len(tasks), -1).mean(2).T),
    }


def best_stable(final: Sequence[float], start: float) -> int:
    """Index of the lowest final objective among the rates, in rising order, below the first that ends above the start.

    Beyond that a run may still end well by accident: weights that explode make all label words equally likely, which is
    a lower loss than the start.
    """
    stable = list(itertools.takewhile(lambda value: value <= start, final)) or list(final[:1])
    return stable.index(min(stable))


def verdict(result: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Our best estimator beside MeZO by model: on how many tasks the mean final objective is at most MeZO's, and on which it
    is worse by more than one standard error of the difference over paired seeds."""
    verdicts = {}
    for model in budget.forwards:
        found = result.get(model, {})
        ours = [name for name in OURS if name in found]
        if MEZO not in found or not ours:
            continue
        best = min(ours, key=lambda name: _rank(found, name, ours, budget.tasks))
        pairs = {t: _paired(found[best]["objective"][t], found[MEZO]["objective"][t]) for t in budget.tasks}
        at_least = [task for task, (mean, _) in pairs.items() if mean <= 0]
        worse = [task for task, (mean, error) in pairs.items() if mean > error]
        needed = math.ceil(5 / 7 * len(budget.tasks))
        verdicts[model] = {
            "best of ours on the tuning seeds": best,
            "difference and standard error": pairs,
            "at or above MeZO": at_least,
            "worse": worse,
            "holds": len(at_least) >= needed and not worse,
        }
    return verdicts


def _rank(found: dict[str, Any], name: str, among: Sequence[str], tasks: Sequence[str]) -> float:
    """Sum over tasks of the place that the best tuning objective of ``name`` takes."""
    best = {other: {task: _best_tuning(found[other], task) for task in tasks} for other in among}
    return sum(sum(best[other][task] < best[name][task] for other in among) for task in tasks)


def _best_tuning(found: dict[str, Any], task: str) -> float:
    tuning: list[float] = found["tuning"][task]
    return tuning[best_stable(tuning, found["start"][task][0])]


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error of the difference."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if not all(map(math.isfinite, differences)):
        return math.inf, 0.0
    return statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5


def _population(
    model: str, data: Path, budget: Budget, device: str
) -> tuple[Population, dict[str, list[int]]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if model == "testbed:lm":
        from planish_testbed import lm

        folder = lm.folder()
    else:
        folder = data / "models" / model
        if not (folder / "config.json").is_file():
            raise DataError(
                f"benchmark kerzoo: {folder} holds no model (PLANISH_SHARED names the folder of shared data)"
            )
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    inputs = data / "data" if (data / "data").is_dir() else data
    tasks = [load(name, inputs, tokenizer, **budget.sizes) for name in budget.tasks]
    shape = StackedLlama.of(module)
    sizes = {n: [t.train, len(t.ids) - t.train] for n, t in zip(budget.tasks, tasks, strict=True)}
    moved = [task.to(device) for task in tasks]
    return Population(shape, shape.pack(module).to(device), moved, budget.batch), sizes


def rows(*, quick: bool = False) -> Iterator[Row]:
    """One row a model, task and estimator: mean final objective over the seeds, its standard error, beside MeZO's."""
    data = Path(os.environ.get("PLANISH_SHARED", "../shared"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    budget = Budget.quick() if quick else Budget.full()
    yield from table(
        compare(data, budget, device), budget, measure.device_name(device), COMMAND + " --quick" * quick
    )


def table(result: dict[str, Any], budget: Budget, device: str, command: str) -> Iterator[Row]:
    """The rows of a comparison."""
    for model, forwards in budget.forwards.items():
        best = result["bar"][model]["best of ours on the tuning seeds"]
        for task in budget.tasks:
            for name, found in result[model].items():
                if name == MEZO or not isinstance(found, dict) or "objective" not in found:
                    continue
                for metric, unit in (("objective", "nats"), ("accuracy", "")):
                    ours, mezo = (result[model][n][metric][task] for n in (name, MEZO))
                    yield Row(
                        metric=f"{model}, {task}: {metric} after {forwards} forwards, {name}",
                        value=statistics.mean(ours),
                        unit=unit,
                        peer="MeZO",
                        peer_value=statistics.mean(mezo),
                        bar=("<=", 1.0) if name == best and metric == "objective" else None,
                        device=device,
                        command=command,
                        spread=statistics.stdev(ours) / len(ours) ** 0.5,
                    )
