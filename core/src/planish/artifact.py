"""An artifact: the immutable description of a model on disk. The folder is the contract between stages and processes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import digest, registry
from planish.errors import ArtifactError
from planish.method import demand, resolve
from planish.model import Architecture, ModelBuilder
from planish.weights import Counts

if TYPE_CHECKING:
    from torch import nn

FORMAT = 1
MANIFEST = "artifact.json"
MODEL = "model"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model on disk.

    Attributes:
        root: the folder that holds the model's files.
        kind: what they are: ``"torch"``, ``"onnx"``, …
        builder: the builder that rebuilds the model.
        architecture: what the builder needs beside the files.
        files: relative path -> (sha256, bytes).
        digest: sha256 over kind, builder, architecture and files: equal digests are equal models.
        parent: digest of the artifact it was made from, or None.
    """

    root: Path
    kind: str
    builder: str
    architecture: Architecture
    files: dict[str, tuple[str, int]]
    digest: str
    parent: str | None = None

    @classmethod
    def of(
        cls,
        root: Path,
        kind: str,
        builder: str,
        architecture: Architecture,
        parent: str | None = None,
        names: Iterable[str] | None = None,
    ) -> Artifact:
        """Describe the files below ``root`` (or only those in ``names``)."""
        if names is None:
            names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
        files = {name: (digest.of_file(root / name), (root / name).stat().st_size) for name in sorted(names)}
        return cls(
            root, kind, builder, architecture, files, _digest(kind, builder, architecture, files), parent
        )

    @classmethod
    def open(cls, folder: Path, verify: bool = True) -> Artifact:
        """Read ``folder/artifact.json``; with ``verify`` every file is hashed again.

        Raises:
            ArtifactError: no manifest, another format, or a file that is missing, shorter or altered.
        """
        manifest = folder / MANIFEST
        try:
            data: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ArtifactError(
                    f"{manifest}: artifact format {data['format']}, this planish reads {FORMAT}"
                )
            files = {name: (str(sha), int(size)) for name, (sha, size) in data["files"].items()}
            artifact = cls(
                folder / MODEL,
                data["kind"],
                data["builder"],
                data["architecture"],
                files,
                data["digest"],
                data["parent"],
            )
        except FileNotFoundError:
            raise ArtifactError(f"{folder}: no {MANIFEST}") from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ArtifactError(f"{manifest}: damaged ({type(error).__name__}: {error})") from None
        if verify:
            artifact.verify()
        return artifact

    def write(self, folder: Path) -> None:
        """Write the manifest beside the model's folder."""
        data = {
            "format": FORMAT,
            "kind": self.kind,
            "builder": self.builder,
            "architecture": self.architecture,
            "files": self.files,
            "digest": self.digest,
            "parent": self.parent,
        }
        write_json(folder / MANIFEST, data)

    def verify(self) -> None:
        """Raise ArtifactError for the first file that is not the one described, or for an altered description."""
        if self.digest != _digest(self.kind, self.builder, self.architecture, self.files):
            raise ArtifactError(f"{self.root.parent / MANIFEST}: altered since it was written")
        for name, (sha, size) in self.files.items():
            path = self.root / name
            if not path.is_file():
                raise ArtifactError(f"{path}: missing")
            if path.stat().st_size != size:
                raise ArtifactError(f"{path}: {path.stat().st_size} bytes, {size} expected")
            if digest.of_file(path) != sha:
                raise ArtifactError(f"{path}: altered since it was written")

    @property
    def bytes(self) -> int:
        """Bytes on disk of all its files."""
        return sum(size for _, size in self.files.values())

    def load(self, device: str = "cpu", given: nn.Module | None = None) -> Any:
        """Rebuild the live model on ``device`` (``"meta"``: shapes only)."""
        return self._builder().load(self.root, self.architecture, device, given)

    def count(self) -> Counts:
        """Stored values and non-zeros, counted from the files."""
        return self._builder().count(self.root, self.architecture)

    def _builder(self) -> ModelBuilder:
        return get_builder(self.builder)


def _digest(kind: str, builder: str, architecture: Architecture, files: dict[str, tuple[str, int]]) -> str:
    content = digest.of_files({name: sha for name, (sha, _) in files.items()})
    return digest.of_json([kind, builder, architecture, content])


def get_builder(name: str) -> ModelBuilder:
    """An instance of the builder registered under ``name``."""
    record = registry.host().builder(name).record
    demand(f"builder {name!r}", record.requires)
    return resolve(record.target)()  # type: ignore[no-any-return]


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=1, ensure_ascii=False)
            stream.write("\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
