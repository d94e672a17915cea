"""Call a method as the runner does, and keep hold of the live model."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.artifact import MODEL, Artifact, get_builder
from planish.context import Context
from planish.method import resolve

if TYPE_CHECKING:
    from planish.pipeline import Stage
    from planish.tasks import Task


@dataclass(frozen=True, slots=True)
class Called:
    """The live model that a method returned, the artifact it became, the context it had, and what of the process it left
    altered."""

    model: Any
    artifact: Artifact
    context: Context
    altered: list[str]


def call(stage: Stage, source: Artifact, task: Task | None, seed: int, device: str, folder: Path) -> Called:
    """Load ``source``, apply the method with ``folder`` as its stage folder, and save what results there."""
    from planish.runner import seed_everything

    shutil.rmtree(folder, ignore_errors=True)  # what an earlier, failed call left
    folder.mkdir(parents=True)
    context = Context(task, seed, device, folder)
    model = source.load(device)
    seed_everything(seed)
    before = _settings()
    try:
        model = resolve(stage.owned().record.target)(model, stage.config(), context)
        after = _settings()
    finally:
        os.chdir(before["working directory"])
    altered = [
        f"{name}: {value} became {after[name]}" for name, value in before.items() if after[name] != value
    ]
    return Called(model, save(model, folder, source.digest), context, altered)


def _settings() -> dict[str, Any]:
    """What is the process's, and would decide about the stages that follow."""
    import torch

    return {
        "working directory": str(Path.cwd()),
        "gradients enabled": torch.is_grad_enabled(),
        "default dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def save(model: Any, folder: Path, parent: str | None = None) -> Artifact:
    """Write ``model`` to ``folder`` as an artifact."""
    root = folder / MODEL
    root.mkdir(parents=True, exist_ok=True)
    architecture = get_builder(model.builder).save(model, root)
    artifact = Artifact.of(root, model.kind, model.builder, architecture, parent)
    artifact.write(folder)
    return artifact
