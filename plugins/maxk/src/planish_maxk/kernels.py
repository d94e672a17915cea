"""The same three computations in Triton; `planish_maxk.topk` and `planish_maxk.product` are their references.

Rows come cut into segments of at most `SEGMENT` entries in row order (`planish_graph.partition`), a program each, so that no kernel
loops over a length it has to load. Offsets are 64-bit. Sums are taken in fp32 with atomic additions, so that two runs
may differ in the last bits; where results must repeat, the operators take the plain torch path.

The forward kernel adds into global memory, since Triton has no indexed on-chip accumulator; `planish_maxk.cuda` has one.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

from planish_graph.graph import Graph, Plan
from planish_graph.partition import segments

SEGMENT = 32
LANES = 64
TILE = 1024
"""Numbers in a program's tile of the top-k kernel, unless one row is longer."""
WIDEST = 8192
"""Longest row of the top-k kernel; wider tiles take minutes to compile, and longer rows go through plain torch."""

INFINITY = {torch.float32: 0x7F800000, torch.bfloat16: 0x7F800000, torch.float16: 0x7C000000}
"""Bits of infinity, those of a 16-bit number in the upper half."""

AVAILABLE = importlib.util.find_spec("triton") is not None

if AVAILABLE:
    import triton
    import triton.language as tl


def usable(x: Tensor) -> bool:
    """Whether kernels run on x: triton is there, x is on a GPU (or the interpreter is on), and not float64."""
    place = x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    return AVAILABLE and place and x.dtype != torch.float64


if AVAILABLE:

    @triton.jit
    def _top_k(  # type: ignore[no-untyped-def]
        x, values, index, rows, width, k, HALF: tl.constexpr, INFINITY: tl.constexpr, R: tl.constexpr, D: tl.constexpr
    ):  # fmt: skip
        """R rows a program. The k-th largest key is found bit by bit, ties are taken from the left.

        Keys are made from the bits of the floats, so that no arithmetic can flush small numbers to zero.
        """
        row = (tl.program_id(0).to(tl.int64) * R + tl.arange(0, R))[:, None]
        column = tl.arange(0, D)[None, :]
        inside = (row < rows) & (column < width)
        value = tl.load(x + row * width + column, mask=inside, other=0.0)
        if HALF:
            bits = value.to(tl.int16, bitcast=True).to(tl.int32) << 16
        else:
            bits = value.to(tl.int32, bitcast=True)
        bits = tl.where(bits == -0x80000000, 0, bits)  # -0 equals 0
        bits = tl.where((bits & 0x7FFFFFFF) > INFINITY, 0x7FFFFFFF, bits)  # NaN is the largest
        # Integers in the order of the floats: flip all bits of negative ones, the sign bit of the others.
        key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
        bit = tl.full([R, 1], 0x80000000, tl.uint32)
        limit = tl.zeros([R, 1], tl.uint32)
        for _ in range(32):
            trial = limit | bit
            enough = tl.sum(((key >= trial) & inside).to(tl.int32), axis=1)[:, None] >= k
            limit = tl.where(enough, trial, limit)
            bit = bit >> 1
        above = (key > limit) & inside
        equal = ((key == limit) & inside).to(tl.int32)
        wanted = k - tl.sum(above.to(tl.int32), axis=1)[:, None]
        kept = above | ((equal > 0) & (tl.cumsum(equal, axis=1) <= wanted))
        place = row * k + tl.cumsum(kept.to(tl.int32), axis=1) - 1
        tl.store(values + place, value, mask=kept)
        tl.store(index + place, column.to(index.dtype.element_ty), mask=kept)

    @triton.jit
    def _forward(  # type: ignore[no-untyped-def]
        row, start, count, indices, weight, values, index, out, width, k,
        WEIGHTED: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    ):  # fmt: skip
        """One segment and K of the k kept entries a program: out[row, index] += weight * values."""
        place, both, entry, live = _tile(start, count, indices, k, S, K)
        value = tl.load(values + place, mask=both, other=0.0).to(tl.float32)
        column = tl.load(index + place, mask=both, other=0).to(tl.int64)
        if WEIGHTED:
            value = value * tl.load(weight + entry, mask=live, other=0.0).to(tl.float32)[:, None]
        first = tl.load(row + tl.program_id(0)).to(tl.int64) * width
        tl.atomic_add(out + first + column, value, mask=both)

    @triton.jit
    def _backward(  # type: ignore[no-untyped-def]
        row, start, count, indices, weight, values, index, grad, of_values, of_weight, width, k,
        WEIGHTED: tl.constexpr, VALUES: tl.constexpr, WEIGHTS: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    ):  # fmt: skip
        """The gradient row of the segment's destination, sampled at each source's positions."""
        place, both, entry, live = _tile(start, count, indices, k, S, K)
        column = tl.load(index + place, mask=both, other=0).to(tl.int64)
        first = tl.load(row + tl.program_id(0)).to(tl.int64) * width
        sampled = tl.load(grad + first + column, mask=both, other=0.0).to(tl.float32)
        if WEIGHTS:
            value = tl.load(values + place, mask=both, other=0.0).to(tl.float32)
            tl.atomic_add(of_weight + entry, tl.sum(sampled * value, axis=1), mask=live)
        if VALUES:
            if WEIGHTED:
                sampled = sampled * tl.load(weight + entry, mask=live, other=0.0).to(tl.float32)[:, None]
            tl.atomic_add(of_values + place, sampled, mask=both)

    @triton.jit
    def _tile(start, count, indices, k, S: tl.constexpr, K: tl.constexpr):  # type: ignore[no-untyped-def]
        """Where the kept entries of a segment's sources lie [S, K], which of them exist, and the entries' numbers."""
        segment = tl.program_id(0)
        within = tl.arange(0, S)
        live = within < tl.load(count + segment)
        entry = tl.load(start + segment).to(tl.int64) + within
        source = tl.load(indices + entry, mask=live, other=0).to(tl.int64)
        lane = tl.program_id(1) * K + tl.arange(0, K)
        return source[:, None] * k + lane[None, :], live[:, None] & (lane < k)[None, :], entry, live


