"""Which weights go: masks from scores. Of equal scores the one in the lower column is pruned first."""

from __future__ import annotations

import torch
from torch import Tensor

from planish_ace.pattern import NM

SMALL_GROUP = (
    8  # up to here ranks by pairwise comparison beat a selection: the groups are far too many to sort
)


def lowest_per_row(scores: Tensor, sparsity: float) -> Tensor:
    """Mask [d_out, d_in], True on exactly int(d_in * sparsity) lowest scores of every row."""
    return lowest(scores, int(scores.shape[-1] * sparsity))


def lowest_per_group(scores: Tensor, pattern: NM) -> Tensor:
    """Mask [d_out, d_in], True on the m - n lowest scores of every m consecutive columns of a row.

    If m does not divide d_in, the last group holds r < m columns and loses r (m - n) // m.
    """
    rows, columns = scores.shape
    full = columns - columns % pattern.m
    groups = scores[:, :full].reshape(rows, -1, pattern.m)
    mask = (lowest_small if pattern.m <= SMALL_GROUP else lowest)(groups, pattern.pruned).reshape(rows, full)
    if full == columns:
        return mask
    tail = scores[:, full:]
    return torch.cat([mask, lowest(tail, tail.shape[1] * pattern.pruned // pattern.m)], dim=1)


def lowest(scores: Tensor, count: int) -> Tensor:
    """True on the ``count`` lowest scores along the last dimension, 0 <= count <= its size. Scores hold no NaN.

    A threshold and a count of its ties give the mask of a stable sort without moving any index.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count, dim=-1, keepdim=True).values
    below, tied = scores < threshold, scores == threshold
    room = count - below.sum(-1, keepdim=True, dtype=torch.int32)
    return below | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))


def lowest_small(groups: Tensor, count: int) -> Tensor:
    """``lowest`` for a short last dimension: a score's rank is the number of scores that go before it."""
    columns = groups.unbind(-1)
    masks = []
    for i, here in enumerate(columns):
        rank = torch.zeros_like(here, dtype=torch.uint8)
        for j, other in enumerate(columns):
            if j != i:
                rank += other <= here if j < i else other < here
        masks.append(rank < count)
    return torch.stack(masks, dim=-1)
