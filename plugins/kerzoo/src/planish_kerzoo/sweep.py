"""One sweep: every trainable element is read once, up to two operations are applied, and it is written once.

An operation adds c u to the weights and rounds to their number format. Two operations in one sweep round twice, so that
they give the bits of two sweeps: merging restore, update and the next perturbation changes speed, not results.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from planish_kerzoo import noise
from planish_kerzoo.layout import Segment
from planish_kerzoo.noise import CHUNK, Distribution

if TYPE_CHECKING:
    from types import ModuleType

Directions = Callable[[int, int, torch.device], Tensor]
"""(seed, block, device) -> the direction's elements in that block of the flat vector, float32."""

BLOCK = 256
"""Chunks of the flat vector that the torch path works on at once: 4 MB in float32."""
CACHED = 2048
"""Chunks of noise that the torch path keeps, since a step uses each direction up to three times: 32 MB."""


@dataclass(frozen=True, slots=True)
class Operation:
    """theta += (h + s d) u(seed), rounded to the weights' format; h alone where d is not finite.

    Attributes:
        turn: its number among the roundings of this seed.
        h, s: a value a slot: the parameter group, or the parameter where radii differ by tensor.
        d: float32 on the device, [1] or one a slot; None where s is not used.
        keeps: whether the change stays: an update. Where a second copy of the weights is kept, it changes that.
    """

    seed: int
    turn: int
    h: Sequence[float]
    s: Sequence[float] | None = None
    d: Tensor | None = None
    keeps: bool = False

    def difference(self, slot: int, device: torch.device) -> Tensor | None:
        """d of a slot, [1] on ``device``."""
        if self.d is None:
            return None
        return (self.d if len(self.d) == 1 else self.d[slot : slot + 1]).to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Work:
    """A segment with its second copy, if one is kept, and whether bfloat16 is rounded by chance."""

    segment: Segment
    slot: int
    copy: Tensor | None
    stochastic: bool


