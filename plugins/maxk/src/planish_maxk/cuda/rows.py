"""Top-k to compressed rows, and from those to dense ones and back."""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from planish_graph.driver import Kernel, Module
from planish_maxk.cuda.build import module, processors, row_floats, warps_for

WIDEST_TOP_K = 1024
"""Columns of a row that fits the registers of a warp."""


def top_k(x: Tensor, k: int, positions: torch.dtype) -> tuple[Tensor, Tensor]:
    """`planish_maxk.topk.top_k` for contiguous x [N, D], k < D <= `WIDEST_TOP_K`."""
    rows, width = x.shape
    values, index = x.new_empty(rows, k), torch.empty(rows, k, dtype=positions, device=x.device)
    vec = 16 // x.element_size()
    if width % vec or x.data_ptr() % 16:
        vec = 1
    device = x.device.index
    kernel, warps = _top_k(x.dtype, width, k, vec, device)
    kernel(min(8 * processors(device), -(-rows // warps)), 32 * warps, x, values, index, rows)
    return values, index


@cache
def _top_k(dtype: torch.dtype, width: int, k: int, vec: int, device: int) -> tuple[Kernel, int]:
    chunks, warps = -(-width // (32 * vec)), 8 if k <= 256 else 4
    normal = NormalDist()
    quantile = normal.inv_cdf(1 - k / width)
    macros = {
        "VEC": vec,
        "CHUNKS": chunks,
        "FULL": int(width == 32 * vec * chunks),
        "WARPS": warps,
        "QUANTILE": f"{quantile:.7f}f",
        "SLOPE": f"{1 / (width * normal.pdf(quantile)):.7f}f",
    }
    built = module("top_k", dtype, 1 if width <= 256 else 2, 4, width, k, device, macros)
    return built["top_k"], warps


def expand(values: Tensor, index: Tensor, width: int) -> Tensor:
    """`planish_maxk.topk.expand` for contiguous values and positions [N, k]."""
    rows, k = values.shape
    out = values.new_empty(rows, width)
    built, warps = (
        _expand(values.dtype, index.element_size(), width, k, values.device.index),
        warps_for(width, 4),
    )
    shared = warps * values.element_size() * row_floats(width)
    built["expand"](-(-rows // warps), 32 * warps, values, index, out, rows, shared=shared)
    return out


def pick(dense: Tensor, index: Tensor) -> Tensor:
    """[N, k] what contiguous ``dense`` [N, D] holds at positions [N, k]."""
    out = dense.new_empty(index.shape)
    built = _expand(dense.dtype, index.element_size(), dense.shape[1], index.shape[1], dense.device.index)
    built["pick"](
        min(16 * processors(dense.device.index), -(-out.numel() // 256)), 256, dense, index, out, out.numel()
    )
    return out


@cache
def _expand(dtype: torch.dtype, position: int, width: int, k: int, device: int) -> Module:
    return module("expand", dtype, position, 4, width, k, device, {"WARPS": warps_for(width, 4)})
