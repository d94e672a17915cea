"""Known defects of the benchmarks, applied only when asked for: a bench is found by its digest, never by its name alone."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from importlib import resources
from typing import Any

from planish_promptv.harness.tools import icarus_major
from planish_promptv.types import Task


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """Digest of a bench -> ``task`` and either ``exclude``, the reason (for Icarus Verilog ``below`` a major version, if
    given), or a ``note`` with pairs of texts to replace in ``bench`` or ``description``."""
    text = resources.files(__package__).joinpath("errata.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def key(task: Task) -> str:
    """sha256 of the bench's text followed by that of its reference."""
    bench = task.provided_testbench
    text = bench.text + bench.reference if bench else ""
    return hashlib.sha256(text.encode()).hexdigest()


def apply(task: Task) -> Task:
    """The task corrected, or marked as excluded with the reason; unchanged if nothing is known about its bench."""
    entry = entries().get(key(task))
    bench = task.provided_testbench
    if entry is None or bench is None:
        return task
    if "exclude" in entry:
        version = icarus_major()
        concerned = version is None or version < entry.get("below", version + 1)
        return task.model_copy(update={"excluded": entry["exclude"]}) if concerned else task
    return task.model_copy(
        update={
            "description": _replace(task.description, entry.get("description", ())),
            "provided_testbench": bench.model_copy(
                update={"text": _replace(bench.text, entry.get("bench", ()))}
            ),
            "notes": (*task.notes, f"errata: {entry['note']}"),
            "golden": {},  # what is on record was measured with the bench as it came
        }
    )


def _replace(text: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text
