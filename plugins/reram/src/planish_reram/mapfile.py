"""Fault maps as files: one safetensors file a chip, tensors named ``LAYER/COPY``.

Written as two bits a cell with the shape beside them; read also as plain int8 [A, S, out, in], which is what a march test
of a real chip would be converted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from planish import weights
from planish.errors import ArtifactError

SHAPE = "/shape"


def write_maps(path: Path, maps: Mapping[str, Sequence[Tensor]]) -> None:
    """Write int8 maps [1, A, S or m, out, in] by layer and copy; nothing is written where there are none."""
    tensors = {}
    for layer, copies in maps.items():
        for copy, found in enumerate(copies):
            tensors[f"{layer}/{copy}"] = _pack(found[0])
            tensors[f"{layer}/{copy}{SHAPE}"] = torch.tensor(found.shape[1:], dtype=torch.int64)
    if tensors:
        weights.write(path, tensors)


def read_maps(path: Path) -> dict[str, list[Tensor]]:
    """Maps int8 [1, A, S or m, out, in] by layer, one a copy; empty where the file is not there.

    Raises:
        ArtifactError: a tensor is no fault map.
    """
    if not path.is_file():
        return {}
    tensors = weights.read(path)
    maps: dict[str, list[Tensor]] = {}
    named: list[tuple[str, int, str]] = []
    for name in tensors:
        layer, slash, copy = name.removesuffix(SHAPE).rpartition("/")
        if not slash or not copy.isdecimal():
            raise ArtifactError(f"{path}: tensor {name!r} is not named LAYER/COPY")
        if not name.endswith(SHAPE):
            named.append((layer, int(copy), name))
    for layer, copy_number, name in sorted(named):
        value = tensors[name]
        if f"{name}{SHAPE}" in tensors:
            value = _unpack(value, tensors[f"{name}{SHAPE}"].tolist(), path, name)
        if value.dtype != torch.int8 or value.dim() != 4 or value.numel() == 0:
            raise ArtifactError(f"{path}: tensor {name!r} must be int8 of shape [arrays, slices, out, in]")
        if int(value.min()) < 0 or int(value.max()) > 2:
            raise ArtifactError(
                f"{path}: tensor {name!r}: states are 0 (healthy), 1 (high) and 2 (low resistance)"
            )
        copies = maps.setdefault(layer, [])
        if copy_number != len(copies):
            raise ArtifactError(f"{path}: layer {layer!r}: the map of copy {len(copies)} is missing")
        copies.append(value[None])
    return maps


def _pack(states: Tensor) -> Tensor:
    """Four states a byte."""
    flat = states.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 4)).view(-1, 4)
    return flat[:, 0] | flat[:, 1] << 2 | flat[:, 2] << 4 | flat[:, 3] << 6


def _unpack(packed: Tensor, shape: list[int], path: Path, name: str) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != -(-count // 4):
        raise ArtifactError(f"{path}: tensor {name!r} does not hold {count} states")
    states = torch.stack([packed >> shift & 3 for shift in (0, 2, 4, 6)], dim=1).flatten()[:count]
    return states.to(torch.int8).view(shape)
