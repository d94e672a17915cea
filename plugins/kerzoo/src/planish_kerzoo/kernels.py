"""The sweep in Triton: one launch reads and writes every parameter of a table once and applies up to two operations.

`planish_kerzoo.sweep.reference` is the same in plain torch. Directions are made in registers and never stored. With
``TABLES`` the normals are those of `planish_kerzoo.noise`, bit for bit; without, the logarithm, root, sine and cosine are
the GPU's approximate instructions: farthest from the tables where the radius is smallest, by about 1e-5.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from planish_kerzoo import noise

LANES = tl.constexpr(noise.LANES)
ROUNDS = tl.constexpr(noise.ROUNDS)
ROUNDING = tl.constexpr(noise.ROUNDING)
M0, M1 = (tl.constexpr(value) for value in noise.MULTIPLIERS)
W0, W1 = (tl.constexpr(value) for value in noise.WEYL)


@triton.jit
def _philox(low, high, stream, key_low, key_high):
    """Four words [LANES] for counters (low, high, stream, 0)."""
    a = low
    b = tl.zeros_like(low) + high
    c = tl.zeros_like(low) + stream.to(tl.uint32)
    d = tl.zeros_like(low)
    k = key_low.to(tl.uint32, bitcast=True)
    m = key_high.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(ROUNDS):
        first = a.to(tl.uint64) * M0
        second = c.to(tl.uint64) * M1
        a = (second >> 32).to(tl.uint32) ^ b ^ k
        c = (first >> 32).to(tl.uint32) ^ d ^ m
        b = second.to(tl.uint32)
        d = first.to(tl.uint32)
        k += W0
        m += W1
    return a, b, c, d


@triton.jit
def _word(a, b, c, d, PART: tl.constexpr):
    if PART == 0:
        word = a
    elif PART == 1:
        word = b
    elif PART == 2:
        word = c
    else:
        word = d
    return word


@triton.jit
def _pair(word, tables, RADEMACHER: tl.constexpr, TABLES: tl.constexpr):
    """The two elements of a direction that come from one word."""
    if RADEMACHER:
        first = (word >> 31).to(tl.float32) * 2 - 1
        second = ((word >> 15) & 1).to(tl.float32) * 2 - 1
    elif TABLES:
        upper = (word >> 16).to(tl.int32)
        lower = (word & 0xFFFF).to(tl.int32)
        radius = tl.load(tables + upper)
        first = radius * tl.load(tables + 65536 + lower)
        second = radius * tl.load(tables + 131072 + lower)
    else:
        # A half as the upper mantissa bits of a float in [1, 2): cheaper than a conversion, which shares a unit with the
        # logarithm, the root and the sine. The lower half is signed, so that the angle lies in [-pi, pi).
        share = (((word >> 9) & 0x7FFF80) | 0x3F800000).to(tl.float32, bitcast=True) - 0.99999237060546875
        turn = (((word << 7) & 0x7FFF80) ^ 0x3FC00000).to(tl.float32, bitcast=True) - 1.5
        radius = tl.sqrt(libdevice.fast_log2f(share) * -1.3862943611198906)
        angle = turn * 6.283185307179586
        first = radius * libdevice.fast_cosf(angle)
        second = radius * libdevice.fast_sinf(angle)
    return first, second


@triton.jit
def _rounded(x, bits, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """x as DTYPE holds it, still in float32: to nearest, or bfloat16 up or down by 16 random bits."""
    if STOCHASTIC:
        cut = ((x.to(tl.uint32, bitcast=True) + bits) & 0xFFFF0000).to(tl.float32, bitcast=True)
        y = tl.where(x == x, cut, x)
    else:
        y = x.to(DTYPE).to(tl.float32)
    return y


@triton.jit
def _coefficient(h, s, d, GAIN: tl.constexpr):
    """h + s d, and h alone where d is NaN or infinite: such a step only restores."""
    c = tl.full((), 0.0, tl.float32) + h
    if GAIN:
        step = tl.load(d) * s
        c = tl.where(tl.abs(step) < float("inf"), c + step, c)
    return c


@triton.jit
def _load(pointer, index, begin, end, WHOLE: tl.constexpr):
    """Elements of a chunk, of which only ``begin`` to ``end`` exist unless it is whole."""
    if WHOLE:
        x = tl.load(pointer + index)
    else:
        x = tl.load(pointer + index, mask=(index >= begin) & (index < end), other=0.0)
    return x


@triton.jit
def _store(pointer, index, x, begin, end, WHOLE: tl.constexpr):
    if WHOLE:
        tl.store(pointer + index, x)
    else:
        tl.store(pointer + index, x, mask=(index >= begin) & (index < end))


@triton.jit(
    do_not_specialize=["a_low", "a_high", "b_low", "b_high", "a_turn", "b_turn", "a_h", "a_s", "b_h", "b_s"]
)
def _sweep(
    table, tables, lanes, a_d, a_low, a_high, a_turn, a_h, a_s, b_d, b_low, b_high, b_turn, b_h, b_s,
    DTYPE: tl.constexpr, KEPT: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    GAIN_A: tl.constexpr, GAIN_B: tl.constexpr, KEEP: tl.constexpr, ALIGNED: tl.constexpr, WHOLE: tl.constexpr,
    STOCHASTIC_A: tl.constexpr, STOCHASTIC_B: tl.constexpr, RADEMACHER: tl.constexpr, TABLES: tl.constexpr,
):  # fmt: skip
    """One chunk: the operations a (if FIRST) and b (if SECOND), each d, seed, turn, h and s of `sweep.Operation`.

    table: [rows, 4] int64, see `sweep._Table`. tables, lanes: of `noise`. DTYPE is the weights' format, KEPT that of the copy
    they are read from if KEEP; a changes the copy then, and b only what is written beside it.
    """
    entry = table + tl.program_id(0).to(tl.int64) * 4
    target = tl.load(entry).to(tl.pointer_type(DTYPE))
    chunk = tl.load(entry + 1)
    bounds = tl.load(entry + 2)
    source = target
    if KEEP:
        source = tl.load(entry + 3).to(tl.pointer_type(KEPT))
    if ALIGNED:
        target = tl.multiple_of(target, 16)
        source = tl.multiple_of(source, 16)
    begin = (bounds & 0xFFFF).to(tl.int32)
    end = (bounds >> 16).to(tl.int32)
    lane = tl.arange(0, LANES)
    counter = chunk * LANES
    # Lane numbers come from memory, because a load fixes the layout of what is computed from it: the one in which the
    # weights are read. From `tl.arange` alone, weights would be exchanged between threads through shared memory.
    low = (counter & 0xFFFFFFFF).to(tl.uint32) + tl.load(lanes + lane).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    a0, a1, a2, a3 = low, low, low, low
    b0, b1, b2, b3 = low, low, low, low
    e0, e1, e2, e3 = low, low, low, low
    f0, f1, f2, f3 = low, low, low, low
    a_c = 0.0
    b_c = 0.0
    if FIRST:
        a_c = _coefficient(a_h, a_s, a_d, GAIN_A)
        a0, a1, a2, a3 = _philox(low, high, tl.zeros_like(low), a_low, a_high)
        if STOCHASTIC_A:
            e0, e1, e2, e3 = _philox(low, high, tl.zeros_like(low) + ROUNDING + a_turn, a_low, a_high)
    if SECOND:
        b_c = _coefficient(b_h, b_s, b_d, GAIN_B)
        b0, b1, b2, b3 = _philox(low, high, tl.zeros_like(low), b_low, b_high)
        if STOCHASTIC_B:
            f0, f1, f2, f3 = _philox(low, high, tl.zeros_like(low) + ROUNDING + b_turn, b_low, b_high)
    for part in tl.static_range(4):
        near = part * LANES + lane
        far = near + 4 * LANES
        x = _load(source, near, begin, end, WHOLE).to(tl.float32)
        y = _load(source, far, begin, end, WHOLE).to(tl.float32)
        if FIRST:
            u, v = _pair(_word(a0, a1, a2, a3, part), tables, RADEMACHER, TABLES)
            bits = _word(e0, e1, e2, e3, part)
            x = _rounded(x + a_c * u, bits >> 16, KEPT, STOCHASTIC_A)
            y = _rounded(y + a_c * v, bits & 0xFFFF, KEPT, STOCHASTIC_A)
            if KEEP:
                _store(source, near, x.to(KEPT), begin, end, WHOLE)
                _store(source, far, y.to(KEPT), begin, end, WHOLE)
        if SECOND:
            u, v = _pair(_word(b0, b1, b2, b3, part), tables, RADEMACHER, TABLES)
            bits = _word(f0, f1, f2, f3, part)
            x = _rounded(x + b_c * u, bits >> 16, DTYPE, STOCHASTIC_B)
            y = _rounded(y + b_c * v, bits & 0xFFFF, DTYPE, STOCHASTIC_B)
        _store(target, near, x.to(DTYPE), begin, end, WHOLE)
        _store(target, far, y.to(DTYPE), begin, end, WHOLE)


@triton.jit
def _directions(keys, out, tables, lanes, first, chunks, RADEMACHER: tl.constexpr, TABLES: tl.constexpr):
    """One chunk of the direction of one seed."""
    key = tl.load(keys + tl.program_id(1))
    chunk = tl.program_id(0)
    lane = tl.arange(0, LANES)
    counter = (first + chunk).to(tl.int64) * LANES
    low = (counter & 0xFFFFFFFF).to(tl.uint32) + tl.load(lanes + lane).to(tl.uint32)
    high = (counter >> 32).to(tl.uint32)
    key_low, key_high = (key & 0xFFFFFFFF).to(tl.uint32), ((key >> 32) & 0xFFFFFFFF).to(tl.uint32)
    a, b, c, d = _philox(low, high, tl.zeros_like(low), key_low, key_high)
    target = out + (tl.program_id(1).to(tl.int64) * chunks + chunk) * (8 * LANES)
    for part in tl.static_range(4):
        u, v = _pair(_word(a, b, c, d, part), tables, RADEMACHER, TABLES)
        tl.store(target + part * LANES + lane, u)
        tl.store(target + (part + 4) * LANES + lane, v)


def directions(seeds: Tensor, first: int, chunks: int, distribution: noise.Distribution) -> Tensor:
    """`noise.directions` as one kernel, with the same bits."""
    out = torch.empty(len(seeds), chunks * noise.CHUNK, device=seeds.device)
    _directions[(chunks, len(seeds))](
        seeds, out, noise.tables(seeds.device), noise.lanes(seeds.device), first, chunks,
        RADEMACHER=distribution == "rademacher", TABLES=True,
    )  # fmt: skip
    return out


def sweep(rows: int, *arguments: Any, **options: Any) -> None:
    """Launch the kernel on ``rows`` chunks. Products and sums stay apart, as in the reference: no fused multiply-add."""
    _sweep[(rows,)](*arguments, **options, num_warps=4, enable_fp_fusion=False)


TYPES = {"torch.float32": tl.float32, "torch.float16": tl.float16, "torch.bfloat16": tl.bfloat16}
