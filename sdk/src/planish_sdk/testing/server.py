"""A process that has imported torch and forks a child for every job, so that a new process costs no import.

It reads from standard input a list of further modules to import, then one job a line (see `Processes`), and computes
nothing itself: each child starts from the same clean state.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import traceback
from typing import Any, NoReturn

PRELOAD = ("torch", "transformers", "planish.runner", "planish.recipe", "planish_sdk.blocks")


def serve() -> None:
    """Answer every job with its exit code."""
    from planish_sdk.testing import jobs

    for name in (*PRELOAD, *json.loads(sys.stdin.readline())):
        with contextlib.suppress(
            Exception
        ):  # a module that does not import alone is left to whoever needs it
            importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _work(getattr(jobs, job["function"]), job)
        _, status = os.waitpid(child, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


def _work(function: Any, job: dict[str, Any]) -> NoReturn:
    """Run the job with its output in a file, write its result, and leave without the parent's clean-up."""
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["cwd"])
    code = 1
    try:
        outcome = function(**job["arguments"])
        with open(job["result"], "w", encoding="utf-8") as stream:  # noqa: PTH123 - pathlib is no lighter here
            json.dump(outcome, stream)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
