"""Everything users hold a graph in, as a `Graph`: torch, PyG, SciPy, dgl."""

from __future__ import annotations

import sys
from operator import index
from typing import Any

import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph import check
from planish_graph.graph import Graph, row_order, row_pointer

ACCEPTED = (
    "a Graph, a torch sparse tensor (CSR, CSC, COO), an edge_index [2, E], a PyG Data or EdgeIndex, "
    "a SciPy sparse matrix, a dgl graph"
)
DGL_WEIGHTS = ("w", "weight")
"""Edge data of a dgl graph that are taken as its weights."""


def as_graph(
    source: Any, *, size: tuple[int, int] | int | None = None, weight: Tensor | None = None
) -> Graph:
    """The graph that ``source`` holds. Matrices are taken as they are (row = destination); edge lists run from source
    to destination, as in PyG and dgl, and become the matrix with A[destination, source].

    Args:
        source: see `ACCEPTED`.
        size: for an ``edge_index``: number of nodes, or (destinations, sources). By default the largest index + 1. What
            has a size of its own must agree with it.
        weight: [E] edge weights for an ``edge_index``, or instead of those of PyG data and dgl graphs.

    Raises:
        DataError: one line that says what does not fit.
    """
    if _is_edge_index_class(source):
        return _from_pyg_edge_index(source, size, weight)
    if isinstance(source, Tensor) and source.layout == torch.strided:
        return from_edges(source, size, weight)
    if _of(source, "torch_geometric"):
        return _from_pyg_data(source, size, weight)
    if _of(source, "dgl"):
        return _agrees(_from_dgl(source, weight), size)
    if isinstance(source, Graph):
        graph = source
    elif isinstance(source, Tensor):
        graph = _from_torch_sparse(source)
    elif _of(source, "scipy"):
        graph = _from_scipy(source)
    else:
        raise DataError(f"graph: {type(source).__name__} is not accepted; valid: {ACCEPTED}")
    if weight is not None:
        raise DataError(
            "weight: given with a matrix, which has values of its own; valid: with an edge_index, PyG data or a dgl "
            "graph (`Graph.with_values` exchanges those of a matrix)"
        )
    return _agrees(graph, size)


def _agrees(graph: Graph, size: tuple[int, int] | int | None) -> Graph:
    sides = (graph.num_rows, graph.num_cols)
    if size is not None and _sides(size) not in (sides, sides[:1] * 2, sides[1:] * 2):
        raise DataError(f"size = {size}: the graph is {sides[0]} x {sides[1]}; valid: that, or nothing")
    return graph


def _sides(size: tuple[int, int] | int) -> tuple[int, int]:
    """(destinations, sources) of a ``size``."""
    try:
        rows, cols = map(index, size) if isinstance(size, tuple | list) else (index(size), index(size))
    except (TypeError, ValueError):
        raise DataError(f"size = {size!r}; valid: a number of nodes, or (destinations, sources)") from None
    return rows, cols


def from_edges(
    edge_index: Tensor, size: tuple[int, int] | int | None = None, weight: Tensor | None = None
) -> Graph:
    """Edges [2, E] (source, destination) as a graph; entries sorted by row, then by column, duplicates kept.

    Raises:
        DataError: a wrong shape or type, or an index outside ``size``.
    """
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise DataError(
            f"edge_index: shape {list(edge_index.shape)}; valid: [2, E], sources then destinations"
        )
    if edge_index.dtype not in check.INDEX:
        raise DataError(f"edge_index: {check.short(edge_index.dtype)}; valid: int32, int64")
    source, destination = edge_index[0], edge_index[1]
    if size is None:
        size = int(edge_index.max()) + 1 if edge_index.numel() else 0
    rows, cols = _sides(size)
    check.fits(edge_index.dtype, rows, cols, edge_index.shape[1])
    check.in_range("destination", destination, rows)
    check.in_range("source", source, cols)
    if weight is not None and not isinstance(weight, Tensor):
        raise DataError(
            f"edge weights: {type(weight).__name__}; valid: a torch tensor [{edge_index.shape[1]}]"
        )
    if weight is not None and weight.device != edge_index.device:
        raise DataError(
            f"edge weights: on {weight.device}, edge_index on {edge_index.device}; valid: one device"
        )
    order = row_order(destination, source)
    counts = torch.bincount(destination, minlength=rows)
    if weight is not None and weight.shape == source.shape:
        weight = weight[order]  # another shape is refused by Graph
    return Graph(row_pointer(counts, edge_index.dtype), source[order], weight, cols)


