"""Aggregation of compressed rows in plain torch, forward and backward, in two ways.

Forward (row-wise product): y[i, index[j, t]] += a_ij values[j, t] over the entries (i, j) of A.
Backward (sampled outer product): grad_values[j, t] = sum over i of a_ij grad[i, index[j, t]], and for the weight of an
entry the inner product of the sampled gradient row with the kept values. Both read only k numbers an entry.
"""

from __future__ import annotations

import torch
from torch import Tensor

from planish_graph import spmm  # noqa: F401 - registers the operators
from planish_graph.graph import Plan
from planish_graph.reference import CHUNK
from planish_maxk.topk import expand


def through_dense(plan: Plan, values: Tensor, index: Tensor, width: int) -> Tensor:
    """y [N, width] as the product of A with the expanded rows, by the fastest of `planish_graph.dispatch.SPMM`: the
    path of the CPU, and the one that always works. It gathers width numbers an entry where a kernel gathers k."""
    out: Tensor = torch.ops.planish_graph.spmm(*plan, expand(values, index, width))
    return out


def through_dense_backward(plan: Plan, grad: Tensor, index: Tensor) -> Tensor:
    """[M, k] gradient of the kept values, through the product with the transposed matrix and a gather."""
    transposed = plan.t_indptr, plan.t_indices, plan.t_entry
    dense: Tensor = torch.ops.planish_graph.spmm_backward(*transposed, plan.value, grad)
    return dense.gather(1, index.long())


def entrywise(plan: Plan, values: Tensor, index: Tensor, width: int) -> Tensor:
    """y [N, width] entry by entry in float64, in chunks: what kernels do, one after the other. The reference."""
    rows = _rows(plan)
    out = torch.zeros((len(plan.indptr) - 1) * width, dtype=torch.float64, device=values.device)
    for part in _chunks(plan, index):
        source = plan.indices[part].long()
        place = rows[part, None] * width + _rows_of(index, source)
        out.index_add_(0, place.flatten(), (_weights(plan, part) * values[source].double()).flatten())
    return out.view(-1, width).to(values.dtype)


def entrywise_backward(plan: Plan, grad: Tensor, index: Tensor) -> Tensor:
    """[M, k] gradient of the kept values, entry by entry in float64."""
    rows, k = _rows(plan), index.shape[1]
    out = torch.zeros(index.numel(), dtype=torch.float64, device=grad.device)
    lanes = torch.arange(k, device=grad.device)
    for part in _chunks(plan, index):
        source = plan.indices[part].long()
        sampled = grad[rows[part]].gather(1, _rows_of(index, source)).double()
        out.index_add_(0, (source[:, None] * k + lanes).flatten(), (_weights(plan, part) * sampled).flatten())
    return out.view(-1, k).to(grad.dtype)


def entry_gradient(plan: Plan, grad: Tensor, values: Tensor, index: Tensor) -> Tensor:
    """[E] gradient of A's values: k multiply-adds an entry, in chunks."""
    rows = _rows(plan)
    exact = torch.float64 if values.dtype == torch.float64 else torch.float32
    out = torch.empty(len(plan.indices), dtype=exact, device=grad.device)
    for part in _chunks(plan, index):
        source = plan.indices[part].long()
        sampled = grad[rows[part]].gather(1, _rows_of(index, source))
        out[part] = (sampled.to(exact) * values[source].to(exact)).sum(1)
    return out


def _rows_of(index: Tensor, source: Tensor) -> Tensor:
    """[., k] int64 positions of the rows ``source``; torch cannot index uint16 on CUDA."""
    if index.dtype == torch.uint16:
        return index.view(torch.int16)[source].long() & 0xFFFF
    return index[source].long()


def _rows(plan: Plan) -> Tensor:
    return torch.repeat_interleave(plan.indptr.diff().long(), output_size=len(plan.indices))


def _chunks(plan: Plan, index: Tensor) -> list[slice]:
    step = max(1, CHUNK // max(1, index.shape[1]))
    return [slice(start, start + step) for start in range(0, len(plan.indices), step)]


def _weights(plan: Plan, part: slice) -> Tensor | float:
    return 1.0 if plan.value is None else plan.value[part, None].double()