def top_k(x: Tensor, k: int, positions: torch.dtype) -> tuple[Tensor, Tensor]:
    """`planish_maxk.topk.top_k` for contiguous x [N, D] of fp32, fp16 or bf16."""
    rows, width = x.shape
    values, index = x.new_empty(rows, k), torch.empty(rows, k, dtype=positions, device=x.device)
    if rows:
        columns = triton.next_power_of_2(width)
        height = max(1, TILE // columns)
        warps = min(16, max(4, height * columns // 512))
        grid = (triton.cdiv(rows, height),)
        half = x.dtype != torch.float32
        infinity = INFINITY[x.dtype]
        _top_k[grid](
            x, values, index, rows, width, k, HALF=half, INFINITY=infinity, R=height, D=columns, num_warps=warps
        )  # fmt: skip
    return values, index


def divide(graph: Graph) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, first entries and lengths of the segments; kept on the graph."""
    cut = segments(graph, SEGMENT, empty=False)
    return cut.row, cut.start, cut.count


def forward(plan: Plan, work: tuple[Tensor, ...], values: Tensor, index: Tensor, width: int) -> Tensor:
    """y [N, width] of the values' type; see `planish_maxk.product.entrywise`. ``work`` is what `divide` gave."""
    out = torch.zeros(len(plan.indptr) - 1, width, dtype=torch.float32, device=values.device)
    k = index.shape[1]
    if len(work[0]):
        _forward[_grid(work, k)](
            *work, plan.indices, _any(plan.value, out), values, index, out, width, k,
            WEIGHTED=plan.value is not None, **_sizes(k),
        )  # fmt: skip
    return out.to(values.dtype)


def backward(
    plan: Plan,
    work: tuple[Tensor, ...],
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of the kept values [M, k] and of A's values [E]; ``wanted`` says which, the other is empty."""
    k = index.shape[1]
    zeros = lambda wanted, *shape: torch.zeros(shape if wanted else 0, device=grad.device)  # noqa: E731
    of_values, of_weight = zeros(wanted[0], len(index), k), zeros(wanted[1], len(plan.indices))
    if len(work[0]):
        _backward[_grid(work, k)](
            *work, plan.indices, _any(plan.value, grad), values, index, grad, of_values, of_weight,
            grad.shape[1], k, WEIGHTED=plan.value is not None, VALUES=wanted[0], WEIGHTS=wanted[1], **_sizes(k),
        )  # fmt: skip
    return of_values, of_weight


def _grid(work: tuple[Tensor, ...], k: int) -> tuple[int, int]:
    return len(work[0]), triton.cdiv(k, _sizes(k)["K"])


def _sizes(k: int) -> dict[str, Any]:
    return {"S": SEGMENT, "K": min(LANES, triton.next_power_of_2(k))}


def _any(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer argument that is never read still has to be a tensor."""
    return other if tensor is None else tensor
