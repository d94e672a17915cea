"""``planish bench kerzoo``: each estimator beside MeZO at equal forward passes, both with tuned learning rates.

The learning rate of every estimator and task is chosen from one grid on tuning seeds, among the rates below the first that
diverges; what is reported are other seeds. An estimator with more losses a step takes fewer steps.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from planish import measure
from planish.bench import Row
from planish.errors import DataError
from planish_kerzoo.contest import ADAMW, AUTHORS, ESTIMATORS, EXPLODED, MEZO, Budget, Plan
from planish_kerzoo.population import Curves, Population, Run
from planish_kerzoo.prompts import load
from planish_kerzoo.stacked import StackedLlama
from planish_kerzoo.verdict import BEST, best_stable, verdict

COMMAND = "planish bench kerzoo"


def compare(
    data: Path,
    budget: Budget,
    device: str,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    until: float = math.inf,
    earlier: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Final objective, test loss, test accuracy and curves of every estimator, by model and task, as JSON.

    On CUDA matrix products take TF32 factors: differences of losses are many times larger than what that changes.
    ``keep`` is called with the result so far after every job. What would, going by the slowest job of its model so far,
    not end before the monotonic time ``until`` is left out and listed. ``earlier`` is a result with the same seeds, of which
    what is there is not run again. Raises DataError where the data is not there, or for other seeds.
    """
    about = {"seeds": list(budget.seeds), "batch": budget.batch, "eps": list(budget.eps)}
    if earlier and any(earlier.get(key) != value for key, value in about.items()):
        raise DataError(f"the earlier comparison has other seeds, batch or eps than {about}")
    result: dict[str, Any] = {**earlier, **about, "left out": []}
    populations: dict[str, Population] = {}
    slowest: dict[str, float] = {}
    for model, name, eps in budget.jobs():
        start = time.monotonic()
        title = name if eps == budget.eps[0] else f"{name}, eps {eps:g}"
        if title in result.get(model, {}):
            continue
        if start + slowest.get(model, 0.0) > until:
            result["left out"].append([model, name, eps])
            continue
        if model not in populations:
            populations[model], sizes = population(model, data, budget, device)
            result[model] = {**result.get(model, {}), **asdict(budget.plans[model]), "examples": sizes}
        plan = budget.plans[model]
        if name == ADAMW or eps != budget.eps[0]:
            plan = replace(plan, tuning=plan.tuning[:1])
        with _tf32():
            found = _tuned(budget, plan, _training(populations[model], name, eps, plan.forwards))
        found["seconds"] = time.monotonic() - start
        if name != ADAMW:
            slowest[model] = max(slowest.get(model, 0.0), found["seconds"])
        result[model][title] = found
        result["bar"] = verdict(result, budget)
        keep(result)
    return result


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


Training = Callable[[Sequence[Run], int], Curves]
"""Runs and the number of looks at them -> what they came to."""


