"""Guard, lint, compile, simulate, judge: one candidate against one bench, in a private folder inside the sandbox."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from planish import measure
from planish_promptv.harness import guard, stubs, verdict
from planish_promptv.harness.job import Job, Place, TaskError, job_files
from planish_promptv.harness.process import Completed, Limits, Pool, Token
from planish_promptv.harness.sandbox import find
from planish_promptv.harness.tools import PROGRAMS, tool_folders, versions
from planish_promptv.types import Artifact, Bench, BenchQuality, Diagnostic, SimResult, Stage, Status, Task

T = TypeVar("T")


class Simulator:
    """Judges candidates. Safe to use from many threads; at most ``slots`` jobs run at one time.

    Args:
        slots: jobs at one time; the cores of this process by default.
        allow_unsandboxed: accept resource limits alone where neither bubblewrap nor unshare works.
        tier: ``bwrap``, ``unshare`` or ``rlimits``; the best that works by default.
        keep: folder in which every job's files are kept.
        limits: what one tool call may use.
        strict_timeout: a bench that prints TIMEOUT has failed even if every sample matches (the upstream rule).
        lint: run verilator too; its warnings become diagnostics, only its errors end the job.
        allow_display: let designs print.

    Raises:
        SandboxError: no sandbox works here.
    """

    def __init__(
        self,
        *,
        slots: int | None = None,
        allow_unsandboxed: bool = False,
        tier: str | None = None,
        keep: Path | None = None,
        limits: Limits | None = None,
        strict_timeout: bool = False,
        lint: bool = False,
        allow_display: bool = False,
    ) -> None:
        self.slots = slots or measure.cores()
        self.limits = limits or Limits()
        self.keep = keep
        self._pool = Pool(self.slots)
        self._threads = ThreadPoolExecutor(self.slots, "planish-verilog")
        self._stubs: dict[str, BenchQuality] = {}
        try:
            sandbox = find(self._pool, tool_folders(), tier, allow_unsandboxed)
        except BaseException:
            self.close()
            raise
        self._place = Place(self._pool, sandbox, self.limits, strict_timeout, lint, allow_display)

    @property
    def tier(self) -> str:
        """How tools are confined."""
        return self._place.sandbox.tier

    @functools.cached_property
    def tools(self) -> dict[str, str]:
        """Program -> version, of those that are installed."""
        return versions()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the launcher processes."""
        self._threads.shutdown(cancel_futures=True)
        self._pool.close()

    def simulate_sync(
        self,
        task: Task,
        code: str | Artifact,
        bench: Bench | Artifact | str | None = None,
        token: Token | None = None,
    ) -> SimResult:
        """Judge ``code`` by ``bench``, or by the task's own bench.

        Whatever the code and a generated bench do ends in a classed result.

        Raises:
            TaskError: the task names no top module, or there is no bench.
            Cancelled: ``token`` was cancelled.
        """
        return self._judge(task, code, _bench(task, bench), simulate=True, token=token)

    def check_sync(
        self,
        task: Task,
        code: str | Artifact,
        bench: Bench | Artifact | str | None = None,
        token: Token | None = None,
    ) -> SimResult:
        """Guard, lint and compile; with no bench at hand the code is compiled alone. Status pass means it compiles."""
        given = bench is not None or task.provided_testbench is not None
        return self._judge(task, code, _bench(task, bench) if given else None, simulate=False, token=token)

    def quality_sync(
        self, task: Task, bench: Bench | Artifact | str | None = None, token: Token | None = None
    ) -> BenchQuality:
        """Whether the bench fails a design whose outputs are constantly 0, 1 or x, as it must.

        A bench that a stub does not compile with proves nothing: it counts as vacuous. Results are kept by digest.

        Raises:
            TaskError: the ports of the design are not known.
        """
        chosen = _bench(task, bench)
        key = chosen.sha256
        if key not in self._stubs:
            statuses = {}
            for name, text in stubs.stubs(task).items():
                statuses[name] = self._judge(task, text, chosen, simulate=True, token=token).status
            accepted = [s for s in statuses.values() if s not in _STUB_FAILED]
            self._stubs[key] = BenchQuality(vacuous=bool(accepted), stubs=statuses)
        return self._stubs[key]

    async def simulate(
        self, task: Task, code: str | Artifact, bench: Bench | Artifact | str | None = None
    ) -> SimResult:
        """`simulate_sync` without blocking the event loop; cancelling the awaiting task kills the job's processes."""
        return await self._in_thread(self.simulate_sync, task, code, bench)

    async def check(
        self, task: Task, code: str | Artifact, bench: Bench | Artifact | str | None = None
    ) -> SimResult:
        """`check_sync` without blocking the event loop."""
        return await self._in_thread(self.check_sync, task, code, bench)

    async def quality(self, task: Task, bench: Bench | Artifact | str | None = None) -> BenchQuality:
        """`quality_sync` without blocking the event loop."""
        return await self._in_thread(self.quality_sync, task, bench)

    async def _in_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        token = Token()
        call = functools.partial(work, *arguments, token=token)
        job = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            token.cancel()
            await asyncio.gather(job, return_exceptions=True)
            raise

    def run_tool(
        self,
        argv: list[str],
        files: dict[str, str],
        outputs: tuple[str, ...] = (),
        token: Token | None = None,
    ) -> tuple[Completed, dict[str, str]]:
        """Run one program on ``files`` (relative name -> text) in a fresh folder inside the sandbox.

        Returns:
            How it ended, and the texts of those ``outputs`` that it wrote.
        """
        job = Job(self._place, files, token)
        try:
            done = job.run(argv)
            paths = {name: job.folder / name for name in outputs}
            return done, {
                name: path.read_text(encoding="utf-8", errors="replace")
                for name, path in paths.items()
                if path.is_file() and not path.is_symlink()
            }
        finally:
            job.delete()

    def _judge(
        self, task: Task, code: str | Artifact, bench: Bench | None, simulate: bool, token: Token | None
    ) -> SimResult:
        if not task.top_name:
            raise TaskError(f"task {task.id}: top_name is empty; it must name the module to be designed")
        text = code.text if isinstance(code, Artifact) else code
        start = time.monotonic()
        result = SimResult(stage=Stage.GUARD, status=Status.PASS, tools=self.tools, tier=self.tier)
        if "iverilog" not in self.tools:
            message = f"iverilog is not installed: {PROGRAMS['iverilog']}"
            return result.model_copy(
                update={
                    "status": Status.TOOL_MISSING,
                    "diagnostics": (Diagnostic(code="tool", message=message),),
                }
            )
        refused = self._place.refused(task, text, bench)
        if bench and not refused:
            refused = (
                guard.check_bench(bench.text, task.top_name)
                if bench.verdict == "nonce"
                else guard.check_paths(bench)
            )
        if refused:
            return result.model_copy(update={"status": Status.GUARD_REJECT, "diagnostics": tuple(refused)})
        word = verdict.nonce()
        job = Job(self._place, job_files(task, text, bench, word), token, word)
        try:
            result = job.judge(result, task, bench, simulate)
            if self.keep:
                job.store(self.keep, task.id)
        finally:
            job.delete()
        return result.model_copy(update={"wall_s": time.monotonic() - start})


_STUB_FAILED = (Status.FAIL, Status.TIMEOUT_CPU, Status.TIMEOUT_WALL)


def _bench(task: Task, bench: Bench | Artifact | str | None) -> Bench:
    if isinstance(bench, Bench):
        return bench
    if bench is not None:
        text = bench.text if isinstance(bench, Artifact) else bench
        return Bench(text=text, top="tb", verdict="nonce")
    if task.provided_testbench is None:
        raise TaskError(f"task {task.id}: no bench was given and the task brings none")
    return task.provided_testbench


def accepted(sim: SimResult, quality: BenchQuality | None = None) -> bool:
    """Whether a candidate may be taken: it passed (samples and nonce are part of that), by a bench that can fail."""
    return sim.passed and not (quality and quality.vacuous)
