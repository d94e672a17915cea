"""What is in the cells of a chip, and the weight that they amount to.

Order: levels (and programming noise, drift) are written, then stuck cells overwrite them, then a vote reads the copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from planish.errors import ConfigError
from planish_reram.devices import Device
from planish_reram.faults import draw, stick, where_healthy
from planish_reram.moments import correction, voted_rates
from planish_reram.protection import LayerProtection
from planish_reram.quantise import Quantised
from planish_reram.slicing import Layout
from planish_reram.specs import FaultRates, check_tile

__all__ = [
    "NO_PROTECTION",
    "Cells",
    "Physics",
    "compose",
    "correction",
    "fault_maps",
    "median",
    "program",
    "voted_rates",
]

NO_PROTECTION = LayerProtection()


@dataclass(frozen=True, slots=True)
class Physics:
    """What a chip is made of.

    Attributes:
        layout: bits a cell, and the mapping onto arrays.
        rates: permanent faults.
        tile: (word lines, bit lines) of a crossbar.
        device: noise and drift of a cell; None is an ideal cell.
        seconds: time between programming and reading, for drift.

    Raises:
        ConfigError: a tile too narrow for one weight.
    """

    layout: Layout = field(default_factory=Layout)
    rates: FaultRates = field(default_factory=FaultRates)
    tile: tuple[int, int] = (128, 128)
    device: Device | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_tile(self.tile, self.layout.weight_bits, self.layout.cell_bits)


@dataclass(frozen=True, slots=True)
class Cells:
    """The state of a layer's cells on one or more chips, after faults and after the votes that act on levels.

    Attributes:
        levels: [copies, chips, A, S, R, C], uint8 or, with noise or drift, float. copies is 1 unless the vote is taken
            later, on the outputs; outputs without copies then hold the same levels in each.
        layout: what the levels mean.
    """

    levels: Tensor
    layout: Layout


def fault_maps(
    shape: tuple[int, int],
    physics: Physics,
    protection: LayerProtection,
    seeds: Sequence[int],
    layer: int | str,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The maps of a layer, int8 [chips, A, S or m, out, in], one a copy; the first is that of the unprotected layer.

    They cover the whole matrix, so that pruning and protection leave the fate of every cell as it was.
    """
    layout = physics.layout
    maps = []
    for copy in range(protection.copies if protection.deepest else 1):
        held = layout.slices if copy == 0 else protection.deepest
        arrays = [
            draw(
                (held, *shape), physics.rates, seeds, layer, array, copy,
                tile=physics.tile, slices=layout.slices, device=device,
            )
            for array in range(layout.arrays)
        ]  # fmt: skip
        maps.append(arrays[0][:, None] if layout.arrays == 1 else torch.stack(arrays, dim=1))
    return maps


def program(
    quantised: Quantised,
    physics: Physics,
    seeds: Sequence[int] = (0,),
    layer: int | str = 0,
    protection: LayerProtection = NO_PROTECTION,
    maps: Sequence[Tensor] | None = None,
) -> Cells:
    """Write a weight matrix into the cells of one chip a seed.

    Args:
        quantised: integers [out, in] of the whole matrix.
        maps: fault maps as `fault_maps` gives them, where they are known (a march test) instead of drawn.

    Raises:
        ConfigError: the protection does not fit the matrix or the layout.
    """
    layout = physics.layout
    _check_fit(quantised, layout, protection)
    q = _kept(quantised.q, protection)
    intact = layout.cells(q)
    shape = (quantised.q.shape[0], quantised.q.shape[1])
    if maps is None and physics.rates.any:
        maps = fault_maps(shape, physics, protection, seeds, layer, q.device)
    copies = protection.copies if protection.deepest else 1
    if maps is not None:
        _check_maps(maps, shape, layout, copies, protection.deepest, layer)
    read: list[Tensor] = []
    states: list[Tensor | None] = []
    for copy in range(copies):
        held = intact if copy == 0 else intact[:, : protection.deepest]
        levels = held[None].expand(len(seeds), *held.shape)
        if physics.device is not None and physics.device.alters_levels:
            levels = physics.device.program(levels, layout.top, physics.seconds, seeds, f"{layer}/{copy}")
        state = None if maps is None else _kept(maps[copy].to(q.device), protection)
        if state is not None:
            levels = stick(levels, state, layout.top, in_place=copies == len(seeds) == 1)
        read.append(levels)
        states.append(state)
    return Cells(_vote(read, states, layout, protection), layout)


