"""Programs run through small launcher processes: limits in, classed outcome out."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from planish.errors import PlanishError

_SCRIPT = Path(__file__).with_name("runner.py")
_CANCEL = b"\0"

Stopped = Literal["", "wall", "output", "cancel"]


class RunnerError(PlanishError):
    """A program could not be started, or its launcher died."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one tool call may use.

    Attributes:
        cpu_s: CPU seconds of any one process. The wall clock is only a backstop, see `wall_s`: a loaded machine must
            not change a verdict.
        memory_mb: address space of any one process, in MiB.
        file_mb: size of any one file written, in MiB.
        output_kb: standard output and standard error together, in KiB.
        processes: processes at one time inside the sandbox.
    """

    cpu_s: int = 60
    memory_mb: int = 4096
    file_mb: int = 64
    output_kb: int = 1024
    processes: int = 64

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise PlanishError(f"limits: {name} = {getattr(self, name)} is not at least 1")

    @property
    def wall_s(self) -> int:
        """Seconds after which a call is stopped whatever it has used: four times the CPU seconds, at least a minute."""
        return max(4 * self.cpu_s, 60)

    def resources(self) -> dict[str, int]:
        """Names and values of the kernel's limits, but for the number of processes, which the sandbox sets inside."""
        return {
            "CPU": self.cpu_s,
            "AS": self.memory_mb << 20,
            "FSIZE": self.file_mb << 20,
            "CORE": 0,
            "NOFILE": 256,
        }


@dataclass(frozen=True, slots=True)
class Completed:
    """How one program ended.

    Attributes:
        code: exit status, or minus the signal that ended it.
        stopped: why the launcher ended it, or empty.
        peak_mb: largest resident size of one process, in MB; the launcher's own 10 MB are a floor.
    """

    code: int
    stopped: Stopped
    stdout: str
    stderr: str
    cpu_s: float
    wall_s: float
    peak_mb: float

    @property
    def signal(self) -> int:
        """The signal that ended it, also where a shell or the sandbox reports it as 128 + n."""
        if self.code < 0:
            return -self.code
        return self.code - 128 if 128 < self.code < 192 else 0


class Cancelled(Exception):
    """The job's token was cancelled while the program ran."""


class Token:
    """Cancels one job from another thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runner: Runner | None = None
        self.cancelled = False

    def cancel(self) -> None:
        with self._lock:
            self.cancelled = True
            if self._runner:
                self._runner.interrupt()

    def attach(self, runner: Runner | None) -> None:
        with self._lock:
            if runner and self.cancelled:
                raise Cancelled
            self._runner = runner


class Runner:
    """One launcher process. Runs one program at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C at the terminal is for its owner alone
        )
        assert self._process.stdout
        self._answers = self._process.stdout

    def run(
        self,
        argv: Sequence[str],
        folder: Path,
        limits: Limits,
        environment: Mapping[str, str],
        drop: bool = False,
        token: Token | None = None,
    ) -> Completed:
        """Run ``argv`` in ``folder``. ``drop``: as the user nobody, where this process may change users.

        Raises:
            RunnerError: the program could not be started.
            Cancelled: ``token`` was cancelled.
        """
        request: dict[str, Any] = {
            "argv": list(argv),
            "cwd": str(folder),
            "env": dict(environment),
            "limits": limits.resources(),
            "wall": limits.wall_s,
            "output": limits.output_kb << 10,
            "drop": drop,
        }
        if token:
            token.attach(self)
        try:
            self._write(json.dumps(request).encode() + b"\n")
            line = self._read()
        finally:
            if token:
                token.attach(None)
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise RunnerError(f"cannot start {Path(argv[0]).name}: {answer['failed']}")
        if answer["stopped"] == "cancel":
            raise Cancelled
        return Completed(
            answer["code"],
            answer["stopped"],
            answer["stdout"],
            answer["stderr"],
            answer["cpu"],
            answer["wall"],
            answer["peak"] / 1e6,
        )

    def interrupt(self) -> None:
        """Kill the running program; harmless when none runs any more."""
        with contextlib.suppress(OSError, RunnerError):
            self._write(_CANCEL)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the launcher and what it runs."""
        assert self._process.stdin
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _write(self, data: bytes) -> None:
        assert self._process.stdin
        view = memoryview(data)
        try:
            while view:
                view = view[self._process.stdin.write(view) :]
        except (BrokenPipeError, ValueError):
            raise RunnerError("the launcher process of the sandbox has died") from None

    def _read(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            chunk = self._answers.read(1 << 16)
            if not chunk:
                raise RunnerError("the launcher process of the sandbox has died")
            line += chunk
        return line


class Pool:
    """Launchers for at most ``slots`` programs at one time, started when needed and kept."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._free = threading.BoundedSemaphore(slots)
        self._lock = threading.Lock()
        self._idle: list[Runner] = []

    @contextlib.contextmanager
    def runner(self) -> Iterator[Runner]:
        """One launcher for the length of a job."""
        with self._free:
            with self._lock:
                runner = self._idle.pop() if self._idle else None
            runner = runner or Runner()
            healthy = False
            try:
                yield runner
                healthy = True
            except Cancelled:
                healthy = True
                raise
            finally:
                if healthy and runner.alive:
                    with self._lock:
                        self._idle.append(runner)
                else:
                    runner.close()

    def close(self) -> None:
        with self._lock:
            runners, self._idle = self._idle, []
        for runner in runners:
            runner.close()
