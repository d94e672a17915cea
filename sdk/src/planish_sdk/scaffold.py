"""``planish new NAME``: a plugin that works and passes its checks, to be changed into the author's own."""

from __future__ import annotations

import importlib.resources
import re
import tempfile
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Template

from planish.errors import PlanishError
from planish.hooks import KIND_HOOKS

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TAKEN = ("sdk",)
_SUFFIX = ".tmpl"  # keeps the templates out of the sight of test runners, compilers and packagers

_SUMMARY = {
    "pruner": "zeroes the smallest weights of every row",
    "optimizer": "fine-tunes all weights with a few steps of plain gradient descent",
    "rewriter": "orders feed-forward channels by size without changing what the model computes",
    "backend": "stores linear weights in 8 bits and multiplies them in numpy",
    "codegen": "writes the linear weights as 8-bit tables in C",
}


def create(name: str, folder: Path, kind: str) -> Path:
    """Write the plugin ``planish-NAME`` into ``folder``, whole or not at all.

    Args:
        name: of the plugin and its method; a leading ``planish-`` is left out.
        folder: an existing folder.
        kind: pruner, optimizer, rewriter, backend or codegen; each has its own small, working method.

    Returns:
        The new folder, ``folder/planish-NAME``.

    Raises:
        PlanishError: bad name, unknown kind, no such folder, or the plugin's folder exists already.
    """
    short = name.removeprefix("planish-")
    if not _NAME.fullmatch(short):
        raise PlanishError(
            f"name = {name!r}: use lower-case letters, digits and single dashes, with a letter first (my-pruner)"
        )
    if short in _TAKEN:
        raise PlanishError(f"name = {name!r}: planish-{short} is part of planish itself")
    if kind not in KIND_HOOKS:
        raise PlanishError(f"kind = {kind!r} is not one of {', '.join(KIND_HOOKS)}")
    if not folder.is_dir():
        raise PlanishError(f"folder = {str(folder)!r} is no folder")
    target = folder / f"planish-{short}"
    if target.exists():
        raise PlanishError(f"{target} exists already; choose another name, or remove it")
    words = {
        "name": short,
        "module": short.replace("-", "_"),
        "title": "".join(part.capitalize() for part in short.split("-")),
        "kind": kind,
        "hook": KIND_HOOKS[kind],
        "summary": _SUMMARY[kind],
    }
    try:
        with tempfile.TemporaryDirectory(prefix=".planish-new-", dir=folder) as scratch:
            draft = Path(scratch) / target.name
            templates = importlib.resources.files("planish_sdk") / "template"
            for part in ("common", kind):
                for path, text in _files(templates / part):
                    written = draft / Template(path).substitute(words)
                    written.parent.mkdir(parents=True, exist_ok=True)
                    written.write_text(Template(text).substitute(words), encoding="utf-8")
            draft.rename(target)
    except OSError as error:
        raise PlanishError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def _files(root: Traversable, path: str = "") -> Iterator[tuple[str, str]]:
    """(relative path, text) of every template below ``root``."""
    for entry in sorted(root.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{path}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield f"{path}{entry.name.removesuffix(_SUFFIX)}", entry.read_text(encoding="utf-8")
