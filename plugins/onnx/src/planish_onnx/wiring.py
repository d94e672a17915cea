"""The backend as a stage of a pipeline, and how its folders are reopened."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish.builders.transformers import TOKENIZER, load_tokenizer
from planish.context import Context
from planish.errors import ArtifactError, PlanishError
from planish.model import Architecture, Batch, TorchModel
from planish.weights import Counts
from planish_onnx import session
from planish_onnx.cached import export_cached, verify_cached
from planish_onnx.config import OnnxConfig
from planish_onnx.export import export
from planish_onnx.quantize import quantize
from planish_onnx.saturation import saturates
from planish_onnx.session import OnnxModel
from planish_onnx.verify import HALF_TOLERANCE, TOLERANCE, verify

OPSET = 23
"""Attention is one operator from here on, which ONNX Runtime runs faster than its parts."""
SATURATES = (
    "int8 products of this processor saturate at 16 bits, which can cost quality; reduce_range=True avoids it"
)
UNPROTECTED = "an ONNX graph has no place for the fault protection of this model: its pruning is exported, its copies are not"


class OnnxProgram:
    """An ONNX folder as a model of planish."""

    kind = "onnx"
    builder = "onnx"

    def __init__(self, folder: Path, quantize: str, threads: int | None, tokenizer: Any) -> None:
        self.folder = folder
        self.quantize = quantize
        self.threads = threads
        self.tokenizer = tokenizer
        self.session = OnnxModel(folder, threads=threads)

    @property
    def runtime(self) -> str:
        number = "int8" if self.quantize == "int8" else self.session.number
        return f"ONNX Runtime, cpu, {number}"

    def __call__(self, batch: Batch) -> Tensor:
        return torch.as_tensor(self.session(**batch))

    def generate(self, input_ids: Tensor, max_new_tokens: int) -> Tensor:
        """Greedy text: token ids [N, T] and up to ``max_new_tokens`` more."""
        end = getattr(self.tokenizer, "eos_token_id", None)
        return self.session.generate(input_ids, max_new_tokens, eos_token_id=end)


class OnnxBuilder:
    """Saves and reopens `OnnxProgram`."""

    def save(self, model: OnnxProgram, folder: Path) -> Architecture:
        if model.folder.resolve() != folder.resolve():
            shutil.copytree(model.folder, folder, dirs_exist_ok=True)
        return {"quantize": model.quantize, "threads": model.threads}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> OnnxProgram:
        if device == "meta":
            raise ArtifactError(f"{folder}: an ONNX graph has no torch module to look at")
        tokenizer = load_tokenizer(folder)
        return OnnxProgram(folder, architecture["quantize"], architecture["threads"], tokenizer)

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        return session.counts(folder)


def apply(model: TorchModel, config: OnnxConfig, ctx: Context) -> OnnxProgram:
    """Export, check against torch at sizes the export did not see, and quantise if asked to."""
    task = ctx.need_task()
    kept = {p.dtype for p in model.module.parameters()} if config.dtype == "keep" else set()
    if torch.bfloat16 in kept:
        raise PlanishError(
            "dtype = 'keep': the model's weights are bfloat16, which ONNX Runtime does not compute with on a CPU; "
            "choose 'float32'"
        )
    tolerance = config.verify_tolerance or (HALF_TOLERANCE if torch.float16 in kept else TOLERANCE)
    if getattr(model, "protection", None):
        ctx.facts["fault protection"] = UNPROTECTED
        warnings.warn(f"onnx: {UNPROTECTED}", stacklevel=2)
    inputs, axes = task.example(model), task.axes
    steps = 3 if config.quantize == "int8" else 2
    exact = ctx.folder / "float" if config.quantize == "int8" else ctx.out
    ctx.progress(0, steps, "export")
    if config.exporter == "optimum":
        export_cached(model.module, exact, opset=config.opset)
    else:
        export(model.module, inputs, exact, dynamic=axes, opset=config.opset or OPSET, dtype=config.dtype)
    ctx.progress(1, steps, "check against torch")
    if config.exporter == "optimum":
        checked = verify_cached(model.module, exact, inputs["input_ids"], tolerance=tolerance)
    else:
        checked = verify(
            model.module,
            exact,
            inputs,
            dynamic=axes,
            tolerance=tolerance,
            threads=config.threads,
        )
    ctx.facts["float32 against torch"] = asdict(checked)
    if config.quantize == "int8":
        ctx.progress(2, steps, "int8")
        if not config.reduce_range and saturates():
            ctx.facts["int8 on this processor"] = SATURATES
            warnings.warn(f"onnx: {SATURATES}", stacklevel=2)
        ctx.facts["int8"] = asdict(
            quantize(
                exact,
                ctx.out,
                per_channel=config.per_channel,
                reduce_range=config.reduce_range,
                embeddings=config.embeddings,
            )
        )
        shutil.rmtree(exact)
        ctx.facts["int8 against torch"] = asdict(
            verify(model.module, ctx.out, inputs, dynamic=axes, int8=True, threads=config.threads)
        )
    if model.tokenizer is not None:
        _keep_tokenizer(model.tokenizer, ctx.out)
    ctx.progress(steps, steps, "done")
    return OnnxProgram(ctx.out, config.quantize, config.threads, model.tokenizer)


def _keep_tokenizer(tokenizer: Any, out: Path) -> None:
    saved: Iterable[str] = tokenizer.save_pretrained(out)
    if not any((out / name).is_file() for name in TOKENIZER):
        raise ArtifactError(
            f"{out}: the tokenizer wrote {', '.join(Path(p).name for p in saved)}, none of {TOKENIZER}"
        )
