"""Which tasks of a benchmark are run, and which of them count."""

from __future__ import annotations

from collections.abc import Sequence

from planish.errors import DataError
from planish_promptv import hooks
from planish_promptv.harness import load_benchmark
from planish_promptv.types import Task


def load(name: str, errata: bool = False) -> list[Task]:
    """The tasks of a benchmark: an extension's, one that is known by name, or a folder.

    Raises:
        BenchmarkError: there is none, or its files do not serve.
    """
    found = hooks.benchmark(name)
    return list(found) if found is not None else load_benchmark(name, errata=errata)


def select(tasks: Sequence[Task], only: Sequence[str]) -> list[Task]:
    """The tasks with the ids in ``only``, or all.

    Raises:
        DataError: an id that is not there, or twice there, or no task at all.
    """
    known = {task.id: task for task in tasks}
    if len(known) < len(tasks):
        raise DataError("the benchmark holds two tasks with one id")
    if missing := [name for name in only if name not in known]:
        raise DataError(
            f"task {missing[0]!r} is not in the benchmark ({len(known)} tasks, e.g. {', '.join(list(known)[:3])})"
        )
    if not known:
        raise DataError("the benchmark holds no task")
    return [task for task in tasks if not only or task.id in only]


def excluded(tasks: Sequence[Task]) -> dict[str, str]:
    """Tasks that cannot count, with the reason."""
    found = {task.id: task.excluded for task in tasks if task.excluded}
    return found | {
        task.id: "it brings no testbench to score by" for task in tasks if task.provided_testbench is None
    }
