"""Permanent stuck-at faults: which physical cells of a chip are stuck, and at which resistance.

Every cell's fate is a function of (seed, layer, array, copy, position): a counter-based generator in 32-bit integer
arithmetic, so that any device computes the same map, any part of it can be drawn alone, and another copy of a cell is
another physical cell with its own draw. A map is int8: 0 healthy, 1 stuck at high resistance (reads as level 0), 2 stuck
at low resistance (reads as the top level).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from planish_reram.specs import PRESETS, FaultRates, preset

__all__ = ["HEALTHY", "HRS", "LRS", "PRESETS", "FaultRates", "draw", "preset", "stick", "where_healthy"]

HEALTHY, HRS, LRS = 0, 1, 2


def draw(
    shape: tuple[int, int, int],
    rates: FaultRates,
    seeds: Sequence[int],
    layer: int | str,
    array: int = 0,
    copy: int = 0,
    *,
    tile: tuple[int, int] = (128, 128),
    slices: int | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Fault maps int8 [chips, S, out, in], one a seed; the same on every device.

    Args:
        shape: (S, out, in): slices, output neurons (bit lines), inputs (word lines).
        rates: what is drawn.
        seeds: one a chip.
        layer: which layer of the network, by number or name.
        array, copy: which array of the mapping, and which physical copy of the cells.
        tile: (word lines, bit lines) of a crossbar; decides which cells share a line in ``p_row`` and ``p_col``.
        slices: cells a weight that sit side by side in a word line, where it is not S (copies hold some slices only).
    """
    S, out, inputs = shape
    where = f"{layer}/{array}/{copy}"
    maps = torch.empty(len(seeds), S, out, inputs, dtype=torch.int8, device=device)
    if rates.p_hrs + rates.p_lrs == 0:
        maps.zero_()
    else:
        flat = maps.view(len(seeds), -1)
        high, stuck = _last(rates.p_hrs), _last(rates.p_hrs + rates.p_lrs)
        # With a, b = 0 up to the last value that is stuck high, or stuck at all, and 1 beyond it: 1 + a - 2 b is 1, 2 or 0.
        constant = _wrapped(1 - high + 2 * stuck)
        for start, x, state in _words([f"{seed}/{where}/cell" for seed in seeds], flat.shape[1], device):
            torch.clamp(x, *_step(high), out=state)
            state.add_(x.clamp_(*_step(stuck)), alpha=-2).add_(constant)
            flat[:, start : start + x.shape[1]].copy_(state)
    if rates.p_row > 0 or rates.p_col > 0:
        _open_lines(maps, rates, seeds, where, (tile[0], max(1, tile[1] // (slices or S))))
    return maps


def stick(cells: Tensor, faults: Tensor, top: int, *, in_place: bool = False) -> Tensor:
    """Levels with the faulty ones overwritten: a stuck cell ignores what was programmed. Shapes broadcast.

    ``in_place`` may use the memory of ``cells``, which then have the shape of ``faults``.
    """
    if cells.dtype == torch.uint8:
        # Byte arithmetic, because a CPU compares bytes one by one. The mask is 255 where healthy, 0 or 1 where stuck.
        state = faults.view(torch.uint8)
        scratch = state - 1
        levels = cells.bitwise_and_(scratch) if in_place else cells & scratch
        return levels.bitwise_or_(torch.bitwise_right_shift(state, 1, out=scratch).mul_(top))
    return torch.where(faults == HRS, torch.zeros_like(cells), torch.where(faults == LRS, float(top), cells))


def where_healthy(levels: Tensor, faults: Tensor, otherwise: Tensor) -> Tensor:
    """``levels`` of cells that are not stuck, ``otherwise`` those of the others."""
    if levels.dtype != torch.uint8:
        return torch.where(faults == HEALTHY, levels, otherwise)
    mask = (faults - 1).bitwise_right_shift_(7).view(torch.uint8)  # 255 where healthy; see `stick`
    return (levels ^ otherwise).bitwise_and_(mask).bitwise_xor_(otherwise)


def _open_lines(
    maps: Tensor, rates: FaultRates, seeds: Sequence[int], where: str, tile: tuple[int, int]
) -> None:
    """Mark the cells of open lines in ``maps`` [chips, S, out, in]; a tile holds (word lines, output neurons)."""
    _, S, out, inputs = maps.shape
    word_lines, neurons = tile
    rows = _lines(seeds, f"{where}/row", (-(-out // neurons), inputs), rates.p_row, maps.device)
    columns = _lines(seeds, f"{where}/column", (S, out, -(-inputs // word_lines)), rates.p_col, maps.device)
    if rates.p_row > 0:
        for t in range(rows.shape[1]):
            maps[:, :, t * neurons : (t + 1) * neurons].masked_fill_(rows[:, t, None, None], HRS)
    if rates.p_col > 0:
        for t in range(columns.shape[-1]):
            maps[..., t * word_lines : (t + 1) * word_lines].masked_fill_(columns[..., t, None], HRS)


def _lines(
    seeds: Sequence[int], where: str, shape: tuple[int, ...], rate: float, device: torch.device | str
) -> Tensor:
    """Which lines are open, bool [chips, *shape]."""
    count = math.prod(shape)
    found = torch.zeros(len(seeds), count, dtype=torch.bool, device=device)
    if (last := _last(rate)) >= -(2**31):  # below that no int32 counts
        for start, x, _ in _words([f"{seed}/{where}" for seed in seeds], count, device):
            found[:, start : start + x.shape[1]] = x <= last
    return found.view(len(seeds), *shape)


def _last(probability: float) -> int:
    """The last value that counts, so that an int32 drawn evenly counts with that probability; -2^31 - 1 where none does."""
    return round(probability * 2**32) - 2**31 - 1


def _step(last: int) -> tuple[int, int]:
    """Bounds between which an int32 is clamped to ``last`` where it counts and ``last + 1`` (modulo 2^32) where not.

    Clamping is ten times faster than comparing on a CPU, which compares int32 one by one.
    """
    return max(last, -(2**31)), min(last + 1, 2**31 - 1)


def _wrapped(value: int) -> int:
    """``value`` modulo 2^32, as an int32."""
    return (value + 2**31) % 2**32 - 2**31


def _words(
    streams: Sequence[str], count: int, device: torch.device | str
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (start, int32 [streams, n], scratch of that shape) until ``count`` words of each stream are out.

    The memory is used again for the next ones.

    Word i of a stream is a permutation of 32 bits applied to i: two multiply-and-shift rounds (the constants are those
    of Wellons' lowbias32) with 64 bits of key from the stream's name mixed in.
    """
    keys = [hashlib.sha256(stream.encode()).digest() for stream in streams]
    first, second = (
        torch.tensor(
            [[int.from_bytes(key[i : i + 4], "little", signed=True)] for key in keys], dtype=torch.int32
        ).to(device, non_blocking=True)
        for i in (0, 4)
    )
    # On a CPU the working set stays in the second-level cache: six times faster than in one sweep.
    room = 1 << 17 if torch.device(device).type == "cpu" else 1 << 27
    chunk = 1 << max(0, (room // len(keys)).bit_length() - 1)
    counter = torch.arange(min(count, chunk), dtype=torch.int32, device=device)
    x = torch.empty(len(keys), len(counter), dtype=torch.int32, device=device)
    shifted = torch.empty_like(x)
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        y, t = x[:, :n], shifted[:, :n]
        # start + counter is start ^ counter, because chunks are powers of two.
        torch.bitwise_xor(counter[:n], first ^ start, out=y)
        _fold(y, t, 16)
        torch.add(second, y, alpha=0x7FEB352D, out=y)
        _fold(y, t, 15).mul_(_wrapped(0x846CA68B))
        _fold(y, t, 16)
        yield start, y, t


def _fold(x: Tensor, scratch: Tensor, shift: int) -> Tensor:
    """x ^= x >> shift, logically: torch shifts int32 arithmetically."""
    torch.bitwise_right_shift(x, shift, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))
