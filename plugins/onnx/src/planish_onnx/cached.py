"""Decoders with a KV cache, exported by optimum (extra `planish-onnx[optimum]`, transformers 4.57 only).

optimum is imported when :func:`export_cached` is called, never before.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import tempfile
import warnings
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from planish.errors import MissingRequirement, PlanishError
from planish_onnx import files, graph
from planish_onnx.export import on_cpu, quiet
from planish_onnx.session import OnnxModel
from planish_onnx.verify import TOLERANCE, Verification, compare

HINT = "pip install 'planish-onnx[optimum]' (optimum 2.1.0, optimum-onnx 0.1.0, transformers 4.57)"


def export_cached(model: nn.Module, out: Path, *, opset: int | None = None) -> Path:
    """Write a transformers decoder whose graph takes `past_key_values.*` and returns `present.*`.

    Args:
        model: a decoder with one set of head counts for all layers in its config, as optimum reads the shape of
            the cache from there.
        out: folder for model.onnx and model.onnx.data.

    Raises:
        MissingRequirement: optimum is not installed, or transformers is too new for it.
        PlanishError: optimum cannot export the model.
    """
    convert = _optimum()
    host = on_cpu(model, "float32")
    if host is model:
        host = copy.deepcopy(model)  # optimum patches what it exports
    config: Any = getattr(host, "config", None)
    if config is None:
        raise PlanishError(
            f"exporter = 'optimum': {type(model).__name__} is no transformers model; use 'dynamo'"
        )
    host.eval()
    config.use_cache = True
    with tempfile.TemporaryDirectory() as directory, quiet():
        try:
            convert(
                model=host,
                output=Path(directory),
                opset=opset,
                task="text-generation-with-past",
                do_validation=False,
            )
        except Exception as error:  # optimum wraps whatever the tracer raised
            raise PlanishError(
                f"export of {type(model).__name__} with optimum failed: {files.first_line(error)}"
            ) from error
        exported = ir.load(Path(directory) / files.GRAPH)
        graph.store_transposed(exported)
        graph.forget_origin(exported)
        files.save(exported, out)
    return out


def verify_cached(
    model: nn.Module,
    folder: Path,
    input_ids: torch.Tensor,
    *,
    new_tokens: int = 8,
    tolerance: float = TOLERANCE,
) -> Verification:
    """Logits of the prompt and greedy tokens through the cache, both against torch.

    Raises:
        PlanishError: the logits differ by more than `tolerance` of the largest one, or a token differs.
    """
    host = on_cpu(model, "float32").eval()
    runtime = OnnxModel(folder)
    with torch.no_grad():
        wanted = host(input_ids=input_ids, use_cache=False).logits
    result = compare(wanted, torch.as_tensor(runtime(input_ids=input_ids)), {"input_ids": input_ids})
    if not result.relative_error <= tolerance:
        raise PlanishError(
            f"{folder.name}: the cached graph does not compute the torch model: relative error "
            f"{result.relative_error:.3g}, tolerance {tolerance:g}"
        )
    found = runtime.generate(input_ids, new_tokens)
    with torch.no_grad():
        for position in range(input_ids.shape[1], found.shape[1]):
            logits = host(input_ids=found[:, :position], use_cache=False).logits[:, -1]
            chosen = logits.gather(-1, found[:, position : position + 1])[:, 0]
            gap = (logits.max(-1).values - chosen).max().item()
            if gap > 2 * tolerance * result.largest_logit:  # a tie may fall either way
                raise PlanishError(
                    f"{folder.name}: through the cache, token {position} is not the one torch would choose "
                    f"(its logit is {gap:.3g} lower)"
                )
    return result


def _optimum() -> Any:
    """optimum's exporter of a live model."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise MissingRequirement(f"exporter = 'optimum' needs transformers: {HINT}") from None
    if int(version.split(".")[0]) >= 5:
        raise MissingRequirement(
            f"exporter = 'optimum' needs transformers 4.57, {version} is installed; use exporter = 'dynamo'"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("optimum.exporters.onnx").onnx_export_from_model
    except (ImportError, AttributeError) as error:
        raise MissingRequirement(f"exporter = 'optimum': {error}; {HINT}") from None
