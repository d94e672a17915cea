"""Tiny random models, each exported once a session, whichever worker needs it first (an export takes seconds)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from planish_onnx.export import export
from planish_onnx.quantize import Quantized, quantize

transformers = pytest.importorskip("transformers")


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    inputs: Mapping[str, Tensor]
    folder: Path


def llama(**changes: object) -> nn.Module:
    torch.manual_seed(0)
    options: dict[str, object] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "max_position_embeddings": 64,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**(options | changes))).eval()
    return distinct_norms(model)


def gpt2() -> nn.Module:
    torch.manual_seed(1)
    config = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return distinct_norms(transformers.GPT2LMHeadModel(config).eval())


def bert() -> nn.Module:
    torch.manual_seed(2)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        num_labels=3,
    )
    return distinct_norms(transformers.BertForSequenceClassification(config).eval())


def distinct_norms(model: nn.Module) -> nn.Module:
    """Vectors as in a trained model: no two alike, none zero (fresh ones are all 1 or all 0)."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


class Digits(nn.Module):
    """A small convolutional network with batch normalisation and a tiny constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 16, 64)
        self.out = nn.Linear(64, 10)
        self.tiny = nn.Parameter(torch.full((64,), 1e-30))

    def forward(self, pixels: Tensor) -> Tensor:
        features = torch.relu(self.norm(self.conv(pixels)))
        features = nn.functional.max_pool2d(features, 2).flatten(1)
        return self.out(torch.relu(self.hidden(features)) + self.tiny * 1e30)


def digits() -> nn.Module:
    torch.manual_seed(3)
    model = Digits()
    model(torch.randn(32, 1, 8, 8))  # moves the running statistics off their start
    return model.eval()


def token_ids(*shape: int) -> Tensor:
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="session")
def tokens() -> Callable[..., Tensor]:
    """`tokens(rows, length)`: token ids, the same at every call."""
    return token_ids


@pytest.fixture(scope="session")
def build() -> dict[str, Callable[..., nn.Module]]:
    """Makers of fresh models, the same at every call."""
    return {"llama": llama, "shrunk": shrunk, "gpt2": gpt2}


@pytest.fixture(scope="session")
def torch_greedy() -> Callable[[nn.Module, Tensor, int], Tensor]:
    """Greedy generation written out in torch, without a cache."""

    def generate(model: nn.Module, ids: Tensor, new: int) -> Tensor:
        for _ in range(new):
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
        return ids

    return generate


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """`exported(name)`: a model, its example inputs and its ONNX folder. Do not write into the folder."""
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    families = {
        "llama": lambda: (llama(), {"input_ids": token_ids(2, 8)}),
        "llama23": lambda: (llama(), {"input_ids": token_ids(2, 8)}),
        "shrunk": lambda: (shrunk(), {"input_ids": token_ids(2, 8)}),
        "gpt2": lambda: (gpt2(), {"input_ids": token_ids(2, 8)}),
        "bert": lambda: (bert(), {"input_ids": token_ids(2, 8), "attention_mask": mask}),
        "digits": lambda: (digits(), {"pixels": torch.randn(4, 1, 8, 8)}),
    }
    done: dict[str, Exported] = {}
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # workers have a folder each, below the session's

    def get(name: str) -> Exported:
        if name not in done:
            model, inputs = families[name]()
            folder = place / f"exported-{name}"
            with FileLock(place / f"exported-{name}.lock"):
                if not folder.is_dir():  # exports are written whole or not at all
                    export(model, inputs, folder, opset=23 if name == "llama23" else None)
            done[name] = Exported(model, inputs, folder)
        return done[name]

    return get


def shrunk() -> nn.Module:
    """What structured pruning leaves: fewer heads at an explicit head size, narrower feed-forward, half the weights 0."""
    model = llama(num_attention_heads=2, num_key_value_heads=1, head_dim=8, intermediate_size=20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter[:, ::2] = 0
    return model


@pytest.fixture(scope="session")
def quantized(
    exported: Callable[[str], Exported], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Quantized]]:
    """`quantized(name, **options)`: the int8 folder of an exported model and what was reached."""
    done: dict[object, tuple[Path, Quantized]] = {}

    def get(name: str, **options: bool) -> tuple[Path, Quantized]:
        key = (name, *sorted(options.items()))
        if key not in done:
            folder = tmp_path_factory.mktemp(f"{name}-int8")
            done[key] = folder, quantize(exported(name).folder, folder, **options)
        return done[key]

    return get
