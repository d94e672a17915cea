"""Labelled graphs in ``.npz`` files without pickles: CSR structure, sparse features, labels and a split."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph.generate import Labelled
from planish_graph.graph import Graph

NEEDED = ("indptr", "indices", "labels", "train_idx", "val_idx", "test_idx")


def read_labelled(path: Path, *, dense: bool = True) -> Labelled:
    """The graph in ``path``: ``indptr``, ``indices``, ``labels``, ``train_idx``, ``val_idx``, ``test_idx``, and features
    in CSR as ``x_indptr``, ``x_indices``, ``x_dim`` and, unless all are one, ``x_values``.

    A file without features gives x [N, 0]. With ``dense=False`` x is a torch sparse CSR tensor.

    Raises:
        DataError: the file is missing, damaged or lacks an array.
    """
    if not zipfile.is_zipfile(path):
        raise DataError(f"graph {path}: {'no .npz archive' if Path(path).is_file() else 'no such file'}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            data = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"graph {path}: {error}") from None
    needed = (*NEEDED, "x_indices", "x_dim") if "x_indptr" in data else NEEDED
    if missing := [name for name in needed if name not in data]:
        raise DataError(f"graph {path}: no array {missing[0]!r} (has: {', '.join(sorted(data))})")
    for name, array in data.items():
        if name in (*needed, "x_values") and array.dtype.kind not in "fiub":
            raise DataError(f"graph {path}: {name} is {array.dtype}; valid: numbers")
    indptr = torch.from_numpy(data["indptr"].astype(np.int64))
    graph = Graph(indptr, torch.from_numpy(data["indices"].astype(np.int64)))
    if data["labels"].shape != (graph.num_rows,):
        raise DataError(
            f"graph {path}: labels have the shape {list(data['labels'].shape)}; valid: [{graph.num_rows}]"
        )
    return Labelled(
        graph,
        _features(data, graph.num_rows, dense),
        torch.from_numpy(data["labels"].astype(np.int64)),
        *(_mask(data[name], graph.num_rows, f"graph {path}: {name}") for name in NEEDED[3:]),
    )


def _features(data: dict[str, np.ndarray], nodes: int, dense: bool) -> Tensor:
    if "x_indptr" not in data:
        return torch.zeros(nodes, 0)
    indices = data["x_indices"].astype(np.int64)
    values = torch.from_numpy(data.get("x_values", np.ones(len(indices))).astype(np.float32))
    matrix = Graph(
        torch.from_numpy(data["x_indptr"].astype(np.int64)),
        torch.from_numpy(indices),
        values,
        int(data["x_dim"]),
    )
    if dense:
        return matrix.to_dense(torch.float32)
    return torch.sparse_csr_tensor(
        matrix.indptr, matrix.indices, values, (nodes, matrix.num_cols), check_invariants=True
    )


def _mask(members: np.ndarray, nodes: int, what: str) -> Tensor:
    if len(outside := members[(members < 0) | (members >= nodes)]):
        raise DataError(f"{what}: node {int(outside[0])}; valid: 0 to {nodes - 1}")
    mask = torch.zeros(nodes, dtype=torch.bool)
    mask[torch.from_numpy(members.astype(np.int64))] = True
    return mask
