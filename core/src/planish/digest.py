"""Content digests: what makes a resumed run the same run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def of_bytes(*parts: bytes) -> str:
    """sha256 of ``parts``, each preceded by its length so that no two lists of parts collide."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(len(part).to_bytes(8, "little"))
        sha.update(part)
    return sha.hexdigest()


def of_json(value: Any) -> str:
    """sha256 of the canonical JSON of ``value`` (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """sha256 of a file's content."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def of_files(files: dict[str, str]) -> str:
    """One digest for a folder, from the relative path and digest of each of its files."""
    return of_json(sorted(files.items()))
