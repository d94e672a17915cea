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

__all__ = ["HEALTHY", "HRS", "LRS", "PRESETS", "FaultRates", "draw", "preset", "stick"]

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
        for start, x in _words([f"{seed}/{where}/cell" for seed in seeds], flat.shape[1], device):
            stuck = _below(x, rates.p_hrs + rates.p_lrs).view(torch.int8)
            high = _below(x, rates.p_hrs).view(torch.int8)
            torch.add(stuck, stuck ^ high, out=flat[:, start : start + x.shape[1]])  # HRS is 1, LRS 2
    if rates.p_row > 0 or rates.p_col > 0:
        _open_lines(maps, rates, seeds, where, (tile[0], max(1, tile[1] // (slices or S))))
    return maps


def stick(cells: Tensor, faults: Tensor, top: int) -> Tensor:
    """Levels with the faulty ones overwritten: a stuck cell ignores what was programmed. Shapes broadcast."""
    if cells.dtype == torch.uint8:
        state = faults.view(torch.uint8)
        flags = (state == HEALTHY).view(torch.uint8)
        levels = cells * flags
        return levels.add_(torch.bitwise_right_shift(state, 1, out=flags), alpha=top)
    return torch.where(faults == HRS, torch.zeros_like(cells), torch.where(faults == LRS, float(top), cells))


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
    if rate > 0:
        for start, x in _words([f"{seed}/{where}" for seed in seeds], count, device):
            found[:, start : start + x.shape[1]] = _below(x, rate)
    return found.view(len(seeds), *shape)


def _below(x: Tensor, probability: float) -> Tensor:
    """True with that probability, for x uniform over all int32."""
    limit = round(probability * 2**32) - 2**31 - 1  # the last value that counts; below int32 where none does
    return x.le(limit) if limit >= -(2**31) else torch.zeros_like(x, dtype=torch.bool)


def _words(streams: Sequence[str], count: int, device: torch.device | str) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, int32 [streams, n]) until ``count`` words of each stream are out; the memory is used again.

    Word i of a stream is a permutation of 32 bits applied to i: two multiply-and-shift rounds (the constants are those
    of Wellons' lowbias32) with 64 bits of key from the stream's name mixed in.
    """
    keys = [hashlib.sha256(stream.encode()).digest() for stream in streams]
    first, second = (
        torch.tensor(
            [int.from_bytes(key[i : i + 4], "little", signed=True) for key in keys],
            dtype=torch.int32,
            device=device,
        )[:, None]
        for i in (0, 4)
    )
    # On a CPU the working set stays in the second-level cache: six times faster than in one sweep.
    room = 1 << 18 if torch.device(device).type == "cpu" else 1 << 27
    chunk = min(count, max(1, room // len(keys)))
    counter = torch.arange(chunk, dtype=torch.int32, device=device)
    x = torch.empty(len(keys), chunk, dtype=torch.int32, device=device)
    shifted = torch.empty_like(x)
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        y, t = x[:, :n], shifted[:, :n]
        torch.add(counter[:n].expand_as(y), start, out=y).bitwise_xor_(first)
        _fold(y, t, 16).mul_(0x7FEB352D).add_(second)
        _fold(y, t, 15).mul_(0x846CA68B - 2**32)
        _fold(y, t, 16)
        yield start, y


def _fold(x: Tensor, scratch: Tensor, shift: int) -> Tensor:
    """x ^= x >> shift, logically: torch shifts int32 arithmetically."""
    torch.bitwise_right_shift(x, shift, out=scratch)
    return x.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))
