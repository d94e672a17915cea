"""Progress of a run on the terminal: a live bar, or plain lines where nobody watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from planish.events import Event

_WORDS = {
    "stage_started": "started",
    "stage_progress": "",
    "stage_finished": "done",
    "stage_failed": "failed",
    "stage_reused": "already done",
    "note": "",
}


@contextmanager
def progress() -> Iterator[Callable[[Event], None]]:
    """A listener for `planish.Pipeline.run`. Everything goes to standard error, also what a method prints; standard
    output is for results."""
    with redirect_stdout(sys.stderr):
        if sys.stderr.isatty():
            with _live() as listen:
                yield listen
        else:
            yield lambda event: print(line(event), file=sys.stderr, flush=True)


def line(event: Event) -> str:
    """One event as one line."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.time))
    count = f"{event.done}/{event.total}" if event.total else ""
    return " ".join(
        part for part in (clock, event.stage, _WORDS.get(event.type, event.type), count, event.text) if part
    )


@contextmanager
def _live() -> Iterator[Callable[[Event], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    # markup=False: brackets in a text are the text's own.
    stage, text = (
        TextColumn("{task.fields[stage]}", markup=False),
        TextColumn("{task.description}", markup=False),
    )
    layout = (stage, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text)
    with Progress(*layout, console=Console(stderr=True)) as bar:
        tasks: dict[str, TaskID] = {}

        def listen(event: Event) -> None:
            if event.stage not in tasks or event.type == "stage_started":
                tasks[event.stage] = bar.add_task("", total=None, stage=event.stage)
            task = tasks[event.stage]
            if event.type == "stage_progress":
                bar.update(task, completed=event.done, total=event.total or None, description=event.text)
            elif event.type in ("stage_finished", "stage_reused"):
                bar.update(task, completed=1, total=1, description=_WORDS[event.type])
            elif event.type == "stage_failed":
                bar.update(task, description=f"failed: {event.text}")

        yield listen