def compose(
    cells: Cells,
    quantised: Quantised,
    physics: Physics,
    protection: LayerProtection = NO_PROTECTION,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The effective weight [chips, out, in]: one matrix that computes what the cells compute with ideal converters.

    Copies that are voted on at the output count with their mean. Rows and columns that were not kept are exact zeros.
    """
    dtype = dtype or quantised.scale.dtype
    layout, levels = cells.layout, cells.levels
    levels = levels.to(dtype).mean(dim=0) if levels.shape[0] > 1 else levels[0]
    if protection.bias_correction:
        gain, constant = correction(layout, physics.rates, protection, levels.device, dtype)
        levels = (levels.to(dtype) - constant) * gain
    if levels.dtype == torch.uint8:
        value = layout.integers(levels, dtype)
    else:
        value = layout.combine(levels.to(dtype))
    scale = quantised.scale.to(dtype)
    if protection.kept_rows is not None and scale.dim() == 2:
        scale = scale[protection.kept_rows.to(scale.device)]
    return _scattered(value.mul_(scale), quantised.q.shape, protection)


def _vote(
    read: list[Tensor], states: list[Tensor | None], layout: Layout, protection: LayerProtection
) -> Tensor:
    """Levels [copies left, chips, A, S, R, C] from one [chips, A, S or m, R, C] a copy."""
    first = read[0].clone() if len(read) > 1 or protection.embed == "lsb" else read[0]
    late = protection.vote in ("output", "mean") and len(read) > 1
    whole = [first, *(first.clone() for _ in read[1:])] if late else [first]
    for k in range(protection.deepest):
        protected = protection.protected(k)
        rows = slice(None) if bool(protected.all()) else protected.to(first.device)
        copies = [levels[:, :, k, rows] for levels in read]
        if late:
            for target, levels in zip(whole, copies, strict=True):
                target[:, :, k, rows] = levels
            continue
        chosen = median(copies)
        if protection.vote == "healthy":
            for levels, state in reversed(list(zip(copies, states, strict=True))):
                chosen = levels if state is None else where_healthy(levels, state[:, :, k, rows], chosen)
        first[:, :, k, rows] = chosen
    for k in range(layout.slices):
        if (lost := protection.given_up(k, layout.slices)) is not None and bool(lost.any()):
            highest = protection.given_up(k - 1, layout.slices) if k else None
            middle = torch.zeros(len(lost), dtype=first.dtype)
            middle[lost] = (layout.top + 1) // 2
            if highest is not None:
                middle[highest] = 0  # the middle of several slices is the middle level of the highest of them
            rows = lost.to(first.device)
            for target in whole:
                target[:, :, k, rows] = middle[lost].to(first.device)[:, None]
    return torch.stack(whole) if late else first[None]


def median(copies: Sequence[Tensor]) -> Tensor:
    """Element-wise median; of an even number the lower one."""
    if len(copies) == 3:  # four passes instead of a sort
        a, b, c = copies
        return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))
    return torch.stack(list(copies)).sort(dim=0).values[(len(copies) - 1) // 2]


def _kept(values: Tensor, protection: LayerProtection) -> Tensor:
    """The rows and columns on the crossbar of [..., out, in]."""
    if protection.kept_rows is not None:
        values = values.index_select(-2, protection.kept_rows.to(values.device, non_blocking=True))
    if protection.kept_cols is not None:
        values = values.index_select(-1, protection.kept_cols.to(values.device, non_blocking=True))
    return values


def _scattered(values: Tensor, shape: torch.Size, protection: LayerProtection) -> Tensor:
    """[..., R, C] put back into zeros [..., out, in]."""
    if protection.kept_cols is not None:
        wide = values.new_zeros(*values.shape[:-1], shape[1])
        values = wide.index_copy_(-1, protection.kept_cols.to(values.device, non_blocking=True), values)
    if protection.kept_rows is not None:
        tall = values.new_zeros(*values.shape[:-2], shape[0], shape[1])
        values = tall.index_copy_(-2, protection.kept_rows.to(values.device, non_blocking=True), values)
    return values


def _check_fit(quantised: Quantised, layout: Layout, protection: LayerProtection) -> None:
    out, inputs = quantised.q.shape
    for name, kept, size in (
        ("kept_rows", protection.kept_rows, out),
        ("kept_cols", protection.kept_cols, inputs),
    ):
        if kept is not None and (len(kept) == 0 or int(kept.min()) < 0 or int(kept.max()) >= size):
            raise ConfigError(f"{name}: must name at least one of {size}, each from 0 to {size - 1}")
    rows = out if protection.kept_rows is None else len(protection.kept_rows)
    if protection.slices is not None and len(protection.slices) != rows:
        raise ConfigError(f"slices has {len(protection.slices)} entries for {rows} kept rows")
    deepest = protection.deepest
    used = deepest * protection.copies if protection.embed == "lsb" else deepest
    if used > layout.slices:
        raise ConfigError(
            f"protected slices = {deepest} with copies = {protection.copies} and embed = {protection.embed!r} need {used} "
            f"slices, a weight has {layout.slices}"
        )
    if quantised.bits != layout.weight_bits:
        raise ConfigError(f"weight_bits = {layout.weight_bits}, but the weight has {quantised.bits} bits")


def _check_maps(
    maps: Sequence[Tensor],
    shape: tuple[int, int],
    layout: Layout,
    copies: int,
    deepest: int,
    layer: int | str,
) -> None:
    if len(maps) < copies:
        raise ConfigError(f"layer {layer!r}: fault maps of {len(maps)} copies are given, {copies} are needed")
    for copy in range(copies):
        needed = (layout.arrays, deepest if copy else layout.slices, *shape)
        if tuple(maps[copy].shape[1:]) != needed:
            raise ConfigError(
                f"layer {layer!r}: the fault map of copy {copy} is {list(maps[copy].shape[1:])}, needed is {list(needed)}: "
                "arrays, slices, out, in"
            )