class Sweeper:
    """Applies operations to segments: in Triton on CUDA, in plain torch elsewhere, with the same directions.

    exact_noise: normals from tables on CUDA too, bit for bit those of every other device.
    """

    def __init__(self, works: Sequence[Work], distribution: Distribution, exact_noise: bool = False) -> None:
        self.works = works
        self.distribution = distribution
        self.exact_noise = exact_noise
        self.count = 0
        self._chunks = max(-(-(w.segment.start + len(w.segment.local())) // CHUNK) for w in works)
        self._recent: OrderedDict[tuple[int, int, torch.device], Tensor] = OrderedDict()
        self._addresses: list[int] = []

    def __call__(self, first: Operation | None, second: Operation | None) -> None:
        """Both operations, ``first`` before ``second``."""
        self.count += 1
        addresses = [work.segment.address() for work in self.works]
        if addresses != self._addresses:
            # The first sweep, or the model was moved, or a parameter got new memory.
            self._addresses = addresses
            self._plain = [work for work in self.works if not _has_kernel(work)]
            self._tables = make_tables([work for work in self.works if _has_kernel(work)])
        for table in self._tables:
            table.launch(first, second, self.distribution, self.exact_noise)
        for work in self._plain:
            reference(work, first, second, self.directions)

    def directions(self, seed: int, block: int, device: torch.device) -> Tensor:
        """Made whole even where a segment needs a part: small parameters then share one block."""
        key = (seed, block, device)
        if key not in self._recent:
            chunks = min(BLOCK, self._chunks - block * BLOCK)
            self._recent[key] = noise.directions(
                _key(seed, device), block * BLOCK, chunks, self.distribution
            )[0]
            while len(self._recent) > max(1, CACHED // BLOCK):
                self._recent.popitem(last=False)
        return self._recent[key]


def reference(work: Work, first: Operation | None, second: Operation | None, directions: Directions) -> None:
    """The sweep over one segment in plain torch, block by block."""
    weights = work.segment.local()
    source = weights if work.copy is None else work.copy
    dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
    for part in parts(work.segment):
        x = source[part.inside].to(dtype)
        for operation in (first, second):
            if operation is None:
                continue
            u = directions(operation.seed, part.block, weights.device)[part.outside]
            held = work.copy if operation.keeps and work.copy is not None else weights
            x = x + coefficient(operation, work.slot, weights.device) * u
            if work.stochastic and held.dtype == torch.bfloat16 and (operation.keeps or work.copy is None):
                chunk, chunks, before = part.chunks
                bits = noise.rounding_bits(
                    _key(operation.seed, weights.device), chunk, chunks, operation.turn
                )
                x = round_stochastically(x, bits[before : before + len(x)])
            else:
                x = x.to(held.dtype).to(dtype)
            if operation.keeps and work.copy is not None:
                work.copy[part.inside] = x.to(work.copy.dtype)
        weights[part.inside] = x.to(weights.dtype)


@dataclass(frozen=True, slots=True)
class Part:
    """The elements of a segment in one block: where they are in the segment (inside) and in the block (outside).

    chunks: the first chunk that holds some of them, how many do, and the elements of the first one before them."""

    block: int
    inside: slice
    outside: slice
    chunks: tuple[int, int, int]


def parts(segment: Segment) -> Iterator[Part]:
    """The blocks of the flat vector that a segment reaches into."""
    start, size = segment.start, len(segment.local())
    for block in range(start // (BLOCK * CHUNK), -(-(start + size) // (BLOCK * CHUNK))):
        origin = block * BLOCK * CHUNK
        begin, end = max(start, origin), min(start + size, origin + BLOCK * CHUNK)
        first = begin // CHUNK
        chunks = (first, -(-end // CHUNK) - first, begin - first * CHUNK)
        yield Part(block, slice(begin - start, end - start), slice(begin - origin, end - origin), chunks)


def coefficient(operation: Operation, slot: int, device: torch.device) -> Tensor:
    """h + s d as a float32 scalar on the device, computed there; h alone where s d is not finite."""
    h = torch.full((), operation.h[slot], device=device)
    d = operation.difference(slot, device)
    if d is None or operation.s is None:
        return h
    step = torch.full((), operation.s[slot], device=device) * d[0]
    return torch.where(step.isfinite(), h + step, h)


def round_stochastically(x: Tensor, bits: Tensor) -> Tensor:
    """float32 x cut to bfloat16's precision after adding 16 random bits below it: up with the probability of the rest."""
    raw = (x.view(torch.int32).long() + bits).bitwise_and_(0xFFFF0000)
    raw = torch.where(raw >> 31 > 0, raw - (1 << 32), raw)
    return torch.where(x == x, raw.int().view(torch.float32), x)


def _key(seed: int, device: torch.device) -> Tensor:
    return torch.full((1,), noise.as_int64(seed), dtype=torch.int64, device=device)


def _has_kernel(work: Work) -> bool:
    parameter = work.segment.parameter
    return parameter.is_cuda and parameter.dtype != torch.float64 and triton_kernels() is not None


@functools.cache
def triton_kernels() -> ModuleType | None:
    """The kernels, or None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from planish_kerzoo import kernels

    return kernels


@dataclass(frozen=True, slots=True)
class _Table:
    """Chunks of segments of one slot, device and format. ``rows`` [R, 4] int64 holds the address where the chunk would start,
    its number, the first and last element of it that exist, and the address in the second copy. whole: all elements exist."""

    rows: Tensor
    like: Work
    whole: bool
    aligned: bool

    def launch(
        self, first: Operation | None, second: Operation | None, distribution: Distribution, exact: bool
    ) -> None:
        kernels = triton_kernels()
        assert kernels is not None
        weights, copy, slot = self.like.segment.local(), self.like.copy, self.like.slot
        if copy is not None and first is not None and not first.keeps:
            first, second = None, first  # a probe is written beside the second copy, not into it
        a, b = (_arguments(operation, slot, self.rows) for operation in (first, second))
        held = weights if copy is None else copy
        by_chance = self.like.stochastic and held.dtype == torch.bfloat16
        with torch.cuda.device(weights.device) if weights.is_cuda else contextlib.nullcontext():
            kernels.sweep(
                len(self.rows), self.rows, noise.tables(weights.device), noise.lanes(weights.device), *a, *b,
                DTYPE=kernels.TYPES[str(weights.dtype)], KEPT=kernels.TYPES[str(held.dtype)],
                FIRST=first is not None, SECOND=second is not None,
                GAIN_A=first is not None and first.d is not None, GAIN_B=second is not None and second.d is not None,
                KEEP=copy is not None, ALIGNED=self.aligned, WHOLE=self.whole,
                STOCHASTIC_A=by_chance, STOCHASTIC_B=by_chance and copy is None,
                RADEMACHER=distribution == "rademacher", TABLES=exact,
            )  # fmt: skip


def _arguments(
    operation: Operation | None, slot: int, nothing: Tensor
) -> tuple[Tensor, int, int, int, float, float]:
    """d, the two halves of the seed, turn, h and s; ``nothing`` stands for a d that is not read."""
    if operation is None:
        return nothing, 0, 0, 0, 0.0, 0.0
    d = operation.difference(slot, nothing.device)
    s = 0.0 if operation.s is None else operation.s[slot]
    return nothing if d is None else d, *noise.halves(operation.seed), operation.turn, operation.h[slot], s


def make_tables(works: Sequence[Work]) -> list[_Table]:
    """The tables of each slot, device and number format among ``works``."""
    sorts: dict[tuple[int, torch.device, torch.dtype], list[Work]] = {}
    for work in works:
        local = work.segment.local()
        if len(local):
            sorts.setdefault((work.slot, local.device, local.dtype), []).append(work)
    return [table for group in sorts.values() for table in _tables(group)]


def _tables(works: Sequence[Work]) -> Iterator[_Table]:
    """One table of whole chunks, which need no masks, and one of the others."""
    parts = []
    for work in works:
        local, start = work.segment.local(), work.segment.start
        chunks = torch.arange(start // CHUNK, -(-(start + len(local)) // CHUNK))
        offsets = chunks * CHUNK - start
        bounds = (-offsets).clamp_min(0) | (len(local) - offsets).clamp_max(CHUNK) << 16
        addresses = local.data_ptr() + offsets * local.element_size()
        copies = torch.zeros_like(chunks)
        if work.copy is not None:
            copies = work.copy.data_ptr() + offsets * work.copy.element_size()
        parts.append(torch.stack([addresses, chunks, bounds, copies], 1))
    rows = torch.cat(parts)
    whole = rows[:, 2] == CHUNK << 16
    device = works[0].segment.local().device
    for chosen in (whole, ~whole):
        if chosen.any():
            aligned = bool((rows[chosen][:, (0, 3)] % 16 == 0).all())
            yield _Table(rows[chosen].to(device), works[0], bool(whole[chosen].all()), aligned)
