"""A multi-layer perceptron that an artifact can rebuild, and the same as a model of another engine."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish import Artifact, Classification, Source, Tensors, TorchModel, weights

WIDTHS = [6, 16, 12, 3]


class Layers(nn.Module):
    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)


class LayersBuilder:
    def save(self, model: TorchModel, folder: Path) -> dict[str, Any]:
        model.settle()
        weights.write(folder / weights.SINGLE, model.module.state_dict())
        linear = model.module.layers
        return {"widths": [linear[0].in_features, *(layer.out_features for layer in linear)]}

    def load(self, folder: Path, architecture: dict[str, Any], device: str, given: Any = None) -> TorchModel:
        module = Layers(architecture["widths"])
        if device == "meta":
            return TorchModel(module.to("meta"), "layers")
        module.load_state_dict(weights.read(folder / weights.SINGLE))
        return TorchModel(module.to(device).eval(), "layers")

    def count(self, folder: Path, architecture: dict[str, Any]) -> weights.Counts:
        return weights.count(folder)


class Packed:
    kind = "packed"
    builder = "packed"
    tokenizer = None
    runtime = "fake engine"

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.state = state

    def __call__(self, batch: Any) -> torch.Tensor:
        x = batch["x"]
        matrices = [name for name in sorted(self.state) if name.endswith("weight")]
        for name in matrices:
            x = x @ self.state[name].T + self.state[name.replace("weight", "bias")]
            x = x if name == matrices[-1] else x.relu()
        return x


class PackedBuilder:
    def save(self, model: Packed, folder: Path) -> dict[str, Any]:
        weights.write(folder / weights.SINGLE, model.state)
        return {}

    def load(self, folder: Path, architecture: dict[str, Any], device: str, given: Any = None) -> Packed:
        return Packed(weights.read(folder / weights.SINGLE))

    def count(self, folder: Path, architecture: dict[str, Any]) -> weights.Counts:
        return weights.count(folder)


def data(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, WIDTHS[0], generator=generator)
    y = x[:, : WIDTHS[-1]].argmax(dim=1)
    return {"train_x": x[:20], "train_y": y[:20], "test_x": x[20:], "test_y": y[20:]}


def write(folder: Path, widths: list[int] = WIDTHS, seed: int = 0) -> Artifact:
    """An artifact of `Layers` in ``folder``."""
    torch.manual_seed(seed)
    root = folder / "model"
    root.mkdir(parents=True)
    architecture = LayersBuilder().save(TorchModel(Layers(widths), "layers"), root)
    artifact = Artifact.of(root, "torch", "layers", architecture)
    artifact.write(folder)
    return artifact


def source() -> Source:
    """What ``fake:mlp`` stands for: the artifact that the environment names, with its task."""
    task = Classification(data=Tensors(values=data()), batch=16)
    return Source("fake:mlp", Artifact.open(Path(os.environ["FAKE_MODEL"])), task=task)
