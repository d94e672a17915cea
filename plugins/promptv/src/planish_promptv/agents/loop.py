"""The loop of PromptV: drafts, review, repair by two learners, simulation; at most some rounds, then a fresh start.

Paper: version 1 (teacher, learners) is mode ``promptv``; version 2 (a prosecutor refines the research agent's advice)
is mode ``coopetitive``. Simulating the drafts first, restarting a fixed number of times, the guards against standing
still and the budget are ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from planish_promptv import hooks
from planish_promptv.agents import extract
from planish_promptv.agents.budget import BudgetReached, Cancelled, Spending
from planish_promptv.agents.candidate import Candidate
from planish_promptv.agents.conversation import Alone, Answer, Place, Speaker
from planish_promptv.agents.prompts import PromptPack, as_json, describe, listed
from planish_promptv.agents.result import GenerationResult, State, Step
from planish_promptv.agents.showing import shown, simulator_text
from planish_promptv.agents.trace import Trace
from planish_promptv.config import GenerationConfig
from planish_promptv.harness import verilog
from planish_promptv.models.protocol import ContextOverflow, Provider
from planish_promptv.types import Advice, Artifact, BenchQuality, SimResult, Task

A = TypeVar("A")
B = TypeVar("B")


class Simulating(Protocol):
    """What the loop needs of a simulator."""

    async def simulate(self, task: Task, code: Artifact, bench: Artifact | None = None) -> SimResult: ...

    async def quality(self, task: Task, bench: Artifact) -> BenchQuality: ...


class _Ended(Exception):
    """An attempt is over without success."""

    def __init__(self, how: State) -> None:
        super().__init__(how)
        self.how = how


@dataclass(slots=True)
class Generation:
    """One sample of one task.

    Args:
        sample: its number; with ``seed`` it decides every seed that models are given.
        cancel: set it to stop; the result's state is then ``cancelled``.
    """

    task: Task
    config: GenerationConfig
    provider: Provider
    simulator: Simulating
    pack: PromptPack
    trace: Trace = field(default_factory=Trace)
    seed: int = 0
    sample: int = 0
    spending: Spending = field(default_factory=Spending)
    best: Candidate | None = None
    steps: list[Step] = field(default_factory=list)
    format_errors: int = 0
    repairs: int = 0
    no_ops: int = 0

    async def run(self) -> GenerationResult:
        """Attempts until one succeeds, none is left, or a limit is reached.

        Raises:
            ModelError: no model can be reached, or it refuses the key; what was paid for is in the ledger.
            BudgetReached: the evaluation's own budget is spent.
        """
        started = time.monotonic()
        ends: list[str] = []
        detail = ""
        state: State
        try:
            for attempt in range(self.config.max_restarts + 1):
                ends.append(await self._attempt(attempt))
                if ends[-1] == "success":
                    break
            state = _final(ends)
        except BudgetReached as reached:
            if reached.total:
                raise
            state, detail = "budget", str(reached)
        except Cancelled:
            state = "cancelled"
        except ContextOverflow as error:
            state, detail = "context_overflow", str(error)
        if state != "cancelled":  # which is no end: the sample goes on when it is resumed
            self.trace.add("decision", what="end", state=state, detail=detail)
        return self._result(state, ends, detail, time.monotonic() - started)

    async def _attempt(self, attempt: int) -> State:
        """One attempt: nothing is carried over but counters."""
        self.trace.add("decision", what="attempt", attempt=attempt)
        speaker = self._speaker()
        try:
            code, bench = await self._drafts(speaker, attempt)
            seen: set[tuple[str, str]] = set()
            last: Candidate | None = None
            if self.config.simulates_drafts:
                last = await self._simulate(code, bench, attempt, 0, seen)
                if last.accepted:
                    return "success"
            for number in range(1, self.config.rounds + 1):
                place = Place(self.task.id, self.sample, attempt, number)
                advice = await self._review(speaker, place, code, bench, last)
                reviewed = code
                code, bench, repaired, changed = await self._repair(speaker, place, code, bench, advice)
                last = await self._simulate(
                    code,
                    bench,
                    attempt,
                    number,
                    seen,
                    reviewed=advice.verdict,
                    reviewed_code=reviewed.sha256,
                    repaired=repaired,
                    changed=changed,
                )
                if last.accepted:
                    return "success"
        except _Ended as end:
            self.trace.add("decision", what="attempt ends", attempt=attempt, how=end.how)
            return end.how
        self.trace.add("decision", what="attempt ends", attempt=attempt, how="exhausted")
        return "exhausted"

    def _speaker(self) -> Speaker:
        kind = Alone if self.config.mode == "single_agent" else Speaker
        return kind(self.provider, self.pack, self.config, self.spending, self.trace, self.seed)

    async def _drafts(self, speaker: Speaker, attempt: int) -> tuple[Artifact, Artifact | None]:
        """First code and, unless the task's own bench is used, first bench; at the same time where roles are apart."""
        place = Place(self.task.id, self.sample, attempt, 0)
        values = describe(self.task, self.config.language_note)
        wanted = [speaker.ask("coder", place, values, self._read_code)]
        if self.config.bench_source == "generated":
            wanted.append(speaker.ask("bencher", place, values, _read_bench))
        texts = await self._in_order(speaker, *wanted)
        if any(text is None for text in texts):
            raise _Ended("format_error")
        code = self._artifact("code", str(texts[0]), "coder", attempt, 0)
        if len(texts) == 1:
            return code, None
        return code, self._artifact("testbench", str(texts[1]), "bencher", attempt, 0)

    async def _review(
        self, speaker: Speaker, place: Place, code: Artifact, bench: Artifact | None, last: Candidate | None
    ) -> Advice:
        """The teacher's advice; in mode coopetitive as the prosecutor leaves it. No advice where none can be read."""
        values = shown(self.task, code, bench)
        advised = hooks.lint(self.task, code.text)

        def simulation(limit: int) -> str:
            return simulator_text(last, advised, limit)

        (advice,) = await self._in_order(
            speaker, speaker.ask("teacher", place, values, extract.advice, simulation)
        )
        advice = advice or Advice(verdict="none")
        if self.config.mode == "coopetitive":
            (refined,) = await self._in_order(
                speaker,
                speaker.ask(
                    "prosecutor", place, {**values, "advice": as_json(advice)}, extract.advice, simulation
                ),
            )
            advice = refined or advice
        if bench is None and advice.testbench_advice:
            advice = advice.model_copy(
                update={"testbench_advice": (), "verdict": "code_wrong" if advice.code_advice else "none"}
            )
        self.trace.add(
            "decision",
            what="advice",
            round=place.round,
            advice=advice.model_dump(mode="json", exclude={"raw"}),
        )
        return advice

    async def _repair(
        self, speaker: Speaker, place: Place, code: Artifact, bench: Artifact | None, advice: Advice
    ) -> tuple[Artifact, Artifact | None, tuple[str, ...], tuple[str, ...]]:
        """Both learners, each only where there is advice for its side; an unusable reply leaves the text as it is."""
        values = shown(self.task, code, bench)
        wanted, sides = [], []
        if advice.code_advice:
            mine = {**values, "advice": listed(advice.code_advice)}
            wanted.append(speaker.ask("learner_code", place, mine, self._read_code))
            sides.append("code")
        if advice.testbench_advice and bench is not None:
            mine = {**values, "advice": listed(advice.testbench_advice)}
            wanted.append(speaker.ask("learner_bench", place, mine, _read_bench))
            sides.append("testbench")
        texts = dict(zip(sides, await self._in_order(speaker, *wanted), strict=True))
        before = (code, bench)
        if text := texts.get("code"):
            code = self._artifact("code", text, "learner_code", place.attempt, place.round, code)
        if (text := texts.get("testbench")) and bench is not None:
            bench = self._artifact("testbench", text, "learner_bench", place.attempt, place.round, bench)
        changed = [
            side
            for side, old, new in zip(("code", "testbench"), before, (code, bench), strict=True)
            if old and new and old.sha256 != new.sha256
        ]
        self.repairs += bool(sides)
        self.no_ops += bool(sides) and not changed
        return code, bench, tuple(sides), tuple(changed)

    async def _simulate(
        self,
        code: Artifact,
        bench: Artifact | None,
        attempt: int,
        number: int,
        seen: set[tuple[str, str]],
        **facts: Any,
    ) -> Candidate:
        """Simulate a pair that was not simulated in this attempt before.

        Raises:
            _Ended: the pair was simulated before: the attempt stands still.
        """
        pair = (code.sha256, bench.sha256 if bench else "")
        if pair in seen:
            raise _Ended("stalled")
        seen.add(pair)
        sim = await self.simulator.simulate(self.task, code, bench)
        quality = await self._quality(code, bench) if bench and sim.passed else None
        found = Candidate(code, bench, sim, quality, attempt, number)
        if self.best is None or found.order < self.best.order:
            self.best = found
        step = Step(
            attempt=attempt,
            round=number,
            code=pair[0],
            bench=pair[1],
            stage=sim.stage,
            status=sim.status,
            mismatches=sim.mismatches,
            samples=sim.samples,
            signature=sim.signature(),
            accepted=found.accepted,
            vacuous=bool(quality and quality.vacuous),
            **facts,
        )
        self.steps.append(step)
        self.trace.add(
            "sim",
            step=step.model_dump(mode="json"),
            sim=sim.model_dump(mode="json"),
            quality=quality.model_dump(mode="json") if quality else None,
        )
        return found

    async def _quality(self, code: Artifact, bench: Artifact) -> BenchQuality | None:
        """Whether a generated bench can fail; where the task names no ports, they are the candidate's."""
        task = self.task
        if not (task.ports or task.header or task.reference):
            task = task.model_copy(update={"ports": verilog.ports(code.text, task.top_name)})
            if not task.ports:
                return None
        return await self.simulator.quality(task, bench)

    async def _in_order(
        self, speaker: Speaker, *questions: Coroutine[Any, Any, tuple[A | None, list[Answer]]]
    ) -> list[A | None]:
        """Ask at the same time, or one after the other in a growing conversation; note the answers in order."""
        try:
            self.spending.allow(len(questions))
        except BudgetReached:
            for question in questions:
                question.close()
            raise
        if isinstance(speaker, Alone):
            try:
                asked = [await question for question in questions]
            finally:
                for question in questions:
                    question.close()
        else:
            # All are awaited even when one fails, so that no reply that is paid for is thrown away.
            outcomes = await asyncio.gather(*questions, return_exceptions=True)
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
            asked = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        for value, answers in asked:
            speaker.note(answers)
            self.format_errors += len(answers) - (value is not None)
        return [value for value, _ in asked]

    def _artifact(
        self,
        kind: str,
        text: str,
        author: str,
        attempt: int,
        number: int,
        parent: Artifact | None = None,
    ) -> Artifact:
        made = Artifact.model_validate(
            {
                "kind": kind,
                "text": text,
                "author": author,
                "parent": parent.sha256 if parent else None,
                "round": number,
                "attempt": attempt,
            }
        )
        self.trace.add("artifact", sha256=made.sha256, artifact=made.model_dump(mode="json"))
        return made

    def _read_code(self, reply: Any) -> str:
        return extract.extract(reply, self.task.top_name, self.task.header)

    def _result(self, state: State, ends: list[str], detail: str, wall: float) -> GenerationResult:
        best, spent = self.best, self.spending
        return GenerationResult(
            task=self.task.id,
            sample=self.sample,
            mode=self.config.mode,
            state=state,
            code=best.code.text if best else None,
            bench=best.bench.text if best and best.bench else None,
            sim=best.sim if best else None,
            quality=best.quality if best else None,
            attempts=tuple(ends),
            steps=tuple(self.steps),
            repairs=self.repairs,
            no_ops=self.no_ops,
            format_errors=self.format_errors,
            calls=spent.calls,
            prompt_tokens=spent.prompt,
            completion_tokens=spent.completion,
            estimated=spent.estimated,
            cost=spent.cost,
            model_s=spent.seconds,
            wall_s=wall,
            detail=detail,
        )


def _read_bench(reply: Any) -> str:
    return extract.extract(reply, "tb")


def _final(ends: list[str]) -> State:
    """How a sample ended: like all of its attempts where they ended alike."""
    if ends[-1] == "success":
        return "success"
    return ends[0] if len(set(ends)) == 1 else "exhausted"  # type: ignore[return-value]
