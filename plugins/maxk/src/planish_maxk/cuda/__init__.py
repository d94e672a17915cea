"""The kernels in CUDA C++, built by NVRTC for the case at hand: top-k, forward, backward, and backward in fixed order.

The sources lie beside this file. A warp takes a unit of work: a row of the graph, or a piece of a long one. Sums are taken in
fp32 on chip in a fixed order, so that the forward pass repeats bit by bit. The backward pass adds atomically, unless
`torch.use_deterministic_algorithms` is on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from planish_graph import nvrtc
from planish_graph.driver import Kernel, Module
from planish_graph.graph import Graph, Plan
from planish_maxk import product

NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
LONG = {300_000: 32, 8_000_000: 128}
LONGEST = 512
"""Longest unit of work on a graph of up to so many entries, and on a larger one; twice that where rows are very long."""
BUSY = (30, 100)
"""Entries a row on average from which rows count as long, and as very long."""
WINDOW = 2048
"""Consecutive rows among which units are sorted by length where the order of rows is worth keeping."""
WIDEST = 8192
"""Columns of an accumulator that fits on chip together with three others."""
WIDEST_TOP_K = 1024
"""Columns of a row that fits the registers of a warp."""
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


def usable(values: Tensor) -> bool:
    """Whether the kernels run on such numbers [M, k] or [N, D]: a CUDA device of compute capability 8.0 or above,
    NVRTC, and not float64."""
    return values.is_cuda and values.dtype in NUMBERS and _device_fits(values.device.index)


def fits(values: Tensor, width: int) -> bool:
    """The same for the products with rows of that width."""
    return width <= WIDEST and usable(values)


@cache
def _device_fits(device: int) -> bool:
    return nvrtc.available() and torch.cuda.get_device_capability(device) >= (8, 0)


def divide(graph: Graph, window: int | None = WINDOW, longest: int | None = None) -> tuple[Tensor, Tensor]:
    """Units of work; kept on the graph.

    They are sorted by falling length, so that the warps of a block end together: within windows of consecutive rows, so
    that what neighbours read stays cached, or, with None, all of them.

    Returns:
        units [U, 4]: row, first entry, entries, and the number of the piece or -1 for a whole row; cuts [C, 3]: row, its
        first piece, and how many. Of the graph's index type.
    """
    if longest is None:
        usual = LONGEST * (2 if busy(graph.num_rows, graph.num_edges) == 2 else 1)
        longest = next((n for most, n in LONG.items() if graph.num_edges <= most), usual)
    window = window or max(1, graph.num_rows)
    return graph.checked().kept(("maxk units", longest, window), lambda: _units(graph, longest, window))


def busy(rows: int, entries: int) -> int:
    """0, 1 or 2: whether rows are long, or very long, on average."""
    return (entries >= BUSY[0] * rows) + (entries >= BUSY[1] * rows)


def _units(graph: Graph, longest: int, window: int) -> tuple[Tensor, Tensor]:
    degrees = graph.degrees
    pieces = ((degrees + longest - 1) // longest).clamp_min(1)
    total = int(pieces.sum())
    row = torch.repeat_interleave(pieces, output_size=total)
    within = torch.arange(total, device=graph.device) - (pieces.cumsum(0) - pieces)[row]
    start = graph.indptr[row].long() + within * longest
    count = (graph.indptr[row + 1].long() - start).clamp_max(longest)
    cut = pieces[row] > 1
    piece = torch.where(cut, cut.cumsum(0) - 1, -1)
    order = torch.argsort(count, descending=True, stable=True)
    order = order[torch.argsort(row[order] // window, stable=True)]
    units = torch.stack([row, start, count, piece], 1)[order]
    rows = (pieces > 1).nonzero()[:, 0]
    many = pieces[rows]
    cuts = torch.stack([rows, many.cumsum(0) - many, many], 1)
    return units.to(graph.indptr.dtype).contiguous(), cuts.to(graph.indptr.dtype).contiguous()


# ---- top-k ------------------------------------------------------------------------------------------------------------


def top_k(x: Tensor, k: int, positions: torch.dtype) -> tuple[Tensor, Tensor]:
    """`planish_maxk.topk.top_k` for contiguous x [N, D], k < D <= `WIDEST_TOP_K`."""
    rows, width = x.shape
    values, index = x.new_empty(rows, k), torch.empty(rows, k, dtype=positions, device=x.device)
    vec = 16 // x.element_size()
    if width % vec or x.data_ptr() % 16:
        vec = 1
    device = x.device.index
    kernel, warps = _top_k(x.dtype, width, k, vec, device)
    kernel(min(8 * _processors(device), -(-rows // warps)), 32 * warps, x, values, index, rows)
    return values, index


@cache
def _top_k(dtype: torch.dtype, width: int, k: int, vec: int, device: int) -> tuple[Kernel, int]:
    chunks, warps = -(-width // (32 * vec)), 8 if k <= 256 else 4
    normal = NormalDist()
    quantile = normal.inv_cdf(1 - k / width)
    macros = {
        "VEC": vec,
        "CHUNKS": chunks,
        "FULL": int(width == 32 * vec * chunks),
        "WARPS": warps,
        "QUANTILE": f"{quantile:.7f}f",
        "SLOPE": f"{1 / (width * normal.pdf(quantile)):.7f}f",
    }
    module = _module("top_k", dtype, 1 if width <= 256 else 2, 4, width, k, device, macros)
    return module["top_k"], warps


@cache
def _processors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def expand(values: Tensor, index: Tensor, width: int) -> Tensor:
    """`planish_maxk.topk.expand` for contiguous values and positions [N, k]."""
    rows, k = values.shape
    out = values.new_empty(rows, width)
    module = _expand(values.dtype, index.element_size(), width, k, values.device.index)
    shared = 4 * values.element_size() * _row(width)
    module["expand"](-(-rows // 4), 128, values, index, out, rows, shared=shared)
    return out


def pick(dense: Tensor, index: Tensor) -> Tensor:
    """[N, k] what contiguous ``dense`` [N, D] holds at positions [N, k]."""
    out = dense.new_empty(index.shape)
    module = _expand(dense.dtype, index.element_size(), dense.shape[1], index.shape[1], dense.device.index)
    module["pick"](
        min(16 * _processors(dense.device.index), -(-out.numel() // 256)), 256, dense, index, out, out.numel()
    )
    return out


@cache
def _expand(dtype: torch.dtype, position: int, width: int, k: int, device: int) -> Module:
    return _module("expand", dtype, position, 4, width, k, device, {"WARPS": 4})


# ---- forward ----------------------------------------------------------------------------------------------------------


def forward(
    plan: Plan,
    work: tuple[Tensor, ...],
    values: Tensor,
    index: Tensor,
    width: int,
    team: Team | None = None,
) -> Tensor:
    """y [N, width] of the values' type; see `planish_maxk.product.entrywise`. ``work`` is what `divide` gave."""
    rows, k = plan.indptr.shape[0] - 1, values.shape[1]
    out = values.new_empty(rows, width)
    weight = _single(plan.value)
    kernel, combine, warps, shared = _forward(
        values.dtype, index.element_size(), plan.indices.element_size(), width, k, values.device.index,
        weight is not None, team or (_vec(k, values, index), busy(rows, plan.indices.shape[0])),
    )  # fmt: skip
    units, cuts = work
    pieces = (
        torch.empty(units.shape[0] - rows + cuts.shape[0], width, device=values.device)
        if cuts.shape[0]
        else None
    )
    kernel(
        -(-units.shape[0] // warps), 32 * warps, units, plan.indices, weight, values, index, out, pieces,
        nvrtc.i32(units.shape[0]), shared=shared,
    )  # fmt: skip
    if pieces is not None:
        combine(cuts.shape[0], 256, cuts, pieces, out)
    return out


def forward_team(k: int, width: int, vec: int = 4, level: int = 0) -> Team:
    """Several neighbours a lane, because alternate entries of a row seldom share a bank; more rows at once where the rows of
    the graph are long (``level``: what `busy` gave). As measured on an H100 at width 256."""
    if k <= 8:
        most, unroll = 1, 8 if level else 2
    elif k <= 16:
        most, unroll = 2 if level else 1, 4
    elif k <= 32:
        most, unroll = 2, 4 if level == 2 else 2
    else:
        most, unroll = 4, 1
    vec, warps = min(vec, most), 4
    lanes = min(32, _power(-(-k // vec)))
    groups = max(1, min(32 // lanes, 4, (96 << 10) // (4 * warps * _row(width))))
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
    how: Team | tuple[int, int],
) -> tuple[Kernel, Kernel, int, int]:
    """Both kernels, warps a block, and bytes of shared memory; ``how`` is a team, or what `_vec` and `busy` gave."""
    team = how if isinstance(how, Team) else forward_team(k, width, *how)
    macros = {**team.macros(), "WEIGHTED": int(weighted)}
    module = _module("forward", dtype, position, node, width, k, device, macros)
    return module["forward"], module["combine"], team.warps, 4 * team.warps * team.groups * _row(width)


# ---- backward ---------------------------------------------------------------------------------------------------------


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
    if grad.data_ptr() % 16:
        grad = grad.clone()  # its rows are read four numbers at once
    weight = _single(plan.value)
    strict = torch.are_deterministic_algorithms_enabled()
    of_weight = torch.empty(plan.indices.shape[0] if wanted[1] else 0, device=grad.device)
    if strict and wanted[0]:
        fixed = gathered if k <= MOST_GATHERED else product.through_dense_backward
        of_values = fixed(plan, grad, index)
    else:
        of_values = torch.zeros(nodes if wanted[0] else 0, k, device=grad.device)
    atomic = wanted[0] and not strict
    if not atomic and not wanted[1]:
        return of_values, of_weight
    span = span or _span(nodes, k)
    kernel, warps, shared = _backward(
        grad.dtype, index.element_size(), plan.indices.element_size(), grad.shape[1], k, grad.device.index,
        weight is not None, span, atomic, wanted[1],
        team or (_vec(k, values, index), busy(plan.indptr.shape[0] - 1, plan.indices.shape[0])),
    )  # fmt: skip
    units = work[0]
    for slot in range(0, k, span):
        kernel(
            -(-units.shape[0] // warps), 32 * warps, units, plan.indices, weight, grad, values, index, of_values,
            of_weight, nvrtc.i32(units.shape[0]), nvrtc.i32(slot), shared=shared,
        )  # fmt: skip
    return of_values, of_weight


def _span(nodes: int, k: int) -> int:
    """All k kept entries, or tiles of them where that makes what is added to fit the cache."""
    return TILE if 4 * nodes * k > CACHE >= 4 * nodes * TILE else k


def backward_team(span: int, width: int, vec: int = 4, level: int = 0) -> Team:
    """Four neighbours a lane: one 16-byte reduction. ``level`` is what `busy` gave."""
    lanes = min(32, _power(-(-span // vec)))
    unroll = 1 if span <= 16 else 4 if level == 2 else 2
    return Team(vec, lanes, 32 // lanes, unroll, 4 if width > 2048 else 8)


@cache
def _backward(
    dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, weighted: bool, span: int,
    values: bool, weights: bool, how: Team | tuple[int, int],
) -> tuple[Kernel, int, int]:  # fmt: skip
    """The kernel, warps a block, and bytes of shared memory; ``how`` is a team, or what `_vec` and `busy` gave."""
    team = how if isinstance(how, Team) else backward_team(span, width, *how)
    macros = {
        **team.macros(), "WEIGHTED": int(weighted), "SPAN": span, "VALUES": int(values), "WEIGHTS": int(weights),
    }  # fmt: skip
    module = _module("backward", dtype, position, node, width, k, device, macros)
    return module["backward"], team.warps, 4 * team.warps * _row(width)


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
    lanes = min(32, _power(k))
    macros = {"LANES": lanes, "GROUPS": 32 // lanes, "WARPS": 4, "WEIGHTED": int(weighted)}
    return _module("gather", dtype, position, node, width, k, device, macros)["gather"]


# ---- all of them ------------------------------------------------------------------------------------------------------


@cache
def source(name: str) -> str:
    """The text of one kernel, with what all share before it."""
    folder = resources.files(__name__)
    return "".join((folder / file).read_text(encoding="utf-8") for file in ("common.cuh", f"{name}.cu"))


def _module(
    name: str, dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, macros: dict[str, Any]
) -> Module:  # fmt: skip
    shared = {"NUMBER": NUMBERS[dtype], "POSITION": position, "INDEX": node, "D": width, "K": k}
    return nvrtc.compile(source(name), defines={**shared, **macros}, device=torch.device("cuda", device))


def _power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _row(width: int) -> int:
    """Floats of an accumulator: the width, in whole rounds over the 32 banks."""
    return -(-width // 32) * 32


def _vec(k: int, values: Tensor, index: Tensor) -> int:
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
