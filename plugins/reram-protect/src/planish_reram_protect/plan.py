"""From a pruned network to the protection of its layers, and the report of what that costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from planish_reram.protection import LayerProtection
from planish_reram_protect.budget import Kept, Rule, allot
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.gates import Gated
from planish_reram_protect.placement import Placement, place

Shapes = Mapping[str, tuple[int, int]]
_INDEX_BYTES = 4  # kept_rows and kept_cols as int32; the artifact's int64 is torch's index format


def kept(
    layers: Sequence[Gated], mask: Tensor, weights: Mapping[str, Tensor], activation: Mapping[str, float]
) -> dict[str, Kept]:
    """What the gates leave of every matrix; an output's importance is ||W_row||_2 times the RMS of the layer's input."""
    opened = torch.cat([mask, mask.new_ones(1)])
    found = {}
    for layer in layers:
        rows, columns = opened[layer.rows].nonzero().flatten(), opened[layer.columns].nonzero().flatten()
        weight = weights[layer.name].detach().float().cpu()
        importance = weight[rows].norm(dim=1) * activation.get(layer.name, 0.0)
        found[layer.name] = Kept((weight.shape[0], weight.shape[1]), rows, columns, importance)
    return found


def rule_of(config: ReramProtectConfig) -> Rule:
    """The options that decide how copies are shared out."""
    return Rule(
        slices=config.slices,
        extra=config.extra,
        top=config.top_slices,
        scope=config.scope,
        partial=config.partial,
        overhead=config.allow_overhead,
        spare=config.use_spare,
    )


def protect(
    layers: Mapping[str, Kept], config: ReramProtectConfig
) -> tuple[dict[str, LayerProtection], dict[str, Any]]:
    """Share out the copies, place them, and report.

    Raises:
        PlanishError: cells are short, and neither ``partial`` nor ``allow_overhead`` is set.
    """
    rule = rule_of(config)
    depth = allot(layers, rule)
    placed = place(layers, depth, rule, config.arrays, config.tile)
    protection = {
        name: LayerProtection(
            kept_rows=layer.rows,
            kept_cols=layer.columns,
            slices=depth[name],
            placement=placed.blocks[name],
            **_choices(config),
        )
        for name, layer in layers.items()
    }
    return protection, report(layers, depth, placed, config)


def protect_in_place(
    shapes: Shapes, config: ReramProtectConfig
) -> tuple[dict[str, LayerProtection], dict[str, Any]]:
    """The same for ``embed="lsb"``: nothing is pruned, copies overwrite the least significant slices of their own weight."""
    depth = {
        name: torch.full((out,), config.top_slices, dtype=torch.uint8) for name, (out, _) in shapes.items()
    }
    layers = {
        name: Kept((out, into), torch.arange(out), torch.arange(into), torch.zeros(out))
        for name, (out, into) in shapes.items()
    }
    protection = {name: LayerProtection(slices=part, **_choices(config)) for name, part in depth.items()}
    tiles = place(
        layers,
        {name: torch.zeros_like(part) for name, part in depth.items()},
        rule_of(config),
        config.arrays,
        config.tile,
    )
    return protection, report(layers, depth, tiles, config, indexed=False)


def _choices(config: ReramProtectConfig) -> dict[str, Any]:
    correction = None if config.bias_correction == "none" else config.bias_correction
    return {
        "copies": config.copies,
        "vote": config.vote,
        "embed": config.embed,
        "bias_correction": correction,
    }


def report(
    layers: Mapping[str, Kept],
    depth: Mapping[str, Tensor],
    placed: Placement,
    config: ReramProtectConfig,
    *,
    indexed: bool = True,
) -> dict[str, Any]:
    """What protection costs, counted from the plan. Cells count all arrays of the mapping.

    An ADC conversion is one column of one tile read once, for one input vector and one input-bit cycle.
    """
    weights = sum(layer.shape[0] * layer.shape[1] for layer in layers.values())
    left = sum(layer.weights for layer in layers.values())
    copied = sum(config.extra * int(depth[name].sum()) * len(layer.columns) for name, layer in layers.items())
    protected = sum(int((depth[name] > 0).sum()) * len(layer.columns) for name, layer in layers.items())
    index = sum((len(layer.rows) + len(layer.columns)) * _INDEX_BYTES for layer in layers.values())
    index += sum(blocks.numel() * blocks.element_size() for blocks in placed.blocks.values())
    index += sum(part.numel() for part in depth.values())
    columns = sum(
        _bands(layer, config.tile_rows) * len(layer.rows) * config.slices for layer in layers.values()
    )
    extra = sum(
        _bands(layer, config.tile_rows) * config.extra * int(depth[name].sum())
        for name, layer in layers.items()
    )
    late = config.vote in ("output", "mean")
    per_weight = config.arrays * config.slices
    return {
        "cells before": weights * per_weight,
        "cells after": left * per_weight,
        "cells freed": (weights - left) * per_weight,
        "cells used by copies": copied * config.arrays,
        "extra crossbars": -(-placed.homeless // (config.tile_rows * config.tile_cols)),
        "crossbars": placed.tiles,
        "index bytes": index if indexed else 0,
        "ADC conversions a cycle": columns * config.arrays,
        "extra ADC conversions a cycle": extra * config.arrays if late else 0,
        "cells read when weights are composed": 0 if late else (left * per_weight + copied * config.arrays),
        "sparsity": 1 - left / weights,
        "share of kept weights protected": protected / left,
    }


def _bands(layer: Kept, word_lines: int) -> int:
    """Tiles that one output's bit lines run through: those with at least one driven word line."""
    return len(torch.unique(layer.columns // word_lines))
