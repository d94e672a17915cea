"""Follow the events of a run folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from planish.errors import RunError
from planish.events import FILE, Event, read


def follow(folder: Path, wait: bool, interval: float = 0.2) -> Iterator[Event]:
    """All events so far and, with ``wait``, those to come until no process holds the run folder.

    Raises:
        RunError: the folder holds no run.
    """
    if not (folder / FILE).is_file():
        raise RunError(f"{folder}: no {FILE}; this is not a run folder")
    seen = 0
    while True:
        active = wait and _held(folder)
        events = list(read(folder))
        yield from events[seen:]
        seen = len(events)
        if not active:
            return
        time.sleep(interval)


def _held(folder: Path) -> bool:
    """Whether a process is working in the folder."""
    try:
        with (folder / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
