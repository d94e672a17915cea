"""Aggregation matrices for networks that are given an ``edge_index`` at every call: built once, found again."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planish_graph.convert import as_graph
from planish_graph.graph import Graph
from planish_graph.normalise import Aggregation, normalised

KEPT = 16
"""Matrices kept; the one that was not used for longest goes first."""


@dataclass(frozen=True, slots=True)
class _Found:
    tensors: tuple[weakref.ref[Tensor], ...]
    versions: tuple[int, ...]
    graph: Graph


_found: OrderedDict[Hashable, _Found] = OrderedDict()


def matrix_of(
    edges: Any,
    nodes: int,
    how: Aggregation = "sum",
    *,
    weight: Tensor | None = None,
    self_loops: bool = False,
    loop: float = 1.0,
) -> Graph:
    """The matrix that ``how`` aggregates with, from edges in any accepted form; see `planish_graph.normalise.normalised`.

    For tensors it is kept for as long as they live and are not written to. Weights that require gradients are
    normalised anew at every call, so that gradients reach them.
    """
    tensors = (edges,) if weight is None else (edges, weight)
    live = weight is not None and weight.requires_grad
    if live or not all(isinstance(t, Tensor) and not t.is_inference() for t in tensors):
        return _made(edges, nodes, how, weight, self_loops, loop)
    key = (*map(id, tensors), nodes, how, self_loops, loop)
    versions = tuple(t._version for t in tensors)
    found = _found.get(key)
    if (
        found is None
        or found.versions != versions
        or any(r() is not t for r, t in zip(found.tensors, tensors, strict=True))
    ):
        with torch.inference_mode(False), torch.no_grad():
            graph = _made(edges, nodes, how, weight, self_loops, loop)
        found = _found[key] = _Found(tuple(weakref.ref(t) for t in tensors), versions, graph)
        while len(_found) > KEPT:
            _found.popitem(last=False)
    _found.move_to_end(key)
    return found.graph


def _made(
    edges: Any, nodes: int, how: Aggregation, weight: Tensor | None, self_loops: bool, loop: float
) -> Graph:
    return normalised(as_graph(edges, size=nodes, weight=weight), how, self_loops=self_loops, loop=loop)
