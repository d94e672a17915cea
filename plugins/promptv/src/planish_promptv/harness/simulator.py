"""Guard, lint, compile, simulate, judge: one candidate against one bench, in a private folder inside the sandbox."""

from __future__ import annotations

import asyncio
import functools
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from planish import measure
from planish.errors import PlanishError
from planish_promptv.harness import guard, icarus, stubs, vcd, verdict, verilog
from planish_promptv.harness.process import Completed, Limits, Pool, Token
from planish_promptv.harness.sandbox import Sandbox, find, work_folder
from planish_promptv.types import Artifact, Bench, BenchQuality, Diagnostic, SimResult, Stage, Status, Task

T = TypeVar("T")
PROGRAMS = {
    "iverilog": "apt-get install iverilog",
    "vvp": "apt-get install iverilog",
    "verilator": "apt-get install verilator",
    "yosys": "apt-get install yosys",
    "bwrap": "apt-get install bubblewrap",
}
_TAIL = 4000


class TaskError(PlanishError):
    """A task that cannot be simulated as it stands."""


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
        self.strict_timeout = strict_timeout
        self.lint = lint
        self.allow_display = allow_display
        self._pool = Pool(self.slots)
        self._threads = ThreadPoolExecutor(self.slots, "planish-verilog")
        self._stubs: dict[str, BenchQuality] = {}
        try:
            self._sandbox = find(self._pool, tool_folders(), tier, allow_unsandboxed)
        except BaseException:
            self.close()
            raise

    @property
    def tier(self) -> str:
        """How tools are confined."""
        return self._sandbox.tier

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
        job = _Job(self, files, token)
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
        refused = self._refused(task, text, bench)
        if bench and not refused:
            refused = (
                guard.check_bench(bench.text, task.top_name)
                if bench.verdict == "nonce"
                else guard.check_paths(bench)
            )
        if refused:
            return result.model_copy(update={"status": Status.GUARD_REJECT, "diagnostics": tuple(refused)})
        word = verdict.nonce()
        job = _Job(self, _files(task, text, bench, word), token, word)
        try:
            result = job.judge(result, task, bench, simulate)
            if self.keep:
                job.store(self.keep, task.id)
        finally:
            job.delete()
        return result.model_copy(update={"wall_s": time.monotonic() - start})

    def _refused(self, task: Task, text: str, bench: Bench | None) -> list[Diagnostic]:
        return guard.check_design(text, bench, self.allow_display, task.top_name, task.ports or ())


