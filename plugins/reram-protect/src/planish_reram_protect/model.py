"""A protected model: a torch model of any builder, with the protection of its layers, and how both are stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor

from planish import weights
from planish.artifact import get_builder, write_json
from planish.errors import ArtifactError
from planish.model import Architecture, TorchModel
from planish.weights import Counts
from planish_reram.protection import LayerProtection

if TYPE_CHECKING:
    from torch import nn

NAME = "reram-protect"
TENSORS = "protection.safetensors"
SETTINGS = "protection.json"
_TABLES = ("kept_rows", "kept_cols", "slices", "placement")
_CHOICES = ("copies", "vote", "embed", "bias_correction")


class CellLayout(TypedDict):
    """What the plan was made for; a backend with other cells cannot follow it."""

    weight_bits: int
    cell_bits: int
    mapping: str
    tile: list[int]


class ProtectedModel(TorchModel):
    """A torch model whose layers are protected.

    Attributes:
        inner: name of the builder that saves the module itself.
        protection: by module path; layers that are not in it are unprotected.
        protection_layout: cells that the plan was made for.
    """

    def __init__(self, model: TorchModel, protection: dict[str, LayerProtection], layout: CellLayout) -> None:
        super().__init__(model.module, NAME, model.tokenizer, model.storage, model.patches)
        self.inner: str = model.inner if isinstance(model, ProtectedModel) else model.builder
        self.protection = protection
        self.protection_layout = layout

    @property
    def plain(self) -> TorchModel:
        """The same module as the inner builder knows it."""
        return TorchModel(self.module, self.inner, self.tokenizer, self.storage, self.patches)


class ProtectedBuilder:
    """Leaves the module to its own builder and keeps the plan in two more files."""

    def save(self, model: ProtectedModel, folder: Path) -> Architecture:
        architecture = get_builder(model.inner).save(model.plain, folder)
        tensors: dict[str, Tensor] = {}
        choices: dict[str, dict[str, Any]] = {}
        for path, protection in model.protection.items():
            choices[path] = {name: getattr(protection, name) for name in _CHOICES}
            for name in _TABLES:
                if (table := getattr(protection, name)) is not None:
                    tensors[f"{path}:{name}"] = table.contiguous()
        weights.write(folder / TENSORS, tensors)
        write_json(folder / SETTINGS, {"layout": model.protection_layout, "layers": choices})
        return {"inner": model.inner, "architecture": architecture}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> ProtectedModel:
        """Raises ArtifactError for a plan that is damaged or names layers that the module does not have."""
        model = get_builder(architecture["inner"]).load(folder, architecture["architecture"], device, given)
        tensors = weights.read(folder / TENSORS)
        try:
            stored = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            protection = {}
            for path, choices in stored["layers"].items():
                model.module.get_submodule(path)
                tables: dict[str, Any] = {name: tensors.get(f"{path}:{name}") for name in _TABLES}
                protection[path] = LayerProtection(**choices, **tables)
            layout: Any = {name: stored["layout"][name] for name in CellLayout.__annotations__}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(f"{folder / SETTINGS}: damaged ({error})") from None
        return ProtectedModel(model, protection, layout)

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        """Counts of the module alone."""
        counts: Counts = get_builder(architecture["inner"]).count(folder, architecture["architecture"])
        return counts


def kept_mask(protection: LayerProtection, shape: tuple[int, int]) -> Tensor:
    """Which weights [out, in] are on the crossbar, bool."""
    rows, columns = torch.zeros(shape[0], dtype=torch.bool), torch.zeros(shape[1], dtype=torch.bool)
    rows[slice(None) if protection.kept_rows is None else protection.kept_rows] = True
    columns[slice(None) if protection.kept_cols is None else protection.kept_cols] = True
    return rows[:, None] & columns
