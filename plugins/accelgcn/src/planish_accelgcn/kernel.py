"""Launching the CUDA kernel: one compiled program a setting, type and epilogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from planish_accelgcn.reference import Fused
from planish_accelgcn.settings import Setting, shared_memory
from planish_accelgcn.sources import source
from planish_accelgcn.work import Work, within, work
from planish_graph import nvrtc
from planish_graph.graph import Graph

PRODUCT = "accelgcn product"
"""First word of the keys of products that are kept on a graph."""
WARP = 32
SUM = 4
"""Bytes of a column's sum."""
STORAGE = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SDDMM = Setting(chunk=4096, segment=512, short=0)
"""Of the gradient of the values; as many lanes as the width asks for have an entry."""


def defines(
    setting: Setting, dtype: torch.dtype, vec: int, *, values: int, wide: bool, width: int, fused: Fused
) -> dict[str, int]:
    """What a source is compiled with, for lanes that load ``vec`` elements; ``values`` is 0 for none, 1 for fp32, 2 for x's
    type."""
    lanes = min(WARP, setting.line // (vec * dtype.itemsize))
    return {
        "STORAGE": STORAGE[dtype],
        "VEC": vec,
        "LANES": lanes,
        "UNROLL": setting.unroll,
        "THREADS": setting.threads,
        "BLOCKS": setting.blocks,
        "VALUES": values,
        "COLUMN_SCALE": int(fused.column_scale is not None),
        "ROW_SCALE": 2 if fused.mean else int(fused.row_scale is not None),
        "BIAS": int(fused.bias is not None),
        "RELU": int(fused.relu),
        "WIDE": int(wide),
        "GUARD": int(width % (lanes * vec) != 0),
    }


def lists_of(graph: Graph, setting: Setting, tile: int) -> Work:
    """The work lists of a setting whose blocks have ``tile`` columns: rows are cut less often where the sums of their
    segments would take more shared memory than a block may have."""
    slots = shared_memory(graph.device, setting.blocks) // (tile * SUM)
    return within(graph, setting.chunk, setting.segment, setting.short, slots)


def program(
    graph: Graph, x: Tensor, value: Tensor | None, fused: Fused, setting: Setting
) -> Callable[[], Tensor]:
    """A program that computes y [N, D] of x's type. What can be kept for the next one is kept on the graph.

    Args:
        x: [M, D], contiguous.
        value: [E], the entries' values in fp32 or in x's type, or None for ones.
        fused: vectors in fp32.
    """
    vec = _vec(x.shape[1], x.element_size(), x.data_ptr())
    values = 0 if value is None else 1 if value.dtype == torch.float32 else 2
    row_scale, column_scale, bias, *flags = fused
    present = row_scale is None, column_scale is None, bias is None, *flags
    key = (PRODUCT, x.shape[1], x.dtype, vec, values, present, setting)
    product = graph.kept(key, lambda: Product(graph, x, vec, values, fused, setting))
    return lambda: product(x, value, fused)


class Product:
    """The compiled kernel, its lists and its launch, for one structure, width and type."""

    def __init__(
        self, graph: Graph, x: Tensor, vec: int, values: int, fused: Fused, setting: Setting
    ) -> None:
        self.width, self.rows, self.threads = x.shape[1], graph.num_rows, setting.threads
        line = self.width * x.element_size()
        largest = max(graph.num_edges * 4, graph.num_cols * line, self.rows * line)
        wide = largest >= 1 << 32
        macros = defines(setting, x.dtype, vec, values=values, wide=wide, width=self.width, fused=fused)
        module = nvrtc.compile(source("spmm"), defines=macros, device=x.device)
        tile = macros["LANES"] * vec
        tiles = -(-self.width // tile)
        self.columns = graph.columns32()
        self.sizes: tuple[int, ...] = (line, line, nvrtc.i32(self.width))
        self.lists: tuple[Tensor, ...]
        self.pieces, self.shared = 0, 0
        if setting.flat:
            self.kernel = module["spmm_flat"]
            self.grid = -(-self.rows * WARP // self.threads), tiles, 1
            self.lists = (graph.indptr.to(torch.int32),)
            self.sizes += (nvrtc.i32(self.rows),)
            return
        lists = lists_of(graph, setting, tile)
        self.kernel, self.join = module["spmm"], module["join"]
        self.grid = len(lists.chunks), tiles, 1
        self.lists = lists.tasks, lists.chunks, lists.cuts
        self.giants, self.pieces = lists.giants, lists.pieces
        self.shared = lists.slots * tile * SUM

    def __call__(self, x: Tensor, value: Tensor | None, fused: Fused) -> Tensor:
        out = x.new_empty(self.rows, self.width)
        number = self.pieces * self.width
        pieces = torch.empty(number, dtype=torch.float32, device=out.device) if number else None
        operands = (self.columns, value, fused.column_scale, fused.row_scale, fused.bias, x, out)
        if len(self.lists) == 1:
            self.kernel(self.grid, self.threads, *self.lists, *operands, *self.sizes)
            return out
        self.kernel(self.grid, self.threads, *self.lists, *operands, pieces, *self.sizes, shared=self.shared)
        if pieces is not None:
            threads = min(256, -(-self.width // WARP) * WARP)
            grid = len(self.giants), -(-self.width // threads), 1
            self.join(grid, threads, self.giants, pieces, fused.row_scale, fused.bias, out, *self.sizes[1:])
        return out


def edge_gradient(
    graph: Graph, row_scale: Tensor | None, column_scale: Tensor | None, grad: Tensor, x: Tensor
) -> Tensor:
    """[E] fp32: row_scale[i] column_scale[j] <grad[i], x[j]> for contiguous grad [N, D] and x [M, D] of one type."""
    width, size = x.shape[1], x.element_size()
    vec = _vec(width, size, x.data_ptr() | grad.data_ptr())
    lists = work(graph, SDDMM.chunk, SDDMM.segment, SDDMM.short)
    lanes = min(WARP, 1 << (-(-width // vec) - 1).bit_length())
    setting = replace(SDDMM, line=lanes * vec * size)
    fused = Fused(row_scale, column_scale)
    macros = defines(setting, x.dtype, vec, values=0, wide=False, width=width, fused=fused)
    out = torch.empty(graph.num_edges, dtype=torch.float32, device=x.device)
    nvrtc.compile(source("sddmm"), defines=macros, device=x.device)["sddmm"](
        len(lists.chunks), setting.threads, lists.tasks, lists.chunks, graph.columns32(), row_scale, column_scale,
        grad, x, out, width * size, nvrtc.i32(width),
    )  # fmt: skip
    return out


def _vec(width: int, size: int, pointers: int) -> int:
    """Elements that a lane loads at once: at most 16 bytes, a divisor of the width, and aligned."""
    vec = 16 // size
    while width % vec or pointers % (vec * size):
        vec //= 2
    return vec
