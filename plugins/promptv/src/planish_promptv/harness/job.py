"""One job: a private folder, the tools that run in it, and what their ends mean."""

from __future__ import annotations

import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from planish.errors import PlanishError
from planish_promptv.harness import guard, icarus, vcd, verdict, verilog
from planish_promptv.harness.process import Completed, Limits, Pool, RunnerError, Token
from planish_promptv.harness.sandbox import Sandbox, work_folder
from planish_promptv.types import Bench, Diagnostic, SimResult, Stage, Status, Task

_TAIL = 4000
_OUT_OF_MEMORY = re.compile(
    r"bad_alloc|out of memory|cannot allocate|memory exhausted|vector length|Aborted", re.IGNORECASE
)
_DRIVEN = re.compile(r"input port (\S+) is coerced to inout\.?")


class TaskError(PlanishError):
    """A task that cannot be simulated as it stands."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where jobs run and what applies to all of them; the options are those of `Simulator`."""

    pool: Pool
    sandbox: Sandbox
    limits: Limits
    strict_timeout: bool = False
    lint: bool = False
    allow_display: bool = False

    def refused(self, task: Task, text: str, bench: Bench | None) -> list[Diagnostic]:
        """The guard's reasons to refuse a design."""
        return guard.check_design(text, bench, self.allow_display, task.top_name, task.ports or ())


class Job:
    """One private folder and the tools that run in it."""

    def __init__(self, place: Place, files: dict[str, str], token: Token | None, word: str = "") -> None:
        self._place = place
        self._sandbox, self._limits = place.sandbox, place.limits
        self._token = token
        self._word = word
        self.cpu_s = self.peak_mb = 0.0
        self.folder = work_folder(self._sandbox)
        try:
            for name, text in files.items():
                self._write(name, text)
        except OSError as error:
            self.delete()
            raise RunnerError(
                f"the job's folder in {self.folder.parent} cannot be written ({error.strerror})"
            ) from None
        except BaseException:
            self.delete()
            raise

    def _write(self, name: str, text: str) -> None:
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
        with self._place.pool.runner() as runner:
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
        if result.passed and self._place.lint:
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
        with expanded.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(2 * guard.LONGEST)
        lines = "\n".join("" if line.startswith("`line") else line for line in text.splitlines())
        refused = self._place.refused(task, lines, bench)
        if refused:
            placed = tuple(d.model_copy(update={"line": 0}) for d in refused)
            return result.model_copy(update={"status": Status.GUARD_REJECT, "diagnostics": placed})
        expanded.replace(self.folder / "dut.sv")
        return result

    def _lint(self, result: SimResult, task: Task) -> SimResult:
        if "verilator" not in result.tools:
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
        spoken = verdict.read(done.stdout, bench.verdict, self._word, self._place.strict_timeout)
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


def job_files(task: Task, text: str, bench: Bench | None, word: str) -> dict[str, str]:
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
