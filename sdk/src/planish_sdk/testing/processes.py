"""New processes for the checks that need them, at the price of a fork each."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Where libraries keep caches: unset, so that they follow HOME into the scratch folder.
_HOMES = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_CACHE", "TORCH_HOME", "TRANSFORMERS_CACHE")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a job ended: its exit code (negative: the signal that killed it), its result and what it printed."""

    code: int
    result: Any
    log: str

    def value(self) -> Any:
        """The result of a job that had to succeed."""
        if self.code != 0:
            pytest.fail(f"a new process ended with code {self.code}:\n{self.log[-4000:]}", pytrace=False)
        return self.result


class Processes:
    """Runs functions of `planish_sdk.testing.jobs`, each in a new process with a scratch HOME and TMPDIR."""

    def __init__(self, timeout: float = 300.0) -> None:
        self.timeout = timeout
        self._scratch = tempfile.TemporaryDirectory(prefix="planish-check-")
        root = Path(self._scratch.name)
        self.home, self.temporary, self._jobs = root / "home", root / "tmp", root / "jobs"
        for folder in (self.home, self.temporary, self._jobs):
            folder.mkdir()
        self._count = 0
        environment = {name: value for name, value in os.environ.items() if name not in _HOMES}
        environment |= {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._server = subprocess.Popen(
            [sys.executable, "-m", "planish_sdk.testing.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._send(_imported("transformers"))  # it imports its models lazily, one by one

    def run(self, function: str, cwd: Path, **arguments: Any) -> Ended:
        """Call a job and wait for it."""
        assert self._server.stdout is not None
        self._count += 1
        result, log = self._jobs / f"{self._count}.json", self._jobs / f"{self._count}.log"
        job = {
            "function": function,
            "arguments": {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()},
            "cwd": str(cwd),
            "result": str(result),
            "log": str(log),
        }
        self._send(job)
        if not select.select([self._server.stdout], [], [], self.timeout)[0]:
            self.close()
            pytest.fail(f"job {function} has not ended after {self.timeout:.0f} s", pytrace=False)
        answer = self._server.stdout.readline()
        if not answer:
            pytest.fail("the process that starts others has died", pytrace=False)
        text = log.read_text(errors="replace") if log.is_file() else ""
        return Ended(int(answer), json.loads(result.read_text()) if result.is_file() else None, text)

    def _send(self, message: Any) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(message) + "\n")
        self._server.stdin.flush()

    def close(self) -> None:
        """End the server and whatever it has started."""
        if self._server.poll() is None:
            os.killpg(self._server.pid, 9)
            self._server.wait()
        processes.cache_clear()
        self._scratch.cleanup()


def _imported(package: str) -> list[str]:
    """Modules of a package that this process has needed so far: the children will need them too."""
    return [name for name in sys.modules if name.startswith(f"{package}.")]


@functools.cache
def processes() -> Processes:
    """The server of this test process, started on first use."""
    started = Processes()
    atexit.register(started.close)
    return started