def _training(population: Population, name: str, eps: float, forwards: int) -> Training:
    """AdamW, a step of which counts as three forward passes, gets a quarter of them: enough to be far below all others."""
    if name == ADAMW:
        return lambda runs, looks: population.first_order(runs, max(1, forwards // 12), looks)
    entry = ESTIMATORS[name]
    estimator = entry.estimator
    if name == AUTHORS:
        estimator = replace(estimator, shrink=forwards // estimator.forwards)
    return lambda runs, looks: population.zeroth_order(
        runs, estimator, eps, forwards, looks, entry.u, entry.per_tensor
    )


def _tuned(budget: Budget, plan: Plan, train: Training) -> dict[str, Any]:
    """Choose lr by task on the tuning seeds, then run the seeds of the report; for the weights of the last step, and apart from
    them for the mean of the weights of the last half."""
    tasks = range(len(budget.tasks))
    trials = train([Run(task, seed, lr) for task in tasks for lr in plan.grid for seed in plan.tuning], 1)
    shape = (len(budget.tasks), len(plan.grid), len(plan.tuning))
    start, final = trials.objective[0].view(shape), trials.objective[-1].view(shape)
    averaged = trials.averaged[0].view(shape)
    steady = ((trials.worst.view(shape) <= start + EXPLODED) & (final <= start)).all(2)
    bounds = {"last": _upper(final), "averaged": _upper(averaged)}
    chosen = {
        view: [plan.grid[best_stable(*row)] for row in zip(bound.tolist(), steady.tolist(), strict=True)]
        for view, bound in bounds.items()
    }
    wanted = {
        view: [Run(t, seed, lrs[t]) for t in tasks for seed in budget.seeds] for view, lrs in chosen.items()
    }
    runs = list(dict.fromkeys([*wanted["last"], *wanted["averaged"]]))
    curves = train(runs, budget.evaluations)
    last, mean = ([runs.index(run) for run in wanted[view]] for view in ("last", "averaged"))

    def by_task(values: torch.Tensor) -> dict[str, list[Any]]:
        return dict(zip(budget.tasks, values.reshape(len(budget.tasks), -1).tolist(), strict=True))

    def curve(values: torch.Tensor) -> dict[str, list[float]]:
        return by_task(values[:, last].view(len(values), len(tasks), -1).mean(2).T)

    return {
        "lr": dict(zip(budget.tasks, chosen["last"], strict=True)),
        "averaged lr": dict(zip(budget.tasks, chosen["averaged"], strict=True)),
        "tuning": by_task(bounds["last"]),
        "averaged tuning": by_task(bounds["averaged"]),
        "steady": by_task(steady),
        "objective": by_task(curves.objective[-1, last]),
        "test loss": by_task(curves.test_loss[-1, last]),
        "accuracy": by_task(curves.accuracy[-1, last]),
        "averaged objective": by_task(curves.averaged[0, mean]),
        "averaged test loss": by_task(curves.averaged[1, mean]),
        "averaged accuracy": by_task(curves.averaged[2, mean]),
        "start": by_task(curves.objective[0, last]),
        "exploded": by_task(curves.worst[last] > curves.objective[0, last] + EXPLODED),
        "curve forwards": curves.forwards,
        "curve objective": curve(curves.objective),
        "curve accuracy": curve(curves.accuracy),
    }


def _upper(values: torch.Tensor) -> torch.Tensor:
    """Mean over the tuning seeds plus its standard error: a rate at the edge, where some runs go astray, is not chosen by luck."""
    count = values.shape[2]
    error = values.std(2) / count**0.5 if count > 1 else 0.0
    return (values.mean(2) + error).nan_to_num(torch.inf)


def population(
    model: str, data: Path, budget: Budget, device: str
) -> tuple[Population, dict[str, list[int]]]:
    """The runs' model with the tasks of the budget, and the number of training and test examples of each."""
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
    length = budget.plans[model].length
    tasks = [load(name, inputs, tokenizer, length, **budget.sizes) for name in budget.tasks]
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
    """The rows of a comparison: the verdict's final objectives, which have the bar, then every estimator's."""

    def row(
        metric: str, unit: str, ours: list[float], mezo: list[float], bar: tuple[str, float] | None = None
    ) -> Row:
        return Row(
            metric=metric,
            value=statistics.mean(ours),
            unit=unit,
            peer="MeZO",
            peer_value=statistics.mean(mezo),
            bar=bar,
            device=device,
            command=command,
            spread=statistics.stdev(ours) / len(ours) ** 0.5,
        )

    either = result["bar"]["either"]
    for model, plan in budget.plans.items():
        for task, both in either[model]["final objectives"].items():
            title = f"{model}, {task}: final objective, {either[BEST]}, {either['weights']} weights"
            yield row(title, "nats", *both, ("<=", 1.0))
        for task in budget.tasks:
            for name, found in result[model].items():
                if name == MEZO or not isinstance(found, dict) or "objective" not in found:
                    continue
                for metric, unit in (("objective", "nats"), ("averaged objective", "nats"), ("accuracy", "")):
                    title = f"{model}, {task}: {metric} after {plan.forwards} forwards, {name}"
                    yield row(title, unit, *(result[model][n][metric][task] for n in (name, MEZO)))
