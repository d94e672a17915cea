"""The record of a stage: what was done, with what, on what, and what it cost."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from planish.artifact import write_json
from planish.errors import ArtifactError

FILE = "record.json"
Chart = tuple[str, list[tuple[str, float, str]]]
"""A bar chart: its title, and for each bar its label, value and the text beside it."""
LIBRARIES = ("planish", "planish-sdk", "torch", "transformers", "onnx", "onnxruntime", "safetensors", "numpy")


@dataclass(frozen=True, slots=True)
class Record:
    """One stage's record.

    Attributes:
        method, distribution, version, config, seed: what ran.
        key: hash of parent, method, version, config, data and seed: what the stage's folder is named by.
        parent: digest of the artifact it started from. data: fingerprint of the task, or None.
        device: the hardware. seconds: wall time in this process. peak_memory: bytes, and how it was taken.
        resumed_units: units taken over from an earlier, killed process; then ``seconds`` covers the rest only.
        facts: what the method itself reports. charts: what of it the report draws.
        libraries: versions of what took part.
    """

    method: str
    distribution: str
    version: str
    config: dict[str, Any]
    seed: int
    key: str
    parent: str
    data: str | None
    device: str
    started: float
    seconds: float
    peak_memory: int
    peak_memory_how: str
    resumed_units: int
    facts: dict[str, Any]
    libraries: dict[str, str]
    charts: list[Chart] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Record:
        """The record of a stage's folder.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        path = folder / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ArtifactError(f"{path}: missing") from None
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"{path}: damaged ({error})") from None


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide results."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