class _Job:
    """One private folder and the tools that run in it."""

    def __init__(
        self, simulator: Simulator, files: dict[str, str], token: Token | None, word: str = ""
    ) -> None:
        self._simulator = simulator
        self._sandbox: Sandbox = simulator._sandbox
        self._token = token
        self._word = word
        self._limits = simulator.limits
        self.cpu_s = self.peak_mb = 0.0
        self.folder = work_folder(self._sandbox)
        try:
            for name, text in files.items():
                self._place(name, text)
        except BaseException:
            self.delete()
            raise

    def _place(self, name: str, text: str) -> None:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise TaskError(f"file {name!r}: names must be relative and stay in the job's folder")
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8", errors="replace")
        if self._sandbox.drop:
            shutil.chown(target, self.folder.stat().st_uid, self.folder.stat().st_gid)
            for place in list(target.relative_to(self.folder).parents)[:-1]:
                shutil.chown(self.folder / place, self.folder.stat().st_uid, self.folder.stat().st_gid)

    def run(self, argv: list[str]) -> Completed:
        sandbox = self._sandbox
        with self._simulator._pool.runner() as runner:
            done = runner.run(
                sandbox.wrap(argv, self.folder, self._limits),
                self.folder,
                self._limits,
                sandbox.environment(self.folder),
                sandbox.drop,
                self._token,
            )
        self.cpu_s += done.cpu_s
        self.peak_mb = max(self.peak_mb, done.peak_mb)
        return done

    def _clean(self, text: str) -> str:
        """What may be shown: no paths of the host, none of this run's random names."""
        if self._word:
            text = text.replace(f"_{self._word}", "").replace(f"{self._word} ", "").replace(self._word, "")
        return icarus.clean(text.replace(f"{self.folder}/", ""))

    def judge(self, result: SimResult, task: Task, bench: Bench | None, simulate: bool) -> SimResult:
        """Run the stages until one does not pass."""
        if "`define" in (self.folder / "dut.sv").read_text(encoding="utf-8"):
            result = self._expand(result, task, bench)
        if result.passed and self._simulator.lint:
            result = self._lint(result, task)
        if result.passed:
            result = self._compile(result, task, bench)
        if result.passed and simulate:
            assert bench is not None
            result = self._simulate(result, bench)
        return result

    def _expand(self, result: SimResult, task: Task, bench: Bench | None) -> SimResult:
        """Put the expanded text in the design's place: macros can compose what the source does not show, and must not
        reach the bench."""
        argv = ["iverilog", "-E", "-g2012", "-o", "expanded.sv", "dut.sv"]
        result = self._told(result, Stage.GUARD, argv, self.run(argv))
        if not result.passed:
            return result
        expanded = self.folder / "expanded.sv"
        text = expanded.read_text(encoding="utf-8", errors="replace")
        lines = "\n".join("" if line.startswith("`line") else line for line in text.splitlines())
        refused = self._simulator._refused(task, lines, bench)
        if refused:
            placed = tuple(d.model_copy(update={"line": 0}) for d in refused)
            return result.model_copy(update={"status": Status.GUARD_REJECT, "diagnostics": placed})
        expanded.replace(self.folder / "dut.sv")
        return result

    def _lint(self, result: SimResult, task: Task) -> SimResult:
        if "verilator" not in self._simulator.tools:
            note = Diagnostic(severity="info", code="tool", message="verilator is not installed: no lint")
            return result.model_copy(update={"diagnostics": (*result.diagnostics, note)})
        argv = ["verilator", "--lint-only", "-Wall", "-Wno-fatal", "-Wno-DECLFILENAME", "-Wno-EOFNEWLINE"]
        argv += ["--top-module", task.top_name, "dut.sv"]
        done = self.run(argv)
        result = self._told(result, Stage.LINT, argv, done)
        if result.status in (Status.ELAB_ERROR, Status.UNSUPPORTED, Status.SYNTAX_ERROR) and not any(
            d.severity == "error" for d in result.diagnostics
        ):
            return result.model_copy(update={"status": Status.PASS})
        return result

    def _compile(self, result: SimResult, task: Task, bench: Bench | None) -> SimResult:
        top = bench.top if bench else task.top_name
        argv = ["iverilog", *icarus.FLAGS, "-s", top, "-o", "out.vvp", *_order(bench)]
        result = self._told(result, Stage.COMPILE, argv, self.run(argv))
        driven = tuple(d for d in result.diagnostics if _DRIVEN.fullmatch(d.message))
        if result.passed and bench and driven:
            # A design that drives its own inputs can feed x to the reference, which then matches anything.
            return result.model_copy(
                update={"status": Status.GUARD_REJECT, "diagnostics": tuple(map(_as_refusal, driven))}
            )
        return result

    def _simulate(self, result: SimResult, bench: Bench) -> SimResult:
        argv = ["vvp", "-n", "out.vvp"]
        done = self.run(argv)
        result = self._told(result, Stage.SIMULATE, argv, done)
        spoken = verdict.read(done.stdout, bench.verdict, self._word, self._simulator.strict_timeout)
        update: dict[str, Any] = {"timeout_flag": spoken.timeout}
        if result.passed:
            update |= {
                "status": spoken.status,
                "mismatches": spoken.mismatches,
                "samples": spoken.samples,
            }
            if spoken.why:
                note = Diagnostic(code="verdict", message=self._clean(spoken.why))
                update["diagnostics"] = (*result.diagnostics, note)
            if spoken.status is Status.FAIL:
                update["first_mismatch"] = self._waveform()
        return result.model_copy(update=update)

    def _waveform(self) -> Any:
        dumps = sorted(self.folder.glob("*.vcd"))
        return vcd.first_mismatch(dumps[0]) if dumps else None

    def _told(self, result: SimResult, stage: Stage, argv: list[str], done: Completed) -> SimResult:
        """``result`` with what a tool's end says about ``stage``."""
        output, errors = self._clean(done.stdout), self._clean(done.stderr)
        found = [*result.diagnostics, *icarus.diagnostics(errors + "\n" + output)]
        status = self._ended(done, stage, found)
        if status is Status.ELAB_ERROR and not any(d.severity == "error" for d in found):
            said = (errors.strip() or output.strip()).splitlines()
            message = said[-1][:300] if said else f"{argv[0]} ended with exit status {done.code}"
            found.append(Diagnostic(code="exit", message=message))
        return result.model_copy(
            update={
                "stage": stage,
                "status": status,
                "diagnostics": tuple(found),
                "output": tail(output),
                "errors": tail(errors),
                "cpu_s": self.cpu_s,
                "peak_mb": self.peak_mb,
                "command": tuple(argv),
            }
        )

    def _ended(self, done: Completed, stage: Stage, found: list[Diagnostic]) -> Status:
        if done.stopped == "output" or done.signal == signal.SIGXFSZ:
            return Status.OUTPUT_LIMIT
        if not done.stopped and done.code == 0:
            return Status.PASS
        if done.signal == signal.SIGXCPU or done.cpu_s > 0.95 * self._limits.cpu_s:
            return Status.TIMEOUT_CPU
        if done.stopped == "wall":
            return Status.TIMEOUT_WALL
        if _OUT_OF_MEMORY.search(done.stderr) or done.signal in (
            signal.SIGABRT,
            signal.SIGKILL,
            signal.SIGSEGV,
        ):
            return Status.OOM
        return icarus.classify(found) if stage is not Stage.SIMULATE else Status.NO_VERDICT

    def store(self, keep: Path, name: str) -> None:
        """Copy the folder's plain files below ``keep``."""
        readable = re.sub(r"[^\w.-]+", "-", name)[:60]
        target = keep / f"{readable}-{self.folder.name.removeprefix('planish-hdl-')}"
        shutil.copytree(self.folder, target, symlinks=True)

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|cannot allocate|memory exhausted|vector length|Aborted", re.IGNORECASE
)
_DRIVEN = re.compile(r"input port (\S+) is coerced to inout\.?")
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


