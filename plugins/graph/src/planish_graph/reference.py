"""Products with a CSR matrix in plain torch: what every kernel is compared with, and the slower path without one."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Most numbers that a gathered piece may hold, so that memory does not grow with E * D."""


def csr_product(indptr: Tensor, indices: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """A x through torch's own CSR product (MKL, cuSPARSE). 16-bit numbers are multiplied and added in fp32, because
    torch's 16-bit product is missing on the CPU and inaccurate on CUDA.

    Args:
        indptr, indices, value: A [N, M]. x: [M, D].

    Returns:
        [N, D] of x's type.
    """
    rows = len(indptr) - 1
    if x.numel() == 0 or len(indices) == 0:
        return x.new_zeros(rows, x.shape[1])
    if x.is_cuda and len(indices) > rows * len(x):
        return bag_product(indptr, indices, value, x)  # more duplicates than cuSPARSE takes
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if value is None:
        value = torch.ones(1, dtype=exact, device=x.device).expand(len(indices))
    # Autocast stays in force inside an operator and would turn the product into a 16-bit one again.
    with warnings.catch_warnings(), torch.autocast(x.device.type, enabled=False):
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(
            indptr, indices, value.to(exact).contiguous(), (rows, x.shape[0]), check_invariants=False
        )
        return (matrix @ x.to(exact)).to(x.dtype)


def gathered_product(indptr: Tensor, indices: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """A x entry by entry in float64, in chunks: slow, and independent of any sparse library. Same shapes."""
    rows = _rows(indptr, len(indices))
    out = torch.zeros(len(indptr) - 1, x.shape[1], dtype=torch.float64, device=x.device)
    step = max(1, CHUNK // max(1, x.shape[1]))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        gathered = x[indices[part].long()].double()
        if value is not None:
            gathered *= value[part, None].double()
        out.index_add_(0, rows[part], gathered)
    return out.to(x.dtype)


def bag_product(indptr: Tensor, indices: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """A x through torch's embedding bag with weights: on a CPU a fraction of the time of the CSR product. Same shapes;
    16-bit numbers are multiplied and added in fp32."""
    rows = len(indptr) - 1
    if x.numel() == 0 or len(indices) == 0:
        return x.new_zeros(rows, x.shape[1])
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    if value is None:
        value = torch.ones(1, dtype=exact, device=x.device).expand(len(indices))
    with torch.autocast(x.device.type, enabled=False):
        out = torch.nn.functional.embedding_bag(
            indices, x.to(exact), indptr[:-1], mode="sum", per_sample_weights=value.to(exact).contiguous()
        )
    return out.to(x.dtype)


def default_product(indptr: Tensor, indices: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """A x by what is usually faster in plain torch: the embedding bag on a CPU, the CSR product elsewhere, whose results
    do not repeat bit by bit on CUDA; where they must, the embedding bag."""
    bag = x.device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    product = bag_product if bag else csr_product
    return product(indptr, indices, value, x)


def sampled_product(indptr: Tensor, indices: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """[E] inner products of ``grad`` [N, D] and ``x`` [M, D] at the entries of A, in chunks (SDDMM)."""
    rows = _rows(indptr, len(indices))
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    out = torch.empty(len(indices), dtype=exact, device=x.device)
    step = max(1, CHUNK // max(1, x.shape[1]))
    for start in range(0, len(indices), step):
        part = slice(start, start + step)
        out[part] = (grad[rows[part]].to(exact) * x[indices[part].long()].to(exact)).sum(1)
    return out


def _rows(indptr: Tensor, edges: int) -> Tensor:
    return torch.repeat_interleave(indptr.diff().long(), output_size=edges)
