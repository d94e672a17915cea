"""The trace of one sample: every model call, artefact, simulation and decision, in order, in a file that only grows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

from planish import digest
from planish_promptv import hooks
from planish_promptv.jsonl import JsonLines, read

EventType = Literal["llm_call", "artifact", "sim", "decision"]
TIMES = frozenset({"time", "latency_s", "tries", "cpu_s", "wall_s", "peak_mb"})
"""What differs between a run and its replay."""


class Trace:
    """Events with a ``seq`` from 0 up.

    A sample that was killed is run again from its start, with the paid replies out of the ledger; events that stand in
    the file already are recognised and not written twice. Should the sample go another way than before, the old file is
    kept beside the new one.

    Args:
        path: the file, or None to keep events in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self._path = path
        self._lines = JsonLines(path) if path else None
        self._known = list(self._lines.read()) if self._lines else []

    def add(self, event: EventType, **facts: Any) -> None:
        """Append an event. It outlives this process; what must outlive the machine, a paid reply, is in the ledger."""
        line = {"seq": len(self.events), "event": event, "time": time.time(), **facts}
        self.events.append(line)
        hooks.tell(line)
        if self._lines is None:
            return
        if len(self.events) <= len(self._known):
            if timeless(line) == timeless(self._known[line["seq"]]):
                return
            self._set_aside()
        self._lines.append(line, sync=False)

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()

    def _set_aside(self) -> None:
        assert self._path is not None
        assert self._lines is not None
        self._lines.close()
        number = sum(1 for _ in self._path.parent.glob(f"{self._path.stem}.*.old")) + 1
        self._path.rename(self._path.with_suffix(f".{number}.old"))
        self._known = []
        self._lines = JsonLines(self._path)
        for line in self.events[:-1]:
            self._lines.append(line, sync=False)


def timeless(value: Any) -> Any:
    """``value`` without the fields that hold times."""
    if isinstance(value, dict):
        return {name: timeless(part) for name, part in value.items() if name not in TIMES}
    if isinstance(value, list | tuple):
        return [timeless(part) for part in value]
    return value


def fingerprint(path: Path) -> str:
    """sha256 of a trace without its times: equal for a run and its replay."""
    return digest.of_json([timeless(line) for line in read(path)])
