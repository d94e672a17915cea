"""Structured pruning: FFN channels and key-value head groups that are really cut out, so that the tensors shrink.

ACE scores single weights. What follows is ours, not the paper's: how scores are summed over a structure, how many
structures stay, and the optional refit of the projections that read them.

A channel's score is the sum of its column of the down projection; a group (one key-value head and all query heads that read it)
has the sum of its columns of the output projection. These are the weights that let the structure speak to the rest of the model.
Every block keeps the same number, so that one config describes them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_ace.select import lowest
from planish_sdk.surgery import Changes, attention_groups, ffn_channels, keep_channels, keep_heads


@dataclass(frozen=True)
class Plan:
    """Which outgoing projections of a block are cut, and to how many structures.

    down, channels, keep_channels: path of the down projection, its channels, those that stay; None when FFN is left alone.
    output, groups, keep_groups: the same of the attention's output projection and its key-value groups.
    """

    down: str | None = None
    channels: int = 0
    keep_channels: int = 0
    output: str | None = None
    groups: int = 0
    keep_groups: int = 0

    @classmethod
    def of(cls, block: nn.Module, ffn_share: float, head_share: float, multiple: int) -> Plan:
        """How far the shares of one block's channels and groups can be cut.

        Raises PlanishError if a share removes nothing, or the block is laid out in a way that cannot be cut.
        """
        down = output = None
        channels = groups = keep_channels = keep_groups = 0
        if ffn_share > 0:
            ffn = ffn_channels(block)
            down, channels, keep_channels = ffn.down, ffn.count, channels_kept(ffn.count, ffn_share, multiple)
        if head_share > 0:
            attention = attention_groups(block)
            output, groups = attention.output, attention.num_kv_heads
            keep_groups = groups_kept(groups, head_share)
        return cls(down, channels, keep_channels, output, groups, keep_groups)

    @property
    def paths(self) -> tuple[str, ...]:
        """The outgoing projections."""
        return tuple(path for path in (self.down, self.output) if path is not None)

    def columns(self, path: str, kept: Kept, d_in: int) -> Tensor:
        """Mask [d_in] of the input columns of ``path`` that stay."""
        index = kept.channels if path == self.down else kept.groups
        count = self.channels if path == self.down else self.groups
        stays = torch.zeros(count, dtype=torch.bool)
        stays[index] = True
        return stays.repeat_interleave(d_in // count)


@dataclass(frozen=True)
class Kept:
    """Numbers of the channels and groups of one block that stay, ascending; empty where nothing is cut."""

    channels: list[int]
    groups: list[int]


def channels_kept(count: int, share: float, multiple: int) -> int:
    """Of ``count`` channels, those that stay when ``share`` goes: the nearest multiple, at least one of them.

    Raises PlanishError if none would go.
    """
    kept = max(1, round(count * (1 - share) / multiple)) * multiple
    if kept >= count:
        raise PlanishError(
            f"ffn_sparsity = {share}: keeps {kept} of {count} channels with multiple = {multiple}, so none goes"
        )
    return kept


def groups_kept(count: int, share: float) -> int:
    """Of ``count`` key-value groups, those that stay when int(count * share) go.

    Raises PlanishError if none would go.
    """
    if not (gone := int(count * share)):
        raise PlanishError(
            f"head_sparsity = {share}: removes none of {count} key-value groups; the least is {1 / count:.3g}"
        )
    return count - gone


def choose(plan: Plan, scores: Mapping[str, Tensor]) -> Kept:
    """The best structures by ``scores`` [d_out, d_in] of the paths of ``plan``; of equal ones the lower number goes first."""

    def best(path: str | None, count: int, keep: int) -> list[int]:
        if path is None:
            return []
        total = scores[path].sum(0).view(count, -1).sum(1)
        return (~lowest(total, count - keep)).nonzero().flatten().tolist()

    return Kept(
        best(plan.down, plan.channels, plan.keep_channels), best(plan.output, plan.groups, plan.keep_groups)
    )


def cut(block: nn.Module, kept: Kept, prefix: str) -> Changes:
    """Cut everything but ``kept`` out of ``block``; the integer attributes that this set, by module path."""
    changes: Changes = {}
    if kept.channels:
        changes |= keep_channels(block, kept.channels, prefix=prefix)
    if kept.groups:
        groups = attention_groups(block).groups
        changes |= keep_heads(block, [head for group in kept.groups for head in groups[group]], prefix=prefix)
    return changes


def refit(weight: Tensor, gram: Tensor, stays: Tensor, ridge: float) -> Tensor:
    """Least-squares weight [d_out, k] that gives W x from the k inputs that stay.

    Minimises over D: sum_t |W x_t - (W_k + D) x_tk|^2 + lambda |D|^2, lambda = ridge times the mean of diag(G_kk), so

        W' = W_k + W_p G_pk (G_kk + lambda I)^-1,   k what stays, p what goes

    weight [d_out, d_in]; gram G [d_in, d_in] = sum_t x_t x_t^T; stays: mask [d_in]. Computed in fp64, returned in fp32.
    """
    w, g, goes = weight.double(), gram.double(), ~stays
    inner = g[stays][:, stays]
    scale = inner.diagonal().mean()
    if not scale > 0:
        return weight[:, stays].float()
    inner.diagonal().add_(ridge * scale)
    update: Tensor = torch.linalg.solve(inner, g[stays][:, goes] @ w[:, goes].T).T
    return (w[:, stays] + update).float()
