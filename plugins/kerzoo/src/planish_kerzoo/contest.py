"""What is compared with what: the estimators, and how much of the comparison is run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from planish_kerzoo.estimator import Estimator
from planish_kerzoo.noise import Distribution
from planish_kerzoo.prompts import TASKS

MEZO, KERZOO, AUTHORS, ADAMW = "MeZO", "order 3 (KerZOO)", "authors' code", "AdamW"


@dataclass(frozen=True)
class Entry:
    """An estimator with the distribution of its directions, and whether every tensor has its own r."""

    estimator: Estimator
    u: Distribution = "gaussian"
    per_tensor: bool = False


ESTIMATORS: dict[str, Entry] = {
    MEZO: Entry(Estimator("mezo")),
    KERZOO: Entry(Estimator("order3")),
    "leave-one-out, n=8, normalized": Entry(Estimator("mezo", n=8, sides=1, normalize=True, scale=10.0)),
    "leave-one-out, n=8": Entry(Estimator("mezo", n=8, sides=1)),
    "leave-one-out, n=4": Entry(Estimator("mezo", n=4, sides=1)),
    "FZOO-like": Entry(
        Estimator("mezo", n=8, sides=1, baseline="unperturbed", normalize=True, scale=10.0), "rademacher"
    ),
    "nodes 3": Entry(Estimator("nodes3", rho=4.0)),
    "order 1": Entry(Estimator("order1")),
    AUTHORS: Entry(Estimator("order3", n=3, scale=4.0, fixed_argument=True), per_tensor=True),
    "nodes 3, n=2, fixed": Entry(Estimator("nodes3", n=2, sampling="fixed", rho=4.0)),
    "nodes 5": Entry(Estimator("nodes5", rho=8.0)),
    "order 3, n=4, stratified": Entry(Estimator("order3", n=4, sampling="stratified")),
    "order 5, corrected": Entry(Estimator("order5")),
}
"""nodes 3 and 5 have rho = 4 and 8, so that most of their probes are as far out as MeZO's. Normalized differences are about a
tenth of the others or less, so that C = 10 brings their best rates into the same grid. The authors' interval shrinks over the run;
their clip, which nothing here reaches, and their averaging are left out."""

OURS = (
    "leave-one-out, n=8, normalized",
    "leave-one-out, n=8",
    "leave-one-out, n=4",
    "nodes 3",
    "nodes 5",
    "nodes 3, n=2, fixed",
)
"""The estimators that are our own. All are unbiased up to the order that they name, but for the normalized one, whose length the
losses of the step decide. The best of them is chosen on the tuning seeds, one for all models and tasks, and judged on the others."""

EPS_SWEEP = (MEZO, KERZOO, "leave-one-out, n=8, normalized")
EXPLODED = 3.0
"""A run whose loss on any batch was that much, in nats, above where its objective began has exploded, however it ends: weights
that are large enough make all label words equally likely, which may be a lower loss than the start."""


@dataclass(frozen=True)
class Plan:
    """What is run on one model: forward passes of a run, grid of learning rates, tuning seeds, estimators with what matters most
    first, and tokens that prompts are cut to. AdamW and other eps than the first are tuned on the first of the seeds."""

    forwards: int
    grid: tuple[float, ...]
    tuning: tuple[int, ...]
    estimators: tuple[str, ...]
    length: int = 64


@dataclass(frozen=True)
class Budget:
    """How much of the comparison is run, by model."""

    plans: dict[str, Plan]
    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: tuple[int, ...] = (30, 31, 32, 33, 34)
    batch: int = 16
    eps: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    sizes: dict[str, int] = field(default_factory=dict)
    evaluations: int = 8

    @classmethod
    def full(cls) -> Budget:
        grid, tuning = tuple(1e-5 * 10 ** (k / 3) for k in range(7)), (300, 301, 302)
        names = (*list(ESTIMATORS)[:6], ADAMW, *list(ESTIMATORS)[6:])
        return cls(
            {
                "stories260k": Plan(1200, grid, tuning, names),
                "testbed:lm": Plan(1000, grid, tuning, names, 48),
            }
        )

    @classmethod
    def again(cls) -> Budget:
        """MeZO and the estimator that `full` chose, tuned and run on other seeds: for rules that were set after a look at `full`."""
        full, two = cls.full(), (MEZO, OURS[0])
        plans = {
            model: replace(plan, tuning=(400, 401, 402), estimators=two) for model, plan in full.plans.items()
        }
        return replace(full, plans=plans, seeds=(40, 41, 42, 43, 44), eps=full.eps[:1], evaluations=4)

    @classmethod
    def quick(cls) -> Budget:
        """Minutes on two CPU cores: the small model, two tasks, three estimators, two seeds."""
        return cls(
            {"stories260k": Plan(64, (3e-5, 3e-4), (100,), (MEZO, KERZOO, "leave-one-out, n=4"))},
            ("sst2", "cb"),
            seeds=(10, 11),
            batch=8,
            eps=(1e-3,),
            sizes={"train": 64, "test": 32},
            evaluations=2,
        )

    @classmethod
    def smoke(cls) -> Budget:
        """Every code path, nothing worth reading."""
        return cls(
            {
                "stories260k": Plan(36, (1e-4,), (100, 101), (*ESTIMATORS, ADAMW)),
                "testbed:lm": Plan(36, (1e-5,), (100,), (MEZO, "leave-one-out, n=4", ADAMW), 48),
            },
            ("sst2", "cb"),
            seeds=(10, 11),
            batch=4,
            eps=(1e-3, 1e-2),
            sizes={"train": 20, "test": 8},
            evaluations=2,
        )

    def jobs(self) -> list[tuple[str, str, float]]:
        """(model, estimator or AdamW, eps), what matters most first."""
        plans, eps = self.plans, self.eps[0]
        model, plan = next(iter(plans.items()))
        sweep = [name for name in EPS_SWEEP if name in plan.estimators]
        jobs = [(model, name, eps) for model, plan in plans.items() for name in plan.estimators[:4]]
        jobs += [(model, name, other) for other in self.eps[1:] for name in sweep]
        return jobs + [(model, name, eps) for model, plan in plans.items() for name in plan.estimators[4:]]
