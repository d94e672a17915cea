"""The figures of an evaluation: pass@k with intervals, and beside them what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import Field

from planish_promptv.evaluate.degeneration import Degeneration, measure
from planish_promptv.evaluate.folder import Scored, Settings
from planish_promptv.evaluate.passk import PassAtK, estimate
from planish_promptv.types import Record


class TaskFigures(Record):
    """One task: samples, how many compiled and passed, and what they took, means over its samples."""

    task: str
    samples: int
    compiled: int
    passed: int
    accepted: int
    calls: float
    tokens: float
    cost: float | None
    model_s: float
    wall_s: float


class EvalReport(Record):
    """Figures over finished samples.

    Attributes:
        complete: every sample is finished; otherwise ``stopped`` may say why, and ``missing`` how many are to come.
        functional, syntax: pass@k by the benchmark's bench, and by compiling with it; empty where a task has fewer
            samples than k.
        accepted: samples that the loop itself took for right; passed: that the benchmark's bench confirms.
        states: how the loop ended. verdicts: what the benchmark's bench said.
        calls, prompt_tokens, completion_tokens: sums. cost: US dollars, None where a price is unknown.
        estimated: some tokens were not counted by a server.
    """

    benchmark: str
    mode: str
    bench_source: str
    model: str
    complete: bool
    stopped: str = ""
    missing: int = 0
    tasks: tuple[TaskFigures, ...] = ()
    excluded: dict[str, str] = Field(default_factory=dict)
    samples: int = 0
    functional: tuple[PassAtK, ...] = ()
    syntax: tuple[PassAtK, ...] = ()
    accepted: int = 0
    passed: int = 0
    states: dict[str, int] = Field(default_factory=dict)
    verdicts: dict[str, int] = Field(default_factory=dict)
    degeneration: Degeneration
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: bool = False
    cost: float | None = None
    wall_s: float = 0.0

    @property
    def pass_at(self) -> dict[int, float]:
        """k -> functional pass@k."""
        return {figure.k: figure.value for figure in self.functional}


def summarise(settings: Settings, samples: Sequence[Scored], stopped: str = "") -> EvalReport:
    """Figures over ``samples``; tasks without a finished sample are not part of any denominator."""
    config = settings.config
    ordered = sorted(samples, key=lambda scored: (settings.tasks.index(scored.task), scored.sample))
    by_task: dict[str, list[Scored]] = {}
    for scored in ordered:
        by_task.setdefault(scored.task, []).append(scored)
    tasks = tuple(_figures(task, found) for task, found in by_task.items())
    wanted = (len(settings.tasks) - len(settings.excluded)) * config.samples
    results = [scored.result for scored in ordered]
    models = sorted({name for role in type(config.models).model_fields if (name := config.model_of(role))})
    costs = [result.cost for result in results]
    return EvalReport(
        benchmark=settings.benchmark,
        mode=config.mode,
        bench_source=config.bench_source,
        model=", ".join(models) or config.provider,
        complete=len(ordered) == wanted,
        stopped=stopped,
        missing=wanted - len(ordered),
        tasks=tasks,
        excluded=settings.excluded,
        samples=len(ordered),
        functional=_pass([(t.samples, t.passed) for t in tasks], config.k),
        syntax=_pass([(t.samples, t.compiled) for t in tasks], config.k),
        accepted=sum(result.succeeded for result in results),
        passed=sum(scored.passed for scored in ordered),
        states=dict(Counter(result.state for result in results).most_common()),
        verdicts=dict(Counter(s.sim.status.value if s.sim else "no_code" for s in ordered).most_common()),
        degeneration=measure(ordered),
        calls=sum(result.calls for result in results),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        completion_tokens=sum(result.completion_tokens for result in results),
        estimated=any(result.estimated for result in results),
        cost=sum(cost for cost in costs if cost is not None) if costs and None not in costs else None,
        wall_s=sum(result.wall_s for result in results),
    )


def _figures(task: str, samples: Sequence[Scored]) -> TaskFigures:
    n = len(samples)
    costs = [scored.result.cost for scored in samples]
    return TaskFigures(
        task=task,
        samples=n,
        compiled=sum(scored.compiled for scored in samples),
        passed=sum(scored.passed for scored in samples),
        accepted=sum(scored.result.succeeded for scored in samples),
        calls=sum(s.result.calls for s in samples) / n,
        tokens=sum(s.result.prompt_tokens + s.result.completion_tokens for s in samples) / n,
        cost=sum(c for c in costs if c is not None) / n if None not in costs else None,
        model_s=sum(s.result.model_s for s in samples) / n,
        wall_s=sum(s.result.wall_s for s in samples) / n,
    )


def _pass(counts: Sequence[tuple[int, int]], ks: Sequence[int]) -> tuple[PassAtK, ...]:
    """pass@k for every k that all tasks have samples enough for."""
    fewest = min((n for n, _ in counts), default=0)
    return tuple(estimate(counts, k) for k in ks if k <= fewest)
