"""What a folder holds: its tree, and the files in it that are pickles by their content."""

from __future__ import annotations

import io
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path

from planish import digest

_DRIVER = ".nv"  # NVIDIA's driver keeps compiled code there, in the home folder, whatever a method does
_SMALL = 1 << 20  # pickles of protocol 0 have no mark at the start; only small files are tried as one


def tree(roots: Iterable[Path], without: Path | None = None) -> dict[str, str]:
    """Path -> sha256 of every file below ``roots`` (folders with an empty text), ``without`` and a driver's cache left out."""
    found: dict[str, str] = {}
    for root in roots:
        for path in sorted(root.rglob("*")):
            if _DRIVER not in path.relative_to(root).parts and not (without and path.is_relative_to(without)):
                found[str(path)] = digest.of_file(path) if path.is_file() else ""
    return found


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """One line for each file that came, went or was altered."""
    lines = [f"left behind: {path}" for path in after if path not in before]
    lines += [f"removed: {path}" for path in before if path not in after]
    return lines + [f"altered: {path}" for path in after if path in before and after[path] != before[path]]


def pickles(root: Path) -> list[str]:
    """What is pickled in the files below ``root``, whatever they are called: one line each."""
    found = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = path.relative_to(root).as_posix()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as stream:
                        if is_pickle(stream.read()):
                            found.append(f"{name} (its member {member})")
        elif is_pickle(path.read_bytes()):
            found.append(name)
    return found


def is_pickle(data: bytes) -> bool:
    """Whether ``data`` starts with a pickle, or is one of the oldest protocol, or an array of Python objects."""
    if data[:6] == b"\x93NUMPY":
        return b"'|O'" in data[:256]
    if data[:1] == b"\x80":
        # The length of a safetensors header may begin with the same byte; what follows it are no instructions.
        return _instructions(data) > 2
    return len(data) < _SMALL and data.rstrip()[-1:] == b"." and _runs(data)


def _instructions(data: bytes, enough: int = 3) -> int:
    count = 0
    try:
        for _ in pickletools.genops(data):
            count += 1
            if count == enough:
                break
    except ValueError:
        pass
    return count


def _runs(data: bytes) -> bool:
    """Whether the stack of the pickle machine works out to the last byte. Nothing is executed."""
    stream = io.BytesIO(data)
    try:
        pickletools.dis(stream, out=io.StringIO())
    except (ValueError, KeyError, IndexError, AttributeError):
        return False
    return not stream.read().strip()
