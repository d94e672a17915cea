"""Saves the reference networks and rebuilds them from their names and arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from planish import weights
from planish.builders.module import ModuleBuilder
from planish.errors import ArtifactError
from planish.model import Architecture, TorchModel

from .nets import NETS


class NetBuilder(ModuleBuilder):
    """The weights, and which of `nets.NETS` with which arguments."""

    name = "testbed"

    def save(self, model: TorchModel, folder: Path) -> Architecture:
        module: Any = model.module
        return {**super().save(model, folder), "arguments": module.arguments}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> TorchModel:
        """Raises ArtifactError for a network that is not one of the testbed's."""
        name = str(architecture["class"])
        if name not in NETS:
            raise ArtifactError(f"{folder}: the testbed has no network {name!r} (has: {', '.join(NETS)})")
        if device != "meta":
            weights.check(folder)
        net: Any = NETS[name]
        return super().load(folder, architecture, device, net(**architecture["arguments"]))
