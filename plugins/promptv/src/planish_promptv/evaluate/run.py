"""``evaluate``: samples of every task, many at a time, each scored by the benchmark's own bench in a fresh process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from planish_promptv.agents.budget import BudgetReached, Spending
from planish_promptv.agents.generate import open_simulator
from planish_promptv.agents.loop import Generation
from planish_promptv.agents.prompts import PromptPack, load_pack
from planish_promptv.agents.result import GenerationResult
from planish_promptv.agents.trace import Trace
from planish_promptv.config import EvaluationConfig
from planish_promptv.evaluate.folder import Review, RunFolder, Scored, Settings, data_digest
from planish_promptv.evaluate.selection import excluded, load, select
from planish_promptv.evaluate.summary import EvalReport, summarise
from planish_promptv.jsonl import JsonLines
from planish_promptv.models.ledger import Ledger, RecordingProvider
from planish_promptv.models.opening import open_provider
from planish_promptv.models.protocol import Provider
from planish_promptv.types import Artifact, SimResult, Task

Progress = Callable[[int, int, str], None]


async def evaluate(
    benchmark: str,
    config: EvaluationConfig,
    out: Path,
    *,
    tasks: Sequence[Task] | None = None,
    only: Sequence[str] = (),
    provider: Provider | None = None,
    simulator: Any = None,
    progress: Progress | None = None,
    cancel: asyncio.Event | None = None,
) -> EvalReport:
    """Evaluate a benchmark; repeating the call on the same folder continues, and pays for nothing twice.

    Args:
        benchmark: name or folder, see `harness.load_benchmark`; a mere label where ``tasks`` are given.
        out: the folder of this evaluation.
        only: ids of the tasks to run; all by default.
        provider, simulator: instead of those that ``config`` describes; the caller closes them.
        progress: called with finished samples, all samples, and one line.
        cancel: once set, no further call begins; what is finished is kept.

    Returns:
        The figures; ``complete`` is False where the evaluation was cancelled or its budget is spent.

    Raises:
        ModelError: the endpoint fails or refuses the key. Finished samples and paid replies are kept.
        PlanishError: for mistakes in options, benchmark or folder, found before anything is paid for.
    """
    chosen = select(tasks if tasks is not None else load(benchmark, config.errata), only)
    pack = load_pack(config.prompt_pack)
    folder = RunFolder(out)
    inner = provider or open_provider(config)
    sim = simulator or open_simulator(config)
    try:
        with folder.locked():
            settings = folder.claim(
                Settings(
                    benchmark=benchmark,
                    tasks=tuple(task.id for task in chosen),
                    data=data_digest(chosen),
                    excluded=excluded(chosen),
                    config=config,
                    pack={"name": pack.name, "version": pack.version, "sha256": pack.sha256},
                    address=inner.address,
                    tools=dict(sim.tools),
                    started=time.time(),
                )
            )
            ledger = Ledger(folder.ledger)
            try:
                session = Session(folder, settings, config, pack, RecordingProvider(ledger, inner), sim)
                return await session.run(chosen, progress or (lambda *_: None), cancel)
            finally:
                ledger.close()
    finally:
        if provider is None:
            await inner.aclose()
        if simulator is None:
            sim.close()


def evaluate_sync(benchmark: str, config: EvaluationConfig, out: Path, **options: Any) -> EvalReport:
    """`evaluate` for code that is not asynchronous."""
    return asyncio.run(evaluate(benchmark, config, out, **options))


@dataclass(slots=True)
class Session:
    """One process at work on one evaluation.

    Attributes:
        truths: verdict of the benchmark's bench by task and digest of the code.
    """

    folder: RunFolder
    settings: Settings
    config: EvaluationConfig
    pack: PromptPack
    provider: RecordingProvider
    simulator: Any
    truths: dict[tuple[str, str], SimResult] = field(default_factory=dict)

    async def run(self, tasks: list[Task], progress: Progress, cancel: asyncio.Event | None) -> EvalReport:
        counted = [task for task in tasks if task.id not in self.settings.excluded]
        done = {scored.key: scored for scored in self.folder.finished()}
        wanted = [(task, sample) for task in counted for sample in range(self.config.samples)]
        todo = iter([(t, s) for t, s in wanted if self.settings.key(t.id, s) not in done])
        total = Spending(self.config.total_budget)
        for scored in done.values():
            self._already(total, scored.result)
        lines = JsonLines(self.folder.samples)
        stopped: list[str] = []
        failed = asyncio.Event()
        started = time.monotonic()

        def stopping() -> bool:
            return failed.is_set() or (cancel is not None and cancel.is_set())

        async def worker() -> None:
            for task, sample in todo:
                if stopping():
                    return
                try:
                    scored = await self.sample(task, sample, Spending(self.config.budget, total, stopping))
                except BudgetReached as reached:
                    stopped.append(f"total_budget, {reached}")
                    failed.set()
                    return
                if scored.result.state == "cancelled":
                    return  # not finished: its calls are in the ledger, and it is run again
                lines.append(scored.model_dump(mode="json"))
                done[scored.key] = scored
                progress(len(done), len(wanted), _line(scored, total, len(done), len(wanted), started))

        try:
            progress(len(done), len(wanted), "taken over from before" if done else "")
            await _all(worker, min(self.config.parallel_samples, max(1, len(wanted))), failed)
        finally:
            lines.close()
        if cancel is not None and cancel.is_set():
            stopped.append("cancelled")
        return summarise(self.settings, list(done.values()), stopped=stopped[0] if stopped else "")

    async def sample(self, task: Task, sample: int, spending: Spending) -> Scored:
        """Generate one sample and score it; one that was cancelled is not scored."""
        trace = Trace(self.folder.trace(task.id, sample))
        try:
            generation = Generation(
                task,
                self.config,
                self.provider,
                self.simulator,
                self.pack,
                trace,
                self.config.seed,
                sample,
                spending,
            )
            result = await generation.run()
        finally:
            trace.close()
        if result.state == "cancelled":
            return Scored(key="", task=task.id, sample=sample, result=result)
        texts = {event["sha256"]: event["artifact"] for event in trace.events if event["event"] == "artifact"}
        sim = None
        if result.code is not None:
            sim = await self._truth(task, Artifact(kind="code", text=result.code, author="best"), fresh=True)
        reviews = []
        for step in result.steps:
            if step.reviewed:
                truth = await self._truth(task, Artifact.model_validate(texts[step.reviewed_code]))
                saw = step.reviewed in ("code_wrong", "both")
                reviews.append(
                    Review(attempt=step.attempt, round=step.round, saw_error=saw, wrong=not truth.passed)
                )
        return Scored(
            key=self.settings.key(task.id, sample),
            task=task.id,
            sample=sample,
            result=result,
            sim=sim,
            reviews=tuple(reviews),
        )

    async def _truth(self, task: Task, code: Artifact, fresh: bool = False) -> SimResult:
        """Verdict of the benchmark's own bench; a final score is always a new process."""
        key = (task.id, code.sha256)
        if fresh or key not in self.truths:
            self.truths[key] = await self.simulator.simulate(task, code, None)
        return self.truths[key]

    def _already(self, total: Spending, result: GenerationResult) -> None:
        """What finished samples have spent counts against the evaluation's budget."""
        total.calls += result.calls
        total.prompt += result.prompt_tokens
        total.completion += result.completion_tokens
        total.seconds += result.model_s
        total.cost = None if total.cost is None or result.cost is None else total.cost + result.cost


async def _all(worker: Callable[[], Any], count: int, failed: asyncio.Event) -> None:
    """Run workers; when one fails the others finish the calls in flight, and the first error is raised."""

    async def guarded() -> None:
        try:
            await worker()
        except BaseException:
            failed.set()
            raise

    outcomes = await asyncio.gather(*(guarded() for _ in range(count)), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


def _line(scored: Scored, total: Spending, done: int, wanted: int, started: float) -> str:
    """Progress: the sample, what was spent, and what all of it will come to at this rate."""
    cost = f", ${total.cost:.2f} (about ${total.cost / done * wanted:.2f} in all)" if total.cost else ""
    verdict = "pass" if scored.passed else scored.sim.status.value if scored.sim else "no code"
    minutes = (time.monotonic() - started) / 60
    return (
        f"{scored.task} #{scored.sample}: {scored.result.state}, {verdict}; "
        f"{total.calls} calls, {total.tokens:,} tokens{cost}, {minutes:.1f} min"
    )
