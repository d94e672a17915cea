"""Cut attention heads and feed-forward channels out of a decoder block, so that its matrices really shrink."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from planish.errors import PlanishError
from planish_sdk.conform import check_forward, update_config
from planish_sdk.layout import (
    CHANNELS,
    HEADS,
    KV_HEADS,
    QUERIES_PER_KV,
    WIDTH,
    AttentionGroups,
    FfnChannels,
    attention_groups,
    ffn_channels,
)
from planish_sdk.views import weight_views

__all__ = [
    "AttentionGroups",
    "Changes",
    "FfnChannels",
    "attention_groups",
    "check_forward",
    "ffn_channels",
    "keep_channels",
    "keep_heads",
    "update_config",
]

Changes = dict[str, dict[str, int]]
"""Module path -> the integer attributes that surgery set on it."""


def keep_heads(block: nn.Module, kept: Iterable[int], *, prefix: str = "") -> Changes:
    """Cut all query heads but `kept`, and each key-value head that lost all its query heads.

    Grouped-query attention needs groups of one size, so keep equally many query heads in every group that
    stays: whole groups (`groups = attention_groups(block).groups; keep_heads(block, groups[0] + groups[2])`),
    or the same number from each. With one key-value head any non-empty choice will do.

    The attention's output equals that of the uncut block with the removed heads' columns of the output
    projection set to zero. Families that read head counts from the model's config while running (Phi-3) run
    again after `update_config`.

    Args:
        block: a decoder block, changed in place.
        kept: query-head numbers.
        prefix: the block's path in the model, put before the paths in the result.

    Returns:
        The integer attributes that were set, by module path.

    Raises:
        PlanishError: nothing left, a number out of range or repeated, uneven groups, or a norm over all heads.
    """
    attention = attention_groups(block)
    heads = _kept(kept, attention.num_heads, "heads")
    sizes = {
        g: len(chosen) for g, group in enumerate(attention.groups) if (chosen := set(group) & set(heads))
    }
    if len(set(sizes.values())) > 1:
        raise PlanishError(
            f"kept heads: leave {_listed(sizes.values())} query heads in key-value groups {_listed(sizes)}; needs one number"
        )
    module = block.get_submodule(attention.path)
    _refuse_norms_over_heads(module, attention)
    _refuse_tied(block, (*attention.projections, attention.output))

    changes = _Recorder(block, prefix)
    for path, units in zip(attention.projections, _head_rows(attention, heads, list(sizes)), strict=True):
        changes.cut_rows(path, _spread(units, attention.head_dim))
    changes.cut_columns(attention.output, _spread(heads, attention.head_dim))
    for name, parameter in list(module._parameters.items()):
        if parameter is not None and parameter.shape == (attention.num_heads,):  # one attention sink a head
            module._parameters[name] = _selected(parameter, 0, heads)
    new = (len(heads), len(sizes), len(heads) // len(sizes), len(heads) * attention.head_dim)
    old = (
        attention.num_heads,
        attention.num_kv_heads,
        attention.num_heads // attention.num_kv_heads,
        attention.num_heads * attention.head_dim,
    )
    for names, before, after in zip((HEADS, KV_HEADS, QUERIES_PER_KV, WIDTH), old, new, strict=True):
        changes.set(attention.path, names, before, after)
    return changes.result


def keep_channels(block: nn.Module, kept: Iterable[int], *, prefix: str = "") -> Changes:
    """Cut all feed-forward channels but `kept`; the output equals that with the others' columns of `down` zeroed.

    Args:
        block: a decoder block, changed in place.
        kept: channel numbers.
        prefix: the block's path in the model, put before the paths in the result.

    Returns:
        The integer attributes that were set, by module path.

    Raises:
        PlanishError: nothing left, a number out of range or repeated, or a mixture of experts.
    """
    ffn = ffn_channels(block)
    channels = _kept(kept, ffn.count, "channels")
    _refuse_tied(block, (*ffn.up, ffn.down))
    changes = _Recorder(block, prefix)
    rows = channels + [ffn.count + channel for channel in channels] if ffn.fused else channels
    for path in ffn.up:
        changes.cut_rows(path, rows)
    changes.cut_columns(ffn.down, channels)
    changes.set(ffn.path, CHANNELS, ffn.count, len(channels))
    return changes.result


class _Recorder:
    """Shrinks linear layers of a block and writes down every integer attribute that it sets."""

    def __init__(self, block: nn.Module, prefix: str) -> None:
        self.block = block
        self.prefix = prefix
        self.result: Changes = {}

    def cut_rows(self, path: str, rows: list[int]) -> None:
        self._cut(path, rows, output=True)

    def cut_columns(self, path: str, columns: list[int]) -> None:
        self._cut(path, columns, output=False)

    def _cut(self, path: str, kept: list[int], *, output: bool) -> None:
        module = self.block.get_submodule(path)
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        assert weight is not None
        linear = isinstance(module, nn.Linear)  # else Conv1D, which stores [d_in, d_out]
        before = weight.shape[0 if output == linear else 1]
        module._parameters["weight"] = _selected(weight, 0 if output == linear else 1, kept)
        if output and bias is not None:
            module._parameters["bias"] = _selected(bias, 0, kept)
        self.set(path, ("out_features", "nf") if output else ("in_features", "nx"), before, len(kept))

    def set(self, path: str, names: tuple[str, ...], before: int, after: int) -> None:
        """Set those of `names` that the module has with the value `before`."""
        module = self.block.get_submodule(path)
        for name in names:
            if getattr(module, name, None) == before and before != after:
                setattr(module, name, after)
                full = ".".join(part for part in (self.prefix, path) if part)
                self.result.setdefault(full, {})[name] = after


def _selected(parameter: nn.Parameter, dim: int, kept: list[int]) -> nn.Parameter:
    index = torch.tensor(kept, device=parameter.device)
    return nn.Parameter(parameter.detach().index_select(dim, index), requires_grad=parameter.requires_grad)


def _head_rows(attention: AttentionGroups, heads: list[int], groups: list[int]) -> list[list[int]]:
    """For each projection, the rows to keep, in units of one head."""
    queries, pairs = attention.num_heads, attention.num_kv_heads
    if attention.layout == "separate":
        return [heads, groups, groups]
    if attention.layout == "stacked":
        return [[*heads, *(queries + g for g in groups), *(queries + pairs + g for g in groups)]]
    size = queries // pairs
    rows = [h + 2 * (h // size) for h in heads]
    ends = [g * (size + 2) + size for g in groups]
    return [sorted([*rows, *ends, *(end + 1 for end in ends)])]


def _spread(units: list[int], width: int) -> list[int]:
    return [unit * width + offset for unit in units for offset in range(width)]


def _kept(kept: Iterable[int], count: int, what: str) -> list[int]:
    chosen = [int(index) for index in kept]
    if not chosen:
        raise PlanishError(f"kept {what}: got none, the last of the {count} cannot be removed")
    if outside := sorted({index for index in chosen if not 0 <= index < count}):
        raise PlanishError(f"kept {what}: got {_listed(outside)}, choose from 0 to {count - 1}")
    if len(set(chosen)) != len(chosen):
        raise PlanishError(f"kept {what}: got {_listed(sorted(chosen))}, each may be named once")
    return sorted(chosen)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _refuse_norms_over_heads(module: nn.Module, attention: AttentionGroups) -> None:
    """A norm over the whole query or key width mixes heads: without some of them the others change."""
    widths = {
        heads * attention.head_dim for heads in (attention.num_heads, attention.num_kv_heads) if heads > 1
    }
    inside = {*attention.projections, attention.output}
    for name, child in module.named_children():
        weight = child._parameters.get("weight")
        path = f"{attention.path}.{name}" if attention.path else name
        if (
            attention.path
            and path not in inside
            and weight is not None
            and weight.ndim == 1
            and len(weight) in widths
        ):
            raise PlanishError(
                f"{path}: normalises {len(weight)} values, all heads together; heads cannot be cut"
            )


def _refuse_tied(block: nn.Module, paths: Iterable[str]) -> None:
    views = weight_views(block)
    for path in paths:
        if views[path].tied:
            raise PlanishError(f"{path}: its weight is shared with another layer; it cannot be cut")