def _from_torch_sparse(matrix: Tensor) -> Graph:
    if matrix.dim() != 2:
        raise DataError(f"graph: a sparse tensor of {matrix.dim()} dimensions; valid: 2")
    rows, cols = matrix.shape
    if matrix.layout == torch.sparse_csr:
        return Graph(matrix.crow_indices(), matrix.col_indices(), matrix.values(), cols)
    if matrix.layout == torch.sparse_csc:
        return Graph(matrix.ccol_indices(), matrix.row_indices(), matrix.values(), rows).transpose()
    if matrix.layout == torch.sparse_coo:
        if matrix.requires_grad:  # gradients reach the values of a coalesced tensor only
            matrix = matrix.coalesce()
            return from_edges(matrix.indices().flip(0), (rows, cols), matrix.values())
        indices = matrix._indices()  # as stored: duplicates stay, nothing is summed behind the user's back
        return from_edges(indices.flip(0), (rows, cols), matrix._values())
    raise DataError(f"graph: layout {matrix.layout}; valid: {ACCEPTED}")


def _from_scipy(matrix: Any) -> Graph:
    import numpy as np

    if not hasattr(matrix, "tocsr") or matrix.ndim != 2:
        raise DataError(
            f"graph: SciPy {type(matrix).__name__} is not a sparse matrix of 2 dimensions; valid: {ACCEPTED}"
        )
    # A COO matrix is read entry by entry, because tocsr() would add up duplicates.
    if matrix.format == "coo":
        pair = torch.from_numpy(np.stack([matrix.col, matrix.row]))
        return from_edges(pair, tuple(matrix.shape), _floating(matrix.data))
    csr = matrix.tocsr()
    return Graph(torch.tensor(csr.indptr), torch.tensor(csr.indices), _floating(csr.data), csr.shape[1])


def _floating(values: Any) -> Tensor:
    """A copy, because nobody would see when SciPy writes to its own. Integers and booleans, which SciPy matrices often
    hold, become float32, and what is wider than float64 becomes that."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"graph: SciPy values are {values.dtype}; valid: real numbers")
    if values.dtype.kind != "f":
        return torch.tensor(values).float()
    return torch.tensor(values.astype("float64") if values.dtype.itemsize > 8 else values)


def _from_pyg_data(data: Any, size: tuple[int, int] | int | None, weight: Tensor | None) -> Graph:
    if hasattr(data, "edge_types"):
        raise DataError(
            "graph: PyG HeteroData has several edge types; give one: data['src', 'rel', 'dst'].edge_index"
        )
    if getattr(data, "edge_index", None) is None:
        matrix = getattr(data, "adj_t", None)
        if matrix is None:
            raise DataError("graph: the PyG data has neither edge_index nor adj_t")
        return as_graph(matrix, size=size, weight=weight)
    if weight is None:
        weight = getattr(data, "edge_weight", None)
    return as_graph(data.edge_index, size=data.num_nodes if size is None else size, weight=weight)


def _from_pyg_edge_index(edges: Any, size: tuple[int, int] | int | None, weight: Tensor | None) -> Graph:
    """PyG's sparse_size is (sources, destinations): the matrix of (first row, second row)."""
    sources, destinations = edges.sparse_size()
    if size is None and sources is not None and destinations is not None:
        size = (destinations, sources)
    return from_edges(edges.as_tensor(), size, weight)


def _from_dgl(graph: Any, weight: Tensor | None) -> Graph:
    if len(graph.canonical_etypes) != 1:
        raise DataError(
            f"graph: the dgl graph has {len(graph.canonical_etypes)} edge types; give one: graph[etype]"
        )
    source, destination = graph.edges(order="eid")
    names = [name for name in DGL_WEIGHTS if name in graph.edata]
    if weight is None and names:
        weight = graph.edata[names[0]]
    size = (graph.num_dst_nodes(), graph.num_src_nodes())
    return from_edges(torch.stack([source, destination]), size, weight)


def _is_edge_index_class(source: Any) -> bool:
    return (
        isinstance(source, Tensor) and type(source).__name__ == "EdgeIndex" and _of(source, "torch_geometric")
    )


def _of(source: Any, library: str) -> bool:
    """Whether an object comes from a library, without importing it."""
    return library in sys.modules and any(
        base.__module__.partition(".")[0] == library for base in type(source).__mro__
    )
