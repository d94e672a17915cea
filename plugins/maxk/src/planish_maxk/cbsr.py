"""What users call: `maxk`, `drop`, `aggregate`, on compressed rows."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from planish.errors import DataError
from planish_graph import check
from planish_graph.dispatch import Candidate, Dispatcher, Program
from planish_graph.graph import Graph, Plan, given
from planish_graph.spmm import only_computed, spmm
from planish_maxk import cuda, ops, topk  # noqa: F401 - ops registers the operators
from planish_maxk.ways import WAYS, Work, find

CUDA = f"needs a CUDA device of compute capability 8.0, NVRTC, no float64, and rows of at most {cuda.WIDEST}"
NEEDS = {
    "cuda": CUDA,
    "cuda-sorted": CUDA,
    "cuda-tiles": f"{CUDA}; narrower ones where little fits on chip",
    "cuda-gather": f"{CUDA}; k of at most {cuda.MOST_GATHERED}",
    "triton": "needs triton, a CUDA device, and no float64",
}


class CBSR(NamedTuple):
    """Rows with exactly k entries: ``values`` [N, k], ``positions`` [N, k] uint8 or uint16 in rising order, ``width`` D."""

    values: Tensor
    positions: Tensor
    width: int

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.positions.nbytes

    def to_dense(self) -> Tensor:
        """[N, D] with zeros where nothing was kept; differentiable."""
        check.backward_only(self.values)
        out: Tensor = torch.ops.planish_maxk.to_dense(self.values, self.positions, self.width)
        return out


def maxk(x: Tensor, k: int) -> CBSR:
    """Keep the k largest entries of every row of x [N, D]; see `planish_maxk.topk.top_k` for ties and NaN.

    Kept negative values stay negative; k = D keeps everything. Differentiable once: the gradient passes where an entry
    was kept, positions have none, and a second backward raises. Under autocast x is cast to its type first. Training
    and evaluation do the same.

    Raises:
        DataError: k is not within 1 .. D, D is 0 or above 65,536, x is no floating-point matrix, or forward-mode
            derivatives are asked for.
    """
    k = topk.checked(x, k)
    check.backward_only(x)
    values, index = torch.ops.planish_maxk.top_k(_cast(x), k)
    return CBSR(values, index, x.shape[1])


def drop(rows: CBSR, p: float, training: bool = True) -> CBSR:
    """Dropout on the kept entries: each is zeroed with probability ``p``, the others are scaled by 1 / (1 - p).

    Raises:
        DataError: the rows are not compressed, or p is no probability.
    """
    _compressed("drop", rows)
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise DataError(f"drop: p = {p!r}; valid: a number from 0 to 1")
    return rows._replace(values=F.dropout(rows.values, p, training))


def aggregate(graph: Graph, rows: CBSR | Tensor, how: str = "auto") -> Tensor:
    """A x for compressed rows x: [M, D] in CBSR to [N, D]; a dense tensor goes to `planish_graph.spmm.spmm`.

    Differentiable once in the kept values and in the graph's values.

    Args:
        how: one of `planish_maxk.ways.WAYS`: ``"dense"`` expands the rows and takes the fastest dense product, ``"cuda"``,
            ``"cuda-sorted"``, ``"cuda-tiles"``, ``"cuda-gather"`` and ``"triton"`` are kernels, ``"entries"`` the float64
            reference; ``"auto"``: see `choose`.

    Raises:
        DataError: the rows do not fit the graph or lie on another device, ``how`` is not possible here, or forward-mode
            derivatives are asked for. Positions that were not made by `maxk` are compared with the width on a CPU; on a
            GPU, which would have to be waited for, they are not.
    """
    given(graph)
    if isinstance(rows, Tensor):
        return spmm(graph, rows)
    if how != "auto":
        find(how)
    _fits(graph, rows)
    check.backward_only(rows.values, graph.value)
    rows = CBSR(_cast(rows.values), rows.positions.contiguous(), rows.width)
    if torch.compiler.is_compiling():
        work = _prepare(graph, rows, how)
    else:
        strict = torch.are_deterministic_algorithms_enabled()
        kind = rows.values.shape[1], rows.values.dtype, rows.positions.dtype, rows.width
        work = graph.kept(("maxk", how, len(WAYS), strict, kind), lambda: _prepare(graph, rows, how))
    plan = Plan(graph.indptr, graph.indices, graph.value, *work.transposed)
    if only_computed(rows.values, graph.value):
        return WAYS[work.how].forward(plan, work.forward, *rows)
    filled = (*work.forward, None, None, None)[:3] + (*work.backward, None, None, None)[:3]
    out: Tensor = torch.ops.planish_maxk.aggregate(*plan, *filled, *rows, work.how, work.back)
    return out


class _Prepared(NamedTuple):
    """The ways of both passes, how they divide the work, and the rest of the graph's plan."""

    how: str
    back: str
    forward: Work
    backward: Work
    transposed: tuple[Tensor, Tensor, Tensor]


