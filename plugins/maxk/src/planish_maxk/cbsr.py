"""What users call: `maxk`, `drop`, `aggregate`, on compressed rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from planish.errors import DataError
from planish_graph.dispatch import Candidate, Dispatcher, Program
from planish_graph.graph import Graph
from planish_graph.partition import segments
from planish_graph.spmm import spmm
from planish_maxk import kernels, ops, topk  # noqa: F401 - ops registers the operators
from planish_maxk.ways import WAYS, find


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
        return topk.expand(self.values, self.positions, self.width)


def maxk(x: Tensor, k: int) -> CBSR:
    """Keep the k largest entries of every row of x [N, D]; see `planish_maxk.topk.top_k` for ties and NaN.

    Kept negative values stay negative; k = D keeps everything. Differentiable once: the gradient passes where an entry
    was kept, positions have none, and a second backward raises. Under autocast x is cast to its type first. Training
    and evaluation do the same.

    Raises:
        DataError: k is not within 1 .. D, D is above 65,536, or x is no floating-point matrix.
    """
    topk.checked(x, k)
    values, index = torch.ops.planish_maxk.top_k(_cast(x), k)
    return CBSR(values, index, x.shape[1])


def drop(rows: CBSR, p: float, training: bool = True) -> CBSR:
    """Dropout on the kept entries: each is zeroed with probability ``p``, the others are scaled by 1 / (1 - p)."""
    return rows._replace(values=F.dropout(rows.values, p, training))


def aggregate(graph: Graph, rows: CBSR | Tensor, how: str = "auto") -> Tensor:
    """A x for compressed rows x: [M, D] in CBSR to [N, D]; a dense tensor goes to `planish_graph.spmm.spmm`.

    Differentiable once in the kept values and in the graph's values.

    Args:
        how: one of `planish_maxk.ways.WAYS`: ``"dense"`` expands the rows and takes torch's CSR product, ``"triton"``
            the kernels, ``"entries"`` the float64 reference; ``"auto"``: see `choose`.

    Raises:
        DataError: the rows do not fit the graph or lie on another device, or ``how`` is not possible here.
    """
    if isinstance(rows, Tensor):
        return spmm(graph, rows)
    _fits(graph, rows)
    rows = rows._replace(values=_cast(rows.values))
    if how == "auto":
        how = choose(graph, rows)
    out: Tensor = torch.ops.planish_maxk.aggregate(*_plan(graph, how), *rows, how)
    return out


def choose(graph: Graph, rows: CBSR) -> str:
    """What ``how="auto"`` stands for.

    Without a kernel for these rows (CPU, float64) it is ``"dense"``, and also where `torch.use_deterministic_algorithms`
    asks for results that repeat. On a GPU the ways are timed once for this graph, k, width and type, and the fastest is
    kept; inside `torch.compile` nothing is timed and the first kernel runs.
    """
    kernel = [n for n, way in WAYS.items() if n not in ("dense", "entries") and way.usable(rows.values)]
    if not kernel or torch.are_deterministic_algorithms_enabled():
        return "dense"
    if torch.compiler.is_compiling() or not rows.values.is_cuda:
        return kernel[0]  # the interpreter is for checking kernels, not for timing them
    candidates = [_candidate(name) for name in ("dense", *kernel)]
    dispatcher = Dispatcher("maxk forward", candidates)
    return dispatcher.choose(graph, rows.values.detach(), rows.positions, rows.width).name


def _fits(graph: Graph, rows: CBSR) -> None:
    if rows.values.shape[0] != graph.num_cols:
        raise DataError(
            f"aggregate: {rows.values.shape[0]} rows; valid: {graph.num_cols}, the graph's number of source nodes"
        )
    if rows.values.shape != rows.positions.shape:
        raise DataError(
            f"aggregate: values {list(rows.values.shape)} and positions {list(rows.positions.shape)}; valid: equal shapes"
        )
    for name, tensor in (("values", rows.values), ("positions", rows.positions)):
        if tensor.device != graph.device:
            raise DataError(
                f"aggregate: {name} on {tensor.device}, the graph is on {graph.device}; valid: one device"
            )


def _plan(graph: Graph, how: str) -> tuple[Tensor | None, ...]:
    if how == "triton" and not kernels.AVAILABLE:
        raise DataError(
            "aggregate: how = 'triton' needs triton, which is not installed; valid: auto, dense, entries"
        )
    length = find(how).segment
    if length == 0:
        return (*graph.plan(), None, None, None)
    cut = segments(graph, length, empty=False)
    return (*graph.plan(), cut.row, cut.start, cut.count)


def _cast(x: Tensor) -> Tensor:
    """Contiguous, and of autocast's type where it is on, as the operand of a dense product would be."""
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return x.contiguous()


def _candidate(how: str) -> Candidate:
    def prepare(graph: Graph, values: Tensor, index: Tensor, width: int) -> Program:
        plan = _plan(graph, how)
        return lambda: torch.ops.planish_maxk.aggregate(*plan, values, index, width, how)

    return Candidate(how, prepare, WAYS[how].deterministic)
