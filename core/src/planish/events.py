"""What happens in a run, as it happens: one JSON line an event, the plugins' observers, and whoever else listens."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from planish import registry
from planish.errors import RunError

FILE = "events.jsonl"
EventType = Literal[
    "stage_started", "stage_progress", "stage_finished", "stage_failed", "stage_reused", "note"
]

log = logging.getLogger("planish")


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        type: what happened; the first four are also the observers' hooks.
        stage: number and method, for instance ``"01 ace"``; ``"measure"`` while figures are taken.
        done, total: progress in units, where the stage says so.
        text: one line for people.
        time: seconds since the epoch.
    """

    type: EventType
    stage: str
    done: int = 0
    total: int = 0
    text: str = ""
    time: float = field(default_factory=time.time)


Listener = Callable[[Event], None]


class Events:
    """Writes events to a run folder and passes them on. A listener that raises is logged and never stops the run."""

    def __init__(self, folder: Path, listeners: tuple[Listener, ...] = ()) -> None:
        path = folder / FILE
        if path.is_file():
            whole = path.read_bytes()
            os.truncate(path, whole.rfind(b"\n") + 1)  # a full disk or a kill may have cut the last line
        self.stream = path.open("a", encoding="utf-8")
        self.listeners = listeners

    def emit(self, event: Event) -> None:
        self.stream.write(json.dumps(asdict(event), ensure_ascii=False) + "\n")
        self.stream.flush()
        hook = getattr(registry.host().manager.hook, event.type, None)
        for observer in hook.get_hookimpls() if hook else []:
            self._call(observer.function, *[event for _ in observer.argnames])
        for listener in self.listeners:
            self._call(listener, event)

    def close(self) -> None:
        self.stream.close()

    def _call(self, observer: Callable[..., object], *args: Event) -> None:
        try:
            observer(*args)
        except Exception:  # whatever an observer raises, the run goes on
            log.warning("an observer failed", exc_info=True)


def read(folder: Path) -> Iterator[Event]:
    """The events of a run so far; a last line that is still being written is left out.

    Raises:
        RunError: a line is damaged.
    """
    with (folder / FILE).open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if line.endswith(b"\n"):
                try:
                    event = Event(**json.loads(line))
                except (ValueError, TypeError) as error:
                    raise RunError(f"{folder / FILE}: line {number} is damaged ({error})") from None
                yield event