def _prepare(graph: Graph, rows: CBSR, how: str) -> _Prepared:
    if rows.values.is_cuda and not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing():
        raise DataError(
            "aggregate: the first call for a graph, k and type prepares kernels, which a CUDA graph cannot capture; "
            "valid: one call, and its backward pass, before"
        )
    how, back = choose(graph, rows) if how == "auto" else (how, how)
    for name in {how, back}:
        if not find(name).usable(rows.values, rows.width):
            raise DataError(
                f"aggregate: how = {name!r} {NEEDS.get(name, 'does not run here')}; valid: auto, dense, entries"
            )
    forward = WAYS[how].divide(graph, rows.values, rows.width)
    backward = WAYS[back].division(backward=True)(graph, rows.values, rows.width)
    return _Prepared(how, back, forward, backward, graph.plan()[3:])


def choose(graph: Graph, rows: CBSR) -> tuple[str, str]:
    """What ``how="auto"`` stands for, in the forward and in the backward pass.

    Without a kernel for these rows (CPU, float64) it is ``"dense"``. On a GPU the ways are timed once for this graph, k,
    width and type, each pass by itself, and the fastest is kept. Nothing is timed where
    `torch.use_deterministic_algorithms` asks for results that repeat, nor inside `torch.compile`: there the first
    kernel runs, the first whose results repeat in the one case.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    usable = [
        name
        for name, way in WAYS.items()
        if name not in ("dense", "entries")
        and way.usable(rows.values, rows.width)
        and (way.deterministic or not strict)
    ]
    if not usable:
        return "dense", "dense"
    if strict or torch.compiler.is_compiling() or not rows.values.is_cuda:
        return usable[0], usable[0]  # the interpreter is for checking kernels, not for timing them
    operands = rows.values.detach(), rows.positions, rows.width
    forward, backward = _dispatchers("dense", *usable)
    back = backward.choose(graph, *operands).name
    for name in usable:
        if name != back and (forget := WAYS[name].forget):
            forget(graph, rows.values, rows.width)
    return forward.choose(graph, *operands).name, back


@cache
def _dispatchers(*names: str) -> tuple[Dispatcher, Dispatcher]:
    different: dict[Any, str] = {}  # some ways differ in the backward pass alone
    for name in names:
        different.setdefault((WAYS[name].forward, WAYS[name].divide), name)
    return (
        Dispatcher("maxk forward", [_forward(name) for name in different.values()]),
        Dispatcher("maxk backward", [_backward(name) for name in names]),
    )


def _compressed(name: str, rows: Any) -> None:
    if not isinstance(rows, CBSR):
        raise DataError(
            f"{name}: rows of type {type(rows).__name__}; valid: CBSR, which maxk makes of features"
        )


def _fits(graph: Graph, rows: CBSR) -> None:
    _compressed("aggregate", rows)
    width, shape = rows.width, list(rows.values.shape)
    if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= topk.MAX_WIDTH:
        raise DataError(f"aggregate: width = {width!r}; valid: a whole number from 1 to {topk.MAX_WIDTH}")
    if len(shape) != 2 or not 1 <= shape[1] <= width:
        raise DataError(
            f"aggregate: values of shape {shape}; valid: [{graph.num_cols}, k], k from 1 to {width}"
        )
    if rows.values.dtype not in check.FEATURES:
        raise DataError(
            f"aggregate: values are {check.short(rows.values.dtype)}; valid: float16, bfloat16, float32, float64"
        )
    if rows.values.shape[0] != graph.num_cols:
        raise DataError(
            f"aggregate: {rows.values.shape[0]} rows; valid: {graph.num_cols}, the graph's number of source nodes"
        )
    if rows.values.shape != rows.positions.shape:
        raise DataError(
            f"aggregate: values {list(rows.values.shape)} and positions {list(rows.positions.shape)}; valid: equal shapes"
        )
    if rows.positions.dtype != topk.position_type(rows.width):
        wanted = check.short(topk.position_type(rows.width))
        raise DataError(
            f"aggregate: positions are {check.short(rows.positions.dtype)}; valid: {wanted} at width {rows.width}"
        )
    for name, tensor in (("values", rows.values), ("positions", rows.positions)):
        if tensor.device != graph.device:
            raise DataError(
                f"aggregate: {name} on {tensor.device}, the graph is on {graph.device}; valid: one device"
            )


def _cast(x: Tensor) -> Tensor:
    """Contiguous, and of autocast's type where it is on, as the operand of a dense product would be."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return x.contiguous()


def _forward(how: str) -> Candidate:
    def prepare(graph: Graph, values: Tensor, index: Tensor, width: int) -> Program:
        plan, work, run = graph.plan(), WAYS[how].divide(graph, values, width), WAYS[how].forward
        return lambda: run(plan, work, values, index, width)

    return Candidate(how, prepare, WAYS[how].deterministic)


def _backward(how: str) -> Candidate:
    def prepare(graph: Graph, values: Tensor, index: Tensor, width: int) -> Program:
        plan, work = graph.plan(), WAYS[how].division(backward=True)(graph, values, width)
        run = WAYS[how].backward
        grad = values.new_ones(graph.num_rows, width)
        return lambda: run(plan, work, grad, values, index, (True, False))[0].to(values.dtype)

    return Candidate(how, prepare, WAYS[how].deterministic)
