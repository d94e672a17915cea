"""Which layers of a network go onto crossbars, and their weights as matrices [out, in].

Static matrices only: QK^T and AV have two operands that change with every token and stay digital, as do embeddings, norms
and biases.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from planish.errors import ConfigError


def mapped_layers(module: nn.Module, skip: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The layers to map, by module path and in module order.

    Linear layers, the transposed linear layers of transformers (``Conv1D``) and two-dimensional convolutions. Left
    digital are layers whose weight is an embedding table too, the projections inside ``nn.MultiheadAttention`` (that
    module reads their weights itself), and paths that match a pattern of ``skip``.

    Raises:
        ConfigError: a convolution has groups, or a pattern of ``skip`` matches no layer.
    """
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    found: dict[str, nn.Module] = {}
    used: set[str] = set()
    for name, layer in module.named_modules():
        if not is_matrix(layer):
            continue
        hit = {pattern for pattern in skip if fnmatch.fnmatchcase(name, pattern)}
        used |= hit
        if hit or id(layer.weight) in tables or _inside_attention(module, name):
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups > 1:
            raise ConfigError(
                f"layer {name!r}: a convolution with groups = {layer.groups} has no crossbar mapping here; "
                "name it in skip to leave it digital"
            )
        found[name] = layer
    if unused := [pattern for pattern in skip if pattern not in used]:
        raise ConfigError(f"skip = {unused[0]!r} matches no layer")
    return found


def is_matrix(layer: nn.Module) -> bool:
    """Whether the layer is of a kind that can be mapped."""
    return isinstance(layer, nn.Linear | nn.Conv2d) or is_transposed(layer)


def is_transposed(layer: nn.Module) -> bool:
    """Whether the layer is transformers' ``Conv1D``: a linear layer that keeps its weight as [in, out]."""
    return type(layer).__name__ == "Conv1D" and hasattr(layer, "nf") and hasattr(layer, "weight")


def matrix(layer: Any) -> Tensor:
    """The weight as [out, in]; of a convolution [out, in * kernel height * kernel width]."""
    weight: Tensor = layer.weight
    if is_transposed(layer):
        return weight.t()
    return weight.flatten(1)


def _inside_attention(module: nn.Module, name: str) -> bool:
    parts = name.split(".")[:-1]
    return any(
        isinstance(module.get_submodule(".".join(parts[: i + 1])), nn.MultiheadAttention)
        for i in range(len(parts))
    )
