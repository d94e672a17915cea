"""The parts of a stacked Llama between its matrix products, each as one Triton kernel: a comparison's small models would
otherwise spend their time on reading and writing what the next operation reads again. `planish_kerzoo.stacked` holds the same
in plain torch.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16
"""Tokens that a program of `norm` works on."""


@triton.jit
def _norm(
    x, weight, y, tokens, stride, epsilon,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    run = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (row[:, None] < tokens) & (column[None] < WIDTH)
    at = (run.to(tl.int64) * tokens + row[:, None]) * WIDTH + column[None]
    values = tl.load(x + at, mask=mask, other=0.0)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + epsilon)
    gain = tl.load(weight + run.to(tl.int64) * stride + column, mask=column < WIDTH, other=0.0)
    tl.store(y + at, values * scale[:, None] * gain[None], mask=mask)


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Root-mean-square normalisation of x [R, N, C] with a weight a run [R, 1, C], which may be strided by run."""
    runs, tokens, width = x.shape
    y = torch.empty_like(x)
    grid = (triton.cdiv(tokens, ROWS), runs)
    columns = triton.next_power_of_2(width)
    _norm[grid](x, weight, y, tokens, weight.stride(0), epsilon, WIDTH=width, COLUMNS=columns, ROWS=ROWS)
    return y


@triton.jit
def _rotated(x, position, cosine, sine, mask, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head with the rotary embedding: x cos + turned(x) sin."""
    lane = tl.arange(0, LANES)
    partner = tl.where(lane < WIDTH // 2, lane + WIDTH // 2, lane - WIDTH // 2)
    sign = tl.where(lane < WIDTH // 2, -1.0, 1.0)
    angle = position[:, None] * WIDTH + lane[None]
    straight = tl.load(x + lane[None], mask=mask, other=0.0)
    turned = tl.load(x + partner[None], mask=mask, other=0.0) * sign[None]
    return straight * tl.load(cosine + angle, mask=mask, other=0.0) + turned * tl.load(
        sine + angle, mask=mask, other=0.0
    )


@triton.jit
def _attend(
    query, key, value, cosine, sine, out, length, scale,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, WIDTH: tl.constexpr, LANES: tl.constexpr, LENGTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One head of one prompt: the whole causal attention in registers."""
    head = tl.program_id(0)
    prompt = tl.program_id(1).to(tl.int64)
    group = head // (HEADS // GROUPS)
    position = tl.arange(0, LENGTH)
    lane = tl.arange(0, LANES)
    mask = (position[:, None] < length) & (lane[None] < WIDTH)
    token = prompt * length + position[:, None]
    own = token * (HEADS * WIDTH) + head * WIDTH
    shared = token * (GROUPS * WIDTH) + group * WIDTH
    q = _rotated(query + own, position, cosine, sine, mask, LANES, WIDTH)
    k = _rotated(key + shared, position, cosine, sine, mask, LANES, WIDTH)
    v = tl.load(value + shared + lane[None], mask=mask, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    scores = tl.where(position[None] <= position[:, None], scores, float("-inf"))
    scores = tl.exp(scores - tl.max(scores, 1)[:, None])
    scores = scores / tl.sum(scores, 1)[:, None]
    tl.store(out + own + lane[None], tl.dot(scores, v, input_precision=PRECISION), mask=mask)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rotation: tuple[Tensor, Tensor],
    length: int,
    heads: int,
    groups: int,
) -> Tensor:
    """Causal attention with rotary embedding of [R, B * T, heads * D] to [R, B * T, groups * D], T = ``length``.

    rotation: cosine and sine [T, D]. Products are rounded as torch's matrix products are set to be.
    """
    runs, tokens, whole = query.shape
    width = whole // heads
    out = torch.empty_like(query)
    exact = torch.get_float32_matmul_precision() == "highest"
    _attend[(heads, runs * tokens // length)](
        query, key, value, *rotation, out, length, width**-0.5,
        HEADS=heads, GROUPS=groups, WIDTH=width, LANES=max(16, triton.next_power_of_2(width)),
        LENGTH=max(16, triton.next_power_of_2(length)), PRECISION="ieee" if exact else "tf32",
    )  # fmt: skip
    return out


@triton.jit
def _gate(gate, up, size, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    x = tl.load(gate + at, mask=mask, other=0.0)
    y = tl.load(up + at, mask=mask, other=0.0)
    tl.store(gate + at, x * tl.sigmoid(x) * y, mask=mask)


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, written over ``gate``."""
    _gate[(triton.cdiv(gate.numel(), 1024),)](gate, up, gate.numel(), BLOCK=1024)
    return gate
