"""Aggregation matrices for networks that are given an ``edge_index`` at every call: built once, found again."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
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
_lock = threading.RLock()  # a tensor may die, and its matrix go, at any moment in the thread that holds it


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

    For tensors it is kept for as long as they live and are not written to, and of the last `KEPT` of them. Weights that
    require gradients are normalised anew at every call, so that gradients reach them.
    """
    tensors = (edges,) if weight is None else (edges, weight)
    live = weight is not None and weight.requires_grad
    if live or not all(isinstance(t, Tensor) and not t.is_inference() for t in tensors):
        return _made(edges, nodes, how, weight, self_loops, loop)
    key = (*map(id, tensors), nodes, how, self_loops, loop)
    versions = tuple(t._version for t in tensors)
    with _lock:
        found = _found.get(key)
        if found and found.versions == versions and all(map(_is, found.tensors, tensors)):
            _found.move_to_end(key)
            return found.graph
    with torch.inference_mode(False), torch.no_grad():
        graph = _made(edges, nodes, how, weight, self_loops, loop)
    forget = partial(_forget, key)
    with _lock:
        _found[key] = _Found(tuple(weakref.ref(t, forget) for t in tensors), versions, graph)
        _found.move_to_end(key)
        while len(_found) > KEPT:
            _found.popitem(last=False)
    return graph


def _is(reference: weakref.ref[Tensor], tensor: Tensor) -> bool:
    return reference() is tensor


def _forget(key: Hashable, dead: weakref.ref[Tensor]) -> None:
    """Free the matrix of a tensor that is gone, unless others have taken its place."""
    with _lock:
        found = _found.get(key)
        if found and any(reference is dead for reference in found.tensors):
            del _found[key]


def _made(
    edges: Any, nodes: int, how: Aggregation, weight: Tensor | None, self_loops: bool, loop: float
) -> Graph:
    return normalised(as_graph(edges, size=nodes, weight=weight), how, self_loops=self_loops, loop=loop)