def _files(task: Task, text: str, bench: Bench | None, word: str) -> dict[str, str]:
    """The job's files. The reference module gets a name that no design can know."""
    files = {**task.aux_files, "dut.sv": text}
    if bench:
        hidden = {name: f"{name}_{word}" for name in guard.hidden_names(bench.text)}
        if bench.reference_top:
            hidden[bench.reference_top] = f"{bench.reference_top}_{word}"
        files |= bench.aux_files
        files |= {"dut.sv": text, "tb.sv": verilog.rename(verdict.mark(bench, word), hidden)}
        if bench.reference:
            files["ref.sv"] = verilog.rename(
                bench.reference, {k: v for k, v in hidden.items() if k == bench.reference_top}
            )
    return files


def _as_refusal(warning: Diagnostic) -> Diagnostic:
    match = _DRIVEN.fullmatch(warning.message)
    assert match
    return Diagnostic(
        file="dut.sv", code="drives_input", message=f"the design drives its input port {match[1]}"
    )


def _order(bench: Bench | None) -> list[str]:
    if bench is None:
        return ["dut.sv"]
    names = ["dut.sv", "tb.sv"] if bench.design_first else ["tb.sv", "dut.sv"]
    return [*names, "ref.sv"] if bench.reference else names


def tail(text: str, limit: int = _TAIL) -> str:
    """``text`` cut in the middle to ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


_lock = threading.Lock()
_versions: dict[str, str] = {}


def versions() -> dict[str, str]:
    """Program -> version, of the installed tools; asked once a process."""
    with _lock:
        if not _versions:
            for name in PROGRAMS:
                if shutil.which(name):
                    _versions[name] = _version(name)
    return dict(_versions)


def _version(name: str) -> str:
    flag = {"iverilog": "-V", "vvp": "-V", "yosys": "-V"}.get(name, "--version")
    try:
        done = subprocess.run([name, flag], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    match = re.search(r"\d+\.\d+(?:\.\d+)?", done.stdout + done.stderr)
    return match.group() if match else "unknown"


def icarus_major() -> int | None:
    """Major version of the installed Icarus Verilog, or None."""
    head = versions().get("iverilog", "").partition(".")[0]
    return int(head) if head.isdigit() else None


def tool_folders() -> tuple[str, ...]:
    """Prefixes of tools that are not installed below /usr: they must be visible in the sandbox."""
    found = set()
    for name in PROGRAMS:
        if (path := shutil.which(name)) and not os.path.realpath(path).startswith(
            ("/usr/", "/bin/", "/nix/")
        ):
            found.add(str(Path(path).resolve().parent.parent))
    return tuple(sorted(found))


def accepted(sim: SimResult, quality: BenchQuality | None = None) -> bool:
    """Whether a candidate may be taken: it passed (samples and nonce are part of that), by a bench that can fail."""
    return sim.passed and not (quality and quality.vacuous)
