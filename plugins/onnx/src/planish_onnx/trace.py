"""torch's tracing exporter, run once for models of one structure.

Pruning at several rates, masks and quantisation change weights, not code: their graphs are the same and tracing them again
takes most of an export. So the last graphs are kept without weights, by everything that the trace could have seen: classes,
plain attributes and configurations of all modules, shapes, types and ties of weights, values of other tensors, and the shapes
of the inputs. A model with anything else about it (hooks, closures, unknown objects) is traced anew each time. Callers check
exported graphs against torch whatever their origin.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from enum import Enum
from types import FunctionType
from typing import Any, Final

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor, nn

KEPT: Final = 2
_kept: dict[Hashable, ir.Model] = {}

_PLAIN = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_OWN = frozenset(vars(nn.Module()))
_ORIGIN = frozenset(("name_or_path", "_name_or_path", "transformers_version"))
"""Where a model was loaded from and what wrote it, which say nothing about the model."""


def trace(
    model: nn.Module,
    examples: Sequence[Tensor],
    names: Sequence[str],
    dynamic_shapes: Any,
    opset: int | None,
) -> ir.Model:
    """The graph of ``model(*examples)`` as torch's exporter makes it, with the model's weights by their names.

    Args:
        model: takes tensors by position and returns one tensor.
        examples, names: the inputs.
        dynamic_shapes: as `torch.export.export` takes them.
        opset: ONNX operator set; None takes the exporter's.
    """
    key = _key(model, examples, (tuple(names), repr(dynamic_shapes), opset))
    graph = _kept.pop(key, None) or _traced(model, examples, names, dynamic_shapes, opset)
    if key is not None:
        _kept[key] = graph
        while len(_kept) > KEPT:
            del _kept[next(iter(_kept))]
    return _filled(graph, model)


def _traced(
    model: nn.Module, examples: Sequence[Tensor], names: Sequence[str], dynamic_shapes: Any, opset: int | None
) -> ir.Model:
    """The graph without weights."""
    program = torch.onnx.export(
        model,
        tuple(examples),
        dynamo=True,
        dynamic_shapes=dynamic_shapes,
        input_names=list(names),
        output_names=["logits"],
        opset_version=opset,
        optimize=False,
        verbose=False,
    )
    assert program is not None
    graph = program.model
    for name in model.state_dict(keep_vars=True).keys() & graph.graph.initializers.keys():
        graph.graph.initializers[name].const_value = None
    return graph


def _filled(kept: ir.Model, model: nn.Module) -> ir.Model:
    filled = kept.clone()
    tensors = model.state_dict(keep_vars=True)
    for name, value in filled.graph.initializers.items():
        if value.const_value is None:
            value.const_value = TorchTensor(tensors[name].detach(), name=name)
    return filled


def _key(model: nn.Module, examples: Sequence[Tensor], rest: Hashable) -> Hashable | None:
    """Everything that a trace could depend on but the values of weights, or None where that cannot be told."""
    code: list[Hashable] = []
    try:
        parts = [repr(part) for part in _parts(model, code)]
    except _Unknown:
        return None
    shapes = [(tuple(x.shape), x.dtype) for x in examples]
    return hashlib.sha256(repr((parts, shapes, rest)).encode()).hexdigest(), tuple(code)


class _Unknown(Exception):
    """An attribute of which nothing is known."""


def _parts(model: nn.Module, code: list[Hashable]) -> Iterator[Any]:
    """Facts about the model; classes and functions go to ``code``, because names alone do not tell them apart."""
    weights = model.state_dict(keep_vars=True)
    place: dict[int, int] = {}
    for name, tensor in weights.items():
        yield name, tuple(tensor.shape), tensor.dtype, place.setdefault(id(tensor), len(place))
    for name, tensor in model.named_buffers():
        if name not in weights:
            yield name, _attribute(tensor, code)
    for name, module in model.named_modules():
        if any(value for key, value in vars(module).items() if key.endswith("_hooks")):
            raise _Unknown
        code.append(type(module))
        yield name, module.training
        for key, value in vars(module).items():
            if key not in _OWN | _ORIGIN:
                yield key, _attribute(value, code)


def _attribute(value: Any, code: list[Hashable], depth: int = 0) -> Any:
    """Something whose repr is equal for equal values only."""
    if isinstance(value, (*_PLAIN, Enum)):
        return value
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, _digest(value)
    if isinstance(value, type) or (isinstance(value, FunctionType) and value.__closure__ is None):
        code.append(value)
        return "code"
    # A module that is not registered could hide weights; objects that hold themselves never end.
    if isinstance(value, nn.Module) or depth == 8:
        raise _Unknown
    code.append(type(value))
    if isinstance(value, Mapping):
        items = [(k, v) for k, v in value.items() if k not in _ORIGIN]
        return [(_attribute(k, code, depth + 1), _attribute(v, code, depth + 1)) for k, v in items]
    if isinstance(value, (list, tuple)):
        return [_attribute(item, code, depth + 1) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(_attribute(item, [], depth + 1)) for item in value)
    if type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        return _attribute(vars(value), code, depth + 1)  # a configuration
    raise _Unknown


def _digest(tensor: Tensor) -> str:
    raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(raw.numpy()).hexdigest()
