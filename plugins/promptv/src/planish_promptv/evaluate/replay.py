"""Replay: an evaluation again from its ledger, without any model and without the network, simulations included."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

from planish.errors import RunError
from planish_promptv.agents.budget import Spending
from planish_promptv.agents.generate import open_simulator
from planish_promptv.agents.prompts import load_pack
from planish_promptv.agents.trace import fingerprint
from planish_promptv.evaluate.folder import RunFolder, Scored, data_digest
from planish_promptv.evaluate.run import Progress, Session
from planish_promptv.evaluate.selection import load, select
from planish_promptv.models.ledger import Ledger, RecordingProvider
from planish_promptv.models.prices import Prices
from planish_promptv.types import Record, Task


class Difference(Record):
    """A sample that a replay ended otherwise."""

    task: str
    sample: int
    what: str
    recorded: str
    replayed: str


class ReplayReport(Record):
    """Outcome of a replay.

    Attributes:
        samples: how many were replayed. same_traces: how many traces are equal byte for byte, apart from times.
        differences: verdicts that are not what was recorded; none is the promise.
    """

    samples: int
    same_traces: int
    differences: tuple[Difference, ...] = ()

    @property
    def same(self) -> bool:
        return not self.differences


async def replay(
    root: Path,
    *,
    tasks: Sequence[Task] | None = None,
    simulator: Any = None,
    progress: Progress | None = None,
) -> ReplayReport:
    """Run every finished sample again from recorded replies and compare.

    Args:
        root: the folder of an evaluation; nothing is written to it.
        tasks: the benchmark's tasks, where it has no name to load them by.

    Raises:
        RunError: no evaluation there, the benchmark is another by now, or the prompts are.
        ReplayMiss: a call is not in the ledger.
    """
    folder = RunFolder(root)
    settings = folder.settings()
    config = settings.config
    chosen = select(
        tasks if tasks is not None else load(settings.benchmark, config.errata),
        settings.tasks,
    )
    if data_digest(chosen) != settings.data:
        raise RunError(f"{root}: benchmark {settings.benchmark!r} is not what it was when this was run")
    pack = load_pack(config.prompt_pack)
    if pack.sha256 != settings.pack["sha256"]:
        raise RunError(f"{root}: prompt pack {pack.name!r} is not what it was when this was run")
    provider = RecordingProvider(
        Ledger(folder.ledger, frozen=True), None, settings.address, Prices.read(config.prices)
    )
    finished = folder.finished()
    by_id = {task.id: task for task in chosen}
    differences: list[Difference] = []
    same = 0
    done = 0
    sim = simulator or open_simulator(config)
    try:
        with tempfile.TemporaryDirectory(prefix="promptv-replay-") as scratch:
            elsewhere = RunFolder(Path(scratch))
            session = Session(elsewhere, settings, config, pack, provider, sim)

            async def again(recorded: Scored) -> None:
                nonlocal same, done
                found = await session.sample(by_id[recorded.task], recorded.sample, Spending(config.budget))
                differences.extend(_compare(recorded, found))
                old, new = (f.trace(recorded.task, recorded.sample) for f in (folder, elsewhere))
                same += fingerprint(old) == fingerprint(new)
                done += 1
                if progress:
                    progress(done, len(finished), f"{recorded.task} #{recorded.sample}")

            await _limited([again(recorded) for recorded in finished], config.parallel_samples)
    finally:
        if simulator is None:
            sim.close()
    return ReplayReport(samples=len(finished), same_traces=same, differences=tuple(differences))


async def _limited(jobs: Sequence[Coroutine[Any, Any, None]], limit: int) -> None:
    """Run jobs, at most ``limit`` at once; the first error cancels the rest."""
    slots = asyncio.Semaphore(limit)

    async def one(job: Coroutine[Any, Any, None]) -> None:
        async with slots:
            await job

    running = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        await asyncio.gather(*running)
    finally:
        for job in running:
            job.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def _compare(recorded: Scored, found: Scored) -> list[Difference]:
    pairs = {
        "state": (recorded.result.state, found.result.state),
        "code": (recorded.result.code, found.result.code),
        "verdict": (_verdict(recorded), _verdict(found)),
        "steps": (_steps(recorded), _steps(found)),
    }
    return [
        Difference(
            task=found.task, sample=found.sample, what=what, recorded=str(old)[:200], replayed=str(new)[:200]
        )
        for what, (old, new) in pairs.items()
        if old != new
    ]


def _verdict(scored: Scored) -> str:
    if scored.sim is None:
        return "no code"
    return f"{scored.sim.status} {scored.sim.mismatches} in {scored.sim.samples}"


def _steps(scored: Scored) -> list[Any]:
    return [step.model_dump(mode="json") for step in scored.result.steps]
