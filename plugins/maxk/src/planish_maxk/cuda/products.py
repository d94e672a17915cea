"""The products: forward, backward, and backward in fixed order."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

import torch
from torch import Tensor

from planish_graph import nvrtc
from planish_graph.driver import Kernel
from planish_graph.graph import Plan
from planish_maxk import product
from planish_maxk.cuda.build import module, power, row_floats, usable, warps_for
from planish_maxk.cuda.work import busy

WIDEST = 8192
"""Columns of an accumulator that fits on chip together with three others."""
MOST_GATHERED = 1024
"""Kept entries that fit the registers of a warp in the backward pass of fixed order."""
TILE = 32
"""Kept entries of a source that a backward launch adds to where all of them would not stay in the cache."""
CACHE = 48 << 20
"""Bytes of gradients of kept entries that hardly stay in the cache."""


@dataclass(frozen=True, slots=True)
class Team:
    """How a warp is divided: ``groups`` rows at once, ``lanes`` lanes each, ``vec`` neighbouring kept entries a lane, ``unroll``
    times as many rows in flight; ``warps`` warps a block."""

    vec: int
    lanes: int
    groups: int
    unroll: int
    warps: int

    def macros(self) -> dict[str, int]:
        return {name.upper(): value for name, value in asdict(self).items()}


def fits_gather(values: Tensor, width: int) -> bool:
    """Whether the backward pass of fixed order runs on such values [M, k] of rows of that width."""
    return values.shape[1] <= MOST_GATHERED and fits(values, width)


def fits(values: Tensor, width: int) -> bool:
    """Whether the products run on such values [M, k] of rows of that width."""
    return width <= WIDEST and usable(values)


def forward(
    plan: Plan,
    work: tuple[Tensor, ...],
    values: Tensor,
    index: Tensor,
    width: int,
    team: Team | None = None,
    far: bool = False,
) -> Tensor:
    """y [N, width] of the values' type; see `planish_maxk.product.entrywise`.

    ``work`` is what `divide` gave; ``far``: whether it is sorted among all rows, for graphs without near neighbours.
    """
    rows, k = plan.indptr.shape[0] - 1, values.shape[1]
    out = values.new_empty(rows, width)
    weight = _single(plan.value)
    kernel, combine, warps, shared = _forward(
        values.dtype, index.element_size(), plan.indices.element_size(), width, k, values.device.index,
        weight is not None, team or (aligned(k, values, index), busy(rows, plan.indices.shape[0]), far),
    )  # fmt: skip
    units, cuts = work
    count, cut = units.shape[0], cuts.shape[0]
    pieces = torch.empty(count - rows + cut, width, device=values.device) if cut else None
    kernel(
        -(-count // warps), 32 * warps, units, plan.indices, weight, values, index, out, pieces,
        nvrtc.i32(count), shared=shared,
    )  # fmt: skip
    if cut:
        combine(cut, 256, cuts, pieces, out)
    return out


def forward_team(k: int, width: int, vec: int = 4, level: int = 0, far: bool = False) -> Team:
    """Several neighbours a lane, because alternate entries of a row seldom share a bank; more rows at once where the rows of
    the graph are long (``level``: what `busy` gave; ``far``: see `forward`). As measured on an H100 at width 256."""
    warps = 4
    if level < 0:
        most, unroll, warps = 1 if k <= 8 else 2 if k <= 16 else 4, 4, 2
    elif k <= 8:
        most, unroll = 1, 8 if level else 2
    elif k <= 16:
        most, unroll = (4, 4) if far and level == 1 else (2, 4) if level else (1, 2)
    elif k <= 32:
        most, unroll = 2, 4 if level == 2 else 2
    else:
        most, unroll = 4, 2 if level == 0 or (level == 1 and not far) else 1
    vec, warps = min(vec, most), warps_for(width, warps)
    lanes = min(32, power(-(-k // vec)))
    groups = max(1, min(32 // lanes, 4, (96 << 10) // (4 * warps * row_floats(width))))
    return Team(vec, lanes, groups, min(unroll, 32 // groups), warps)


@cache
def _forward(
    dtype: torch.dtype,
    position: int,
    node: int,
    width: int,
    k: int,
    device: int,
    weighted: bool,
    how: Team | tuple[int, int, bool],
) -> tuple[Kernel, Kernel, int, int]:
    """Both kernels, warps a block, and bytes of shared memory; ``how`` is a team, or what `forward_team` needs beside."""
    team = how if isinstance(how, Team) else forward_team(k, width, *how)
    macros = {**team.macros(), "WEIGHTED": int(weighted)}
    built = module("forward", dtype, position, node, width, k, device, macros)
    return built["forward"], built["combine"], team.warps, 4 * team.warps * team.groups * row_floats(width)


def backward(
    plan: Plan,
    work: tuple[Tensor, ...],
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    wanted: tuple[bool, bool],
    team: Team | None = None,
    span: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Gradients, in fp32, of the kept values [M, k] and of A's values [E]; ``wanted`` says which, the other is empty."""
    nodes, k = index.shape
    grad, of_values, of_weight, atomic = begin(plan, grad, index, wanted)
    if not atomic and not wanted[1]:
        return of_values, of_weight
    weight = _single(plan.value)
    span = span or span_of(nodes, k)
    kernel, warps, shared = _backward(
        grad.dtype, index.element_size(), plan.indices.element_size(), grad.shape[1], k, grad.device.index,
        weight is not None, span, atomic, wanted[1],
        team or (aligned(k, values, index), busy(plan.indptr.shape[0] - 1, plan.indices.shape[0])),
    )  # fmt: skip
    units = work[0]
    for slot in range(0, k, span):
        kernel(
            -(-units.shape[0] // warps), 32 * warps, units, plan.indices, weight, grad, values, index, of_values,
            of_weight, nvrtc.i32(units.shape[0]), nvrtc.i32(slot), shared=shared,
        )  # fmt: skip
    return of_values, of_weight


def begin(
    plan: Plan, grad: Tensor, index: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor, Tensor, bool]:
    """The gradient, aligned; room for both results; and whether a kernel still has to add to the first of them, which
    is complete where results have to repeat."""
    nodes, k = index.shape
    strict = torch.are_deterministic_algorithms_enabled()
    if grad.data_ptr() % 16:
        grad = grad.clone()  # its rows are read four numbers at once
    if strict and wanted[0]:
        of_values = (gathered if k <= MOST_GATHERED else product.through_dense_backward)(plan, grad, index)
    else:
        of_values = torch.zeros(nodes if wanted[0] else 0, k, device=grad.device)
    of_weight = torch.empty(plan.indices.shape[0] if wanted[1] else 0, device=grad.device)
    return grad, of_values, of_weight, wanted[0] and not strict


def span_of(nodes: int, k: int) -> int:
    """All k kept entries, or tiles of them where that makes what is added to fit the cache."""
    return TILE if 4 * nodes * k > CACHE >= 4 * nodes * TILE else k


def backward_team(span: int, width: int, vec: int = 4, level: int = 0) -> Team:
    """Four neighbours a lane: one 16-byte reduction. ``level`` is what `busy` gave."""
    lanes = min(32, power(-(-span // vec)))
    unroll = 1 if span <= 16 else 2 if level == 1 else 4
    return Team(vec, lanes, 32 // lanes, unroll, warps_for(width, 4 if width > 2048 else 8))


@cache
def _backward(
    dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, weighted: bool, span: int,
    values: bool, weights: bool, how: Team | tuple[int, int],
) -> tuple[Kernel, int, int]:  # fmt: skip
    """The kernel, warps a block, and bytes of shared memory; ``how`` is a team, or what `aligned` and `busy` gave."""
    team = how if isinstance(how, Team) else backward_team(span, width, *how)
    macros = {
        **team.macros(), "WEIGHTED": int(weighted), "SPAN": span, "VALUES": int(values), "WEIGHTS": int(weights),
    }  # fmt: skip
    built = module("backward", dtype, position, node, width, k, device, macros)
    return built["backward"], team.warps, 4 * team.warps * row_floats(width)


def backward_gathered(
    plan: Plan,
    work: tuple[Tensor, ...],
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    wanted: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """As `backward`, in fixed order: one launch that needs nothing cleared, which pays on small graphs."""
    of_values = gathered(plan, grad, index) if wanted[0] else grad.new_empty(0)
    of_weight = (
        backward(plan, work, grad, values, index, (False, True))[1] if wanted[1] else grad.new_empty(0)
    )
    return of_values, of_weight


def gathered(plan: Plan, grad: Tensor, index: Tensor) -> Tensor:
    """[M, k] in fp32, without atomic additions: gathers from the destinations of every source."""
    nodes, k = index.shape
    weight = _single(plan.value)
    out = torch.empty(nodes, k, device=grad.device)
    kernel = _gather(
        grad.dtype, index.element_size(), plan.indices.element_size(), grad.shape[1], k, grad.device.index,
        weight is not None,
    )  # fmt: skip
    kernel(nodes, 128, plan.t_indptr, plan.t_indices, plan.t_entry, weight, grad, index, out)
    return out


@cache
def _gather(
    dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, weighted: bool
) -> Kernel:
    lanes = min(32, power(k))
    macros = {"LANES": lanes, "GROUPS": 32 // lanes, "WARPS": 4, "WEIGHTED": int(weighted)}
    return module("gather", dtype, position, node, width, k, device, macros)["gather"]


def aligned(k: int, values: Tensor, index: Tensor) -> int:
    """Neighbouring kept entries that one instruction can load: rows have to start where such loads may."""
    for vec in (4, 2):
        aligned = (
            values.data_ptr() % (vec * values.element_size()) == 0
            and index.data_ptr() % (vec * index.element_size()) == 0
        )
        if k % vec == 0 and aligned:
            return vec
    return 1


def _single(weight: Tensor | None) -> Tensor | None:
    """Kernels read fp32."""
    return weight if weight is None or weight.dtype == torch.float32 else weight.detach().float()
