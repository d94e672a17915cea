"""How a network on crossbars is saved and reopened: through its own builder, with its first chip and its ranges beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish import weights
from planish.artifact import get_builder
from planish.errors import ArtifactError
from planish.model import Architecture
from planish.weights import Counts
from planish_reram.config import ReramConfig
from planish_reram.converters import Adc
from planish_reram.mapfile import read_maps, write_maps
from planish_reram.model import ReramModel
from planish_reram.network import crossbars

NETWORK, MAPS, RANGES = "network", "chip-0.safetensors", "ranges.safetensors"


class ReramBuilder:
    """Saves the network through its own builder, and beside it the first chip's fault maps and the converters' ranges."""

    def save(self, model: Any, folder: Path) -> Architecture:
        network = folder / NETWORK
        network.mkdir(exist_ok=True)
        described = {"config": model.config.model_dump(mode="json"), "seeds": list(model.seeds)}
        write_maps(folder / MAPS, model.first_maps())
        if not isinstance(model, ReramModel):
            shutil.copytree(model.folder, network, dirs_exist_ok=True)
            return {"form": "onnx", **described}
        if ranges := _ranges(model):
            weights.write(folder / RANGES, ranges)
        inner = get_builder(model.inner.builder).save(model.inner, network)
        return {"form": "torch", "builder": model.inner.builder, "network": inner, **described}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> Any:
        """Raises ArtifactError for a damaged folder, or on the device ``meta``, where no cell can be written."""
        if device == "meta":
            raise ArtifactError(f"{folder}: cells of a crossbar have no shapes to look at")
        config = ReramConfig.model_validate(architecture["config"])
        if architecture["form"] == "onnx":
            from planish_reram.graph import OnnxOnCrossbars

            return OnnxOnCrossbars(folder / NETWORK, config, architecture["seeds"], read_maps(folder / MAPS))
        inner = get_builder(architecture["builder"]).load(
            folder / NETWORK, architecture["network"], device, given
        )
        model = ReramModel(inner, config, architecture["seeds"], read_maps(folder / MAPS) or None)
        if (folder / RANGES).is_file():
            _set_ranges(model, weights.read(folder / RANGES))
        return model

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        if architecture["form"] == "onnx":
            return get_builder("onnx").count(folder / NETWORK, {})
        return get_builder(architecture["builder"]).count(folder / NETWORK, architecture["network"])


def _ranges(model: ReramModel) -> dict[str, Tensor]:
    found = {}
    for name, layer in crossbars(model.module).items():
        if layer.adc is not None:
            for part in ("step", "first", "last"):
                found[f"{name}/{part}"] = getattr(layer.adc, part)
        if layer.input_limit is not None:
            found[f"{name}/input"] = torch.tensor(layer.input_limit, dtype=torch.float64)
    return found


def _set_ranges(model: ReramModel, ranges: Mapping[str, Tensor]) -> None:
    for name, layer in crossbars(model.module).items():
        if f"{name}/step" in ranges:
            layer.adc = Adc(*(ranges[f"{name}/{part}"] for part in ("step", "first", "last")))
        if f"{name}/input" in ranges:
            layer.input_limit = float(ranges[f"{name}/input"])
        layer.forget()
