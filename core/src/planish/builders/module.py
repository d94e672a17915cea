"""Any torch module that a user passes in memory. Its artifact keeps the weights; the module itself must be given again."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from planish import weights
from planish.errors import ArtifactError
from planish.model import Architecture, TorchModel, distinct_state
from planish.weights import Counts

if TYPE_CHECKING:
    from torch import nn


class ModuleBuilder:
    """Stores the state dict. No import path is stored, so opening an artifact cannot run foreign code.

    Builders of families that can be rebuilt derive from this one and pass what they made as ``given``.
    """

    name = "module"

    def save(self, model: TorchModel, folder: Path) -> Architecture:
        model.settle()
        weights.write(folder / weights.SINGLE, distinct_state(model.module))
        return {"class": type(model.module).__name__, "storage": model.storage}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> TorchModel:
        """Raises ArtifactError when no module is given or its shapes are not the stored ones."""
        if given is None:
            raise ArtifactError(
                f"{folder}: the architecture ({architecture['class']}) was a module in memory and is not stored: "
                "give the module again, or register a builder for it"
            )
        module = copy.deepcopy(given)
        if device == "meta":
            return TorchModel(module.to("meta"), self.name, None, str(architecture["storage"]))
        state = weights.read(folder / weights.SINGLE)
        shared = module.state_dict().keys() - distinct_state(module).keys()
        try:
            found = module.load_state_dict(state, strict=False)
            if problems := [*found.unexpected_keys, *(k for k in found.missing_keys if k not in shared)]:
                raise RuntimeError(f"its tensors differ: {', '.join(problems[:3])} ({len(problems)} in all)")
        except RuntimeError as error:
            problem = str(error).splitlines()[-1].strip()
            raise ArtifactError(
                f"{folder}: the module given is not the one that was saved: {problem}"
            ) from None
        module.to(device).eval()
        return TorchModel(module, self.name, None, str(architecture["storage"]))

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        return weights.count(folder)


def storage_of(module: nn.Module) -> str:
    """Number format that holds all floating-point weights of a module without loss, as torch names it."""
    import torch

    formats = {t.dtype for t in module.state_dict().values() if t.is_floating_point()}
    if not formats:
        return "float32"
    return str(functools.reduce(torch.promote_types, formats)).removeprefix("torch.")
