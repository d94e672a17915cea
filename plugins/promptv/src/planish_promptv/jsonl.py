"""Files of JSON lines that only grow: what was appended survives a kill, and a torn last line is dropped."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from planish.errors import RunError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class JsonLines:
    """One growing file.

    Args:
        path: the file; it and its folder are made.

    Raises:
        RunError: the file cannot be opened, or a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            size = os.fstat(self._file).st_size
            self._end = os.pread(self._file, size, 0).rfind(b"\n") + 1 if size else 0
            if self._end < size:
                os.ftruncate(self._file, self._end)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror})") from None

    def read(self) -> Iterator[dict[str, Any]]:
        """What the file holds, line by line."""
        yield from read(self.path)

    def append(self, line: dict[str, Any], sync: bool = True) -> None:
        """Write one line; with ``sync`` wait until it is on the disk, otherwise it only outlives this process.

        Raises:
            RunError: the disk is full or fails; the file ends after its last whole line.
        """
        data = (json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._end + written)
            if sync:
                os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            what = "the disk is full" if error.errno in _FULL else f"cannot be written ({error.strerror})"
            raise RunError(
                f"{self.path}: {what}; what was finished is kept, resume when it is mended"
            ) from None
        self._end += len(data)

    def close(self) -> None:
        """Close the file; appending is over."""
        os.close(self._file)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of ``path``; nothing where there is no file.

    Raises:
        RunError: a whole line is no JSON object.
    """
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("not an object")
            except ValueError as error:
                raise RunError(
                    f"{path}: line {number} is damaged ({error}); remove it or choose another folder"
                ) from None
            yield value
