"""What the suite does in new processes. Arguments and results are JSON."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from planish import recipe as recipes
from planish import weights
from planish.artifact import Artifact
from planish.context import Unit
from planish.events import Event
from planish.record import Record
from planish.source import open_source
from planish_sdk.testing.calling import call
from planish_sdk.testing.files import changes, tree

Point = Literal["", "unit", "record", "stage"]
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def run(recipe: str, out: str, device: str, kill: Point = "") -> dict[str, Any]:
    """Run a recipe, as ``planish run`` does, without measuring.

    ``kill`` ends the process with SIGKILL: after the first unit it saves, before the first stage's record is written,
    or after the first stage is complete.
    """
    pipeline, source = recipes.read(recipe)
    reused: list[str] = []

    def listen(event: Event) -> None:
        if event.type == "stage_reused":
            reused.append(event.stage)
        if event.type == "stage_finished" and kill == "stage":
            _die()

    if kill == "unit":
        _die_in(Unit, "save", late=True)
    if kill == "record":
        _die_in(Record, "write", late=False)
    result = pipeline.run(source, out, device=device, measure="none", listeners=(listen,))
    return {
        "digests": [Artifact.open(folder).digest for folder in result.stages],
        "resumed": [record.resumed_units for record in result.records],
        "reused": reused,
    }


def forward(folder: str, inputs: str, output: str, device: str) -> bool:
    """Open an artifact and write its logits for the inputs in a file; whether it has a tokenizer."""
    model = Artifact.open(Path(folder)).load(device)
    weights.write(Path(output), {"logits": model(weights.read(Path(inputs)))})
    return getattr(model, "tokenizer", None) is not None


def load(folder: str, device: str) -> str:
    """Open and load an artifact; its digest."""
    artifact = Artifact.open(Path(folder))
    artifact.load(device)
    return artifact.digest


def watched(recipe: str, folder: str, device: str, roots: list[str], temporary: str) -> list[str]:
    """Call the method and tell what it wrote outside ``folder``: files below ``roots`` that changed, and every path
    that Python opened for writing, renamed or removed elsewhere (``temporary`` excepted)."""
    pipeline, target = recipes.read(recipe)
    source = open_source(target or "").artifact
    assert source is not None
    allowed = [Path(folder).resolve(), Path(temporary).resolve(), Path("/dev"), Path("/proc")]
    before = tree(map(Path, roots), Path(folder))
    with _writes() as written:
        call(pipeline.stages[0], source, pipeline.task, pipeline.seed, device, Path(folder))
    outside = [p for p in dict.fromkeys(written) if not any(p.is_relative_to(root) for root in allowed)]
    found = changes(before, tree(map(Path, roots), Path(folder)))
    return found + [f"written: {path}" for path in outside if not any(str(path) in line for line in found)]


@contextmanager
def _writes() -> Iterator[list[Path]]:
    """Paths that Python opens for writing, renames to, or removes in the body."""
    written: list[Path] = []
    active = True

    def note(path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            written.append(Path(os.fsdecode(path)).resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if not active:
            return
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
            note(arguments[0])
        elif event == "os.rename" and arguments[3] == -1:
            note(arguments[1])
        elif (
            event == "os.remove" and arguments[1] == -1
        ):  # else relative to an open folder, as rmtree does it
            note(arguments[0])

    sys.addaudithook(hook)
    try:
        yield written
    finally:
        active = False  # an audit hook cannot be taken away


def _die_in(owner: type, name: str, *, late: bool) -> None:
    """Make a method of a class the last thing this process does."""
    original = getattr(owner, name)

    def deadly(*args: Any, **kwargs: Any) -> None:
        if late:
            original(*args, **kwargs)
        _die()

    setattr(owner, name, deadly)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")
