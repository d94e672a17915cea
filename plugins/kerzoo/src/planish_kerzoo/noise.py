"""Counter-based noise: every number is a function of (seed, flat offset), so it does not depend on block size, tensor
order or device count.

Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter and a key into
four words. How words become the elements of a flat vector is our choice, made so that a kernel reads and writes
contiguous runs: a chunk of 4,096 elements is 8 parts of 512 lanes; lane l of chunk q has the counter 512 q + l, and its
eight 16-bit halves serve the eight parts. Part p < 4 takes the high half of word p, part p + 4 its low half.

A Gaussian pair is Box-Muller on one word: 16 bits of radius for the cosine in part p and the sine in part p + 4. Both
factors come from tables of 65,536 values that are computed in float64, so this stream is the same, bit for bit, on
every device; kernels may compute the same values with hardware instructions instead.
"""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

Distribution = Literal["gaussian", "rademacher"]

LANES = 512
PARTS = 8
CHUNK = LANES * PARTS
"""Elements that share one row of counters; parameters start at multiples of it."""

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

DIRECTIONS, ROUNDING, PLANS, RADII = 0, 1, 1 << 16, 1 << 17
"""Streams: third counter word of directions; the first one for rounding bits; of seeds; of radii per tensor."""


def philox(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    """Four 32-bit words for one counter of four 32-bit words and one 64-bit key, in plain integers."""
    a, b, c, d = counter
    low, high = key & MASK, key >> 32
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (second >> 32) ^ b ^ low, second & MASK, (first >> 32) ^ d ^ high, first & MASK
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return a, b, c, d


def uniform(high: int, low: int) -> float:
    """A float in [0, 1) with 53 random bits, of two 32-bit words."""
    return ((high >> 5) * 67108864 + (low >> 6)) / 9007199254740992


def words(seeds: Tensor, first: int, chunks: int, stream: int) -> list[Tensor]:
    """Four tensors [R, chunks * 512] of 32-bit words in int64, for seeds [R] (int64, bits of a 64-bit key)."""
    counter = torch.arange(first * LANES, (first + chunks) * LANES, device=seeds.device).expand(
        len(seeds), -1
    )
    low, high = (seeds & MASK)[:, None], ((seeds >> 32) & MASK)[:, None]
    a, b = counter & MASK, counter >> 32
    c = torch.full_like(a, stream)
    d = torch.zeros_like(a)
    for _ in range(ROUNDS):
        # The 64-bit product wraps in int64 with the right bits; masking undoes the sign of the shift.
        first_product, second_product = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a = (second_product >> 32).bitwise_and_(MASK).bitwise_xor_(b).bitwise_xor_(low)
        c = (first_product >> 32).bitwise_and_(MASK).bitwise_xor_(d).bitwise_xor_(high)
        b, d = second_product.bitwise_and_(MASK), first_product.bitwise_and_(MASK)
        low, high = (low + WEYL[0]) & MASK, (high + WEYL[1]) & MASK
    return [a, b, c, d]


@functools.cache
def tables(device: torch.device) -> Tensor:
    """[3, 65536] float32: sqrt(-2 ln((k + 1/2) / 65536)), cos(2 pi k / 65536) and sin(2 pi k / 65536)."""
    k = torch.arange(65536, dtype=torch.float64)
    angle = k * (2 * torch.pi / 65536)
    radius = (-2 * ((k + 0.5) / 65536).log()).sqrt()
    return torch.stack([radius, angle.cos(), angle.sin()]).float().to(device)


@functools.cache
def lanes(device: torch.device) -> Tensor:
    """[512] int32: 0, 1, 2, ..."""
    return torch.arange(LANES, dtype=torch.int32, device=device)


def directions(seeds: Tensor, first: int, chunks: int, distribution: Distribution) -> Tensor:
    """The elements of chunks ``first`` to ``first + chunks`` of the direction of each seed: float32 [R, chunks * 4096].

    gaussian: mean 0; variance 1 - 5e-6, because a radius has 16 bits; no value beyond 4.86.
    """
    shape = (len(seeds), chunks, LANES)
    result = torch.empty(len(seeds), chunks, PARTS, LANES, device=seeds.device)
    for part, word in enumerate(words(seeds, first, chunks, DIRECTIONS)):
        upper, lower = word >> 16, word & 0xFFFF
        if distribution == "rademacher":
            result[:, :, part] = ((upper >> 15) * 2 - 1).view(shape)
            result[:, :, part + 4] = ((lower >> 15) * 2 - 1).view(shape)
        else:
            radius, cosine, sine = tables(seeds.device)
            length = radius[upper]
            result[:, :, part] = (length * cosine[lower]).view(shape)
            result[:, :, part + 4] = (length * sine[lower]).view(shape)
    return result.view(len(seeds), chunks * CHUNK)


def rounding_bits(seed: Tensor, first: int, chunks: int, turn: int) -> Tensor:
    """16 random bits an element, int64 [chunks * 4096], for seed [1]; ``turn`` numbers the roundings of one step."""
    result = torch.empty(chunks, PARTS, LANES, dtype=torch.int64, device=seed.device)
    for part, word in enumerate(words(seed, first, chunks, ROUNDING + turn)):
        result[:, part] = (word >> 16).view(chunks, LANES)
        result[:, part + 4] = (word & 0xFFFF).view(chunks, LANES)
    return result.view(chunks * CHUNK)


def as_int64(seed: int) -> int:
    """The signed integer with the bits of a 64-bit seed, as tensors hold it."""
    return seed - (1 << 64) if seed >> 63 else seed


def halves(seed: int) -> tuple[int, int]:
    """A 64-bit seed as two signed 32-bit integers, low and high: one type for the launcher of a kernel, whatever the value."""
    low, high = seed & MASK, seed >> 32
    return low - (1 << 32) if low >> 31 else low, high - (1 << 32) if high >> 31 else high
