"""Stage 3, the accounting: how many cells pruning freed, and which outputs their copies go to.

A matrix of R kept of ``out`` rows and C kept of ``in`` columns frees S (out in - R C) cells; m protected slices of all kept
outputs need (c - 1) m R C. Both sides count every array of the mapping, so arrays cancel. When cells are short, outputs are
served in falling order of their row's norm times the RMS of the layer's input; when cells are left, the same order gets one
slice more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from planish.errors import PlanishError


@dataclass(frozen=True, eq=False)
class Kept:
    """What pruning left of one matrix.

    Attributes:
        shape: (out, in) before pruning.
        rows, columns: int64 [R], [C], ascending.
        importance: float [R], of the kept rows.
    """

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    importance: Tensor

    @property
    def weights(self) -> int:
        return len(self.rows) * len(self.columns)

    def cost(self, extra: int) -> int:
        """Cells that one more slice of one output takes in one array, for ``extra`` copies beside the first."""
        return extra * len(self.columns)

    def freed(self, slices: int) -> int:
        """Cells of one array that pruning emptied."""
        return slices * (self.shape[0] * self.shape[1] - self.weights)


@dataclass(frozen=True, slots=True)
class Rule:
    """How copies are shared out.

    Attributes:
        slices: S, cells a weight in one array. extra: c - 1. top: m.
        scope: where freed cells may be used: the whole model's, or only in the layer that freed them.
        partial: serve some outputs only when cells are short. overhead: or take new cells. Neither: an error.
        spare: use cells that are left for further slices.
    """

    slices: int
    extra: int
    top: int
    scope: Literal["model", "layer"] = "model"
    partial: bool = False
    overhead: bool = False
    spare: bool = True


def allot(layers: Mapping[str, Kept], rule: Rule) -> dict[str, Tensor]:
    """Protected slices of every kept output, uint8 [R] by layer.

    Raises:
        PlanishError: cells are short and neither partial protection nor overhead is allowed.
    """
    pools = [list(layers)] if rule.scope == "model" else [[name] for name in layers]
    slices: dict[str, Tensor] = {}
    for names in pools:
        slices |= _share({name: layers[name] for name in names}, rule)
    return slices


def _share(layers: dict[str, Kept], rule: Rule) -> dict[str, Tensor]:
    """`allot` for layers that use their freed cells together."""
    free = sum(layer.freed(rule.slices) for layer in layers.values())
    need = sum(rule.top * layer.cost(rule.extra) * len(layer.rows) for layer in layers.values())
    depth = {name: torch.zeros(len(layer.rows), dtype=torch.uint8) for name, layer in layers.items()}
    if rule.extra == 0 or rule.top == 0:
        return depth
    order = _order(layers)
    if need <= free or rule.overhead:
        for part in depth.values():
            part.fill_(rule.top)
        left = free - need
    elif rule.partial:
        left = _serve(layers, depth, order, rule.extra, 0, rule.top, free)
        return depth
    else:
        where = "the model" if rule.scope == "model" else next(iter(layers))
        weights = sum(layer.shape[0] * layer.shape[1] for layer in layers.values())
        found = 1 - sum(layer.weights for layer in layers.values()) / weights
        wanted = rule.extra * rule.top / (rule.slices + rule.extra * rule.top)
        raise PlanishError(
            f"{where}: copies need {need} cells and pruning freed {free} (sparsity {found:.4f}, {wanted:.4f} needed): "
            "raise target, or set partial or allow_overhead"
        )
    for level in range(rule.top, rule.slices if rule.spare else 0):
        left = _serve(layers, depth, order, rule.extra, level, level + 1, left)
    return depth


def _order(layers: dict[str, Kept]) -> list[tuple[str, int]]:
    """All kept outputs as (layer, row), by falling importance; ties keep the order of the layers."""
    names = list(layers)
    importance = torch.cat([layers[name].importance.double() for name in names])
    owners = [(name, row) for name in names for row in range(len(layers[name].rows))]
    return [owners[i] for i in importance.argsort(descending=True, stable=True).tolist()]


def _serve(
    layers: dict[str, Kept],
    depth: dict[str, Tensor],
    order: Sequence[tuple[str, int]],
    extra: int,
    before: int,
    after: int,
    left: int,
) -> int:
    """Lift outputs from ``before`` to ``after`` protected slices while cells last; returns the cells left."""
    for name, row in order:
        cost = (after - before) * layers[name].cost(extra)
        if depth[name][row] == before and cost <= left:
            depth[name][row] = after
            left -= cost
    return left
