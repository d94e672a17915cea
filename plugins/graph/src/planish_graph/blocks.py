"""The block partition of Accel-GCN (Xie et al., ICCAD 2023): rows sorted by degree, blocks of equal-degree rows, one
16-byte record each. Kept as published, for comparison; `planish_graph.partition` is what kernels here use.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph import check

WARPS = 12
WARP_ENTRIES = 32
BLOCK_ENTRIES = WARPS * WARP_ENTRIES
FACTORS = (1, 2, 3, 4, 6, 12)
"""Warp tasks that a row of degree 1 to 191 may be split into."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """A block partition.

    Attributes:
        order: [N] int64, rows by rising degree, ties in row order: sorted row i is ``order[i]``.
        metadata: [B, 4] int32, a record a block: degree, first sorted row, first entry, info. Up to degree 384 info is
            ``(entries a warp task << 16) | rows in the block``, above it the number of entries in the block.
    """

    order: Tensor
    metadata: Tensor


def blocks(degrees: Tensor) -> Blocks:
    """Partition rows with ``degrees`` [N] entries. Rows without entries get no block.

    Raises:
        DataError: negative degrees, or more entries than the format's 32-bit offsets can say.
    """
    degrees = degrees.to(torch.int64)
    if degrees.numel() and int(degrees.min()) < 0:
        raise DataError(f"degrees: {int(degrees.min())}; valid: 0 or more")
    if int(degrees.sum()) > check.INT32_MAX:
        raise DataError(
            f"blocks: {int(degrees.sum())} entries; valid: at most {check.INT32_MAX}, the format is 32-bit"
        )
    order = torch.argsort(degrees, stable=True)
    falling = degrees[order]
    entry = falling.cumsum(0) - falling
    empty = int((falling == 0).sum())
    degree, count = torch.unique_consecutive(falling[empty:], return_counts=True)
    warp_entries, rows = _tables(degree)
    long = degree > BLOCK_ENTRIES
    pieces = -(-degree // BLOCK_ENTRIES)
    of_class = torch.where(long, count * pieces, -(-count // rows))

    kind = torch.repeat_interleave(of_class)
    within = torch.arange(len(kind), device=degrees.device) - (of_class.cumsum(0) - of_class)[kind]
    end = empty + count.cumsum(0)
    first = (end - count)[kind] + torch.where(long[kind], within // pieces[kind], within * rows[kind])
    skipped = torch.where(long[kind], within % pieces[kind], 0) * BLOCK_ENTRIES
    packed = (warp_entries[kind] << 16) | torch.minimum(rows[kind], end[kind] - first)
    info = torch.where(long[kind], (degree[kind] - skipped).clamp_max(BLOCK_ENTRIES), packed)
    record = torch.stack([degree[kind], first, entry[first] + skipped, info], dim=1)
    return Blocks(order, record.to(torch.int32))


def _tables(degree: Tensor) -> tuple[Tensor, Tensor]:
    """Entries a warp task and rows a block for every degree; both are those of one row a block from 192 on."""
    warp_entries = torch.full_like(degree, WARP_ENTRIES)
    rows = torch.ones_like(degree)
    for factor in reversed(FACTORS):
        small = (degree < BLOCK_ENTRIES // 2) & (degree <= WARP_ENTRIES * factor)
        warp_entries = torch.where(small, -(-degree // factor), warp_entries)
        rows = torch.where(small, WARPS // factor, rows)
    return warp_entries, rows
