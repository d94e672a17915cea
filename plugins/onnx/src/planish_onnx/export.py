"""A torch module becomes an ONNX folder, through `torch.onnx.export(dynamo=True)`."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_onnx import files, graph
from planish_onnx.trace import trace

Dims = Mapping[str, Mapping[int, str]]


def export(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    out: Path,
    *,
    dynamic: Dims | None = None,
    opset: int | None = None,
    dtype: Literal["float32", "keep"] = "float32",
) -> Path:
    """Write `model` as `out`/model.onnx and `out`/model.onnx.data, same model, same bytes.

    Matrices used by linear layers are stored as (in, out); a tied matrix is stored once; weights keep their torch
    names. The graph holds no stack trace, source line or path. The model itself is left as it was.

    Args:
        model: any module that takes tensors by name and returns a tensor, a tuple whose first item is a tensor, or a
            transformers output with `logits`. A decoder is exported without its KV cache.
        inputs: argument name -> example. Sizes of dynamic axes do not matter.
        dynamic: argument name -> axis -> name of the axis, for axes whose size may vary; default
            :func:`default_dims`.
        opset: ONNX operator set; None takes the exporter's.
        dtype: "float32" exports a float32 copy; "keep" exports the parameters' own type.

    Returns:
        `out`.

    Raises:
        PlanishError: the model cannot be exported, with the exporter's reason; nothing is written.
    """
    if not inputs:
        raise PlanishError(
            "inputs: no example tensor was given; name each argument, e.g. {'input_ids': tensor}"
        )
    dims = {name: dict(axes) for name, axes in (dynamic or default_dims(inputs)).items()}
    for name, axes in dims.items():
        if name not in inputs or any(not 0 <= axis < inputs[name].dim() for axis in axes):
            raise PlanishError(f"dynamic: {name}={axes} fits none of the inputs {_shapes(inputs)}")
    host = on_cpu(model, dtype)
    names = tuple(inputs)
    examples = tuple(_example(inputs[name], dims.get(name, {}), host) for name in names)
    specs = tuple(dict.fromkeys(dims.get(name, {}), torch.export.Dim.DYNAMIC) for name in names)
    with _inference_mode(host), quiet():
        try:
            traced = trace(Logits(host, names), examples, names, (specs,), opset)
            graph.simplify(traced)
        except Exception as error:  # the exporter wraps whatever the model's own code raised
            raise PlanishError(f"export of {type(model).__name__} failed: {_reason(error)}") from error
    graph.store_transposed(traced)
    graph.name_tensors(traced, Logits.prefix, _first_names(host))
    graph.forget_origin(traced, dims)
    files.save(traced, out)
    return out


def default_dims(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """Axis 0 of every input is the batch; axis 1 of an integer or boolean matrix (token ids, masks) the sequence."""

    def named(tensor: Tensor) -> dict[int, str]:
        text = tensor.dim() == 2 and not tensor.is_floating_point()
        return {0: "batch", 1: "sequence"} if text else {0: "batch"}

    return {name: named(tensor) for name, tensor in inputs.items() if tensor.dim()}


class Logits(nn.Module):
    """Calls `model` with named tensors and returns one tensor: the form in which a model is exported and verified."""

    prefix = "model."

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.training = model.training

    def forward(self, *values: Tensor) -> Tensor:
        result = self.model(**dict(zip(self.names, values, strict=True)))
        if isinstance(result, Tensor):
            return result
        logits = getattr(result, "logits", None)
        items = result.values() if isinstance(result, Mapping) else result
        first = next(iter(items)) if logits is None else logits
        if not isinstance(first, Tensor):
            raise TypeError(
                f"the model returns {type(first).__name__}, not a tensor or an output with logits"
            )
        return first


def run_torch(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Logits of the torch model in evaluation mode, without cache, as float32 on the CPU."""
    parameter = next(model.parameters(), torch.empty(0))
    with _inference_mode(model), torch.no_grad():
        values = (
            tensor.to(parameter.device, parameter.dtype if tensor.is_floating_point() else tensor.dtype)
            for tensor in inputs.values()
        )
        logits: Tensor = Logits(model, tuple(inputs))(*values)
        return logits.float().cpu()


def _first_names(model: nn.Module) -> dict[str, str]:
    """Name of everything that a checkpoint of `model` holds -> the first name of the same tensor (tied ones differ)."""
    first: dict[Tensor, str] = {}
    return {name: first.setdefault(tensor, name) for name, tensor in model.state_dict(keep_vars=True).items()}


def on_cpu(model: nn.Module, dtype: str) -> nn.Module:
    """`model` itself where it already fits, otherwise a copy on the CPU (tied weights stay tied)."""
    tensors = [*model.parameters(), *model.buffers()]
    moved = any(tensor.device.type != "cpu" for tensor in tensors)
    cast = dtype == "float32" and any(t.is_floating_point() and t.dtype != torch.float32 for t in tensors)
    if any(tensor.device.type == "meta" for tensor in tensors):
        raise PlanishError(
            f"{type(model).__name__} has weights on the meta device; load them before the export"
        )
    if not moved and not cast:
        return model
    host = copy.deepcopy(model).cpu()
    return host.float() if cast else host


def _example(tensor: Tensor, axes: Mapping[int, str], model: nn.Module) -> Tensor:
    """The example on the CPU, in the model's type, at least 2 long where it may vary: torch bakes in sizes 0 and 1."""
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), tensor.dtype))
    for axis in axes:
        if tensor.shape[axis] == 0:
            raise PlanishError(f"inputs: an example of shape {tuple(tensor.shape)} is empty")
        if tensor.shape[axis] == 1:
            tensor = tensor.repeat_interleave(2, dim=axis)
    return tensor


@contextmanager
def _inference_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no KV cache, put back afterwards."""
    training = {module: module.training for module in model.modules()}
    config: Any = getattr(model, "config", None)
    use_cache = getattr(config, "use_cache", None)
    model.eval()
    if use_cache is not None:
        config.use_cache = False
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
        if use_cache is not None:
            config.use_cache = use_cache


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter logs its own progress and warns about code of others; a failure is raised anyway."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "optimum")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """First line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {files.first_line(error)}"


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name}{tuple(tensor.shape)}" for name, tensor in inputs.items())
