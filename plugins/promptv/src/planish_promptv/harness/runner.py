"""A small process that starts other programs: limits, bounded output, wall clock, and a kill that leaves nobody behind.

It is run as a script by `process.Runner`, with the standard library alone, and reads one JSON request a line.
Being small and single-threaded it may fork safely, and the peak memory that `wait4` reports is the tool's own and not
that of the large process that asked. When its standard input ends, because its owner was killed, it kills what runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

NOBODY = 65534


def limit(limits: dict[str, int]) -> None:
    """Set soft and hard limits of this process: ``{"AS": bytes, "CPU": seconds, …}``."""
    for name, value in limits.items():
        # One second between soft and hard, so that the signal tells a CPU limit from any other kill.
        hard = value + 1 if name == "CPU" else value
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, hard))


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def run(request: dict[str, Any], control: int) -> dict[str, Any] | None:
    """Run one program to its end. None when ``control`` (standard input) ended meanwhile."""
    drop = request["drop"]
    start = time.monotonic()
    try:
        child = subprocess.Popen(
            request["argv"],
            cwd=request["cwd"],
            env=request["env"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: limit(request["limits"]),
            user=NOBODY if drop else None,
            group=NOBODY if drop else None,
            extra_groups=[] if drop else None,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"failed": f"{type(error).__name__}: {error}"}
    outputs: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    assert child.stdout
    assert child.stderr
    exited = os.pidfd_open(child.pid)
    stopped, alive, left = "", True, request["output"]
    with selectors.DefaultSelector() as selector:
        for descriptor, name in (
            (child.stdout.fileno(), "stdout"),
            (child.stderr.fileno(), "stderr"),
            (exited, "exit"),
            (control, "control"),
        ):
            selector.register(descriptor, selectors.EVENT_READ, name)
        ended_at = start + request["wall"]
        while not stopped:
            ready = selector.select(max(0.0, ended_at - time.monotonic()))
            if not ready:
                if alive:
                    stopped = "wall"
                break  # after the exit: whatever still holds a pipe open is killed below
            for key, _ in ready:
                if key.data == "exit":
                    alive = False
                    selector.unregister(exited)
                    ended_at = time.monotonic() + 0.5  # drain what is left in the pipes
                elif key.data == "control":
                    stopped = "cancel" if os.read(control, 1) else "orphaned"
                else:
                    chunk = os.read(key.fd, 65536)
                    if not chunk:
                        selector.unregister(key.fd)
                    outputs[key.data] += chunk[:left]
                    left -= len(chunk)
                    if left < 0:
                        stopped = "output"
            if len(selector.get_map()) == 1 and not alive:
                break
    kill(child.pid)
    os.close(exited)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    child.stdout.close()
    child.stderr.close()
    if stopped == "orphaned":
        shutil.rmtree(request["cwd"], ignore_errors=True)  # nobody is left to do it
        return None
    return {
        "code": child.returncode,
        "stopped": stopped,
        "cpu": usage.ru_utime + usage.ru_stime,
        "wall": time.monotonic() - start,
        "peak": usage.ru_maxrss * 1024,
        **{name: text.decode("utf-8", "replace") for name, text in outputs.items()},
    }


def main() -> None:
    buffered = b""
    control = sys.stdin.fileno()
    while True:
        while b"\n" not in buffered:
            chunk = os.read(control, 65536)
            if not chunk:
                return
            # A cancel that comes after the job has ended is a lone byte between requests.
            buffered = (buffered + chunk).lstrip(b"\0")
        line, _, buffered = buffered.partition(b"\n")
        answer = run(json.loads(line), control)
        if answer is None:
            return
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
