"""Graphs to measure on: stand-ins with a given degree sequence, and planted communities with labels.

A stand-in says nothing about accuracy, and with fully random columns (``locality=0``) it is the worst case for caches:
measure at 0 and at 0.5, real graphs lie between.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from planish.errors import DataError
from planish_graph.convert import from_edges
from planish_graph.graph import Graph, row_order, row_pointer


def from_degrees(degrees: Tensor, *, locality: float = 0.0, block: int = 2048, seed: int = 0) -> Graph:
    """A square graph whose row i has exactly ``degrees[i]`` entries, duplicates kept, columns sorted in each row.

    Columns are drawn in proportion to degree (Chung and Lu), or, with probability ``locality``, uniformly from the
    row's own block of ``block`` consecutive ids. Index type int32 while entries fit, else int64. The graph is made on
    the device of ``degrees``; one seed gives one graph there, but another one on another kind of device.

    Raises:
        DataError: negative or no degrees, or a parameter out of range.
    """
    if degrees.dim() != 1 or len(degrees) == 0 or int(degrees.min()) < 0:
        raise DataError("degrees: valid: one dimension, at least one row, no negative numbers")
    if not 0 <= locality <= 1:
        raise DataError(f"locality = {locality}; valid: 0 to 1")
    if block < 1:
        raise DataError(f"block = {block}; valid: 1 or more")
    degrees, device = degrees.to(torch.int64), degrees.device
    nodes, generator = len(degrees), torch.Generator(device).manual_seed(seed)
    indptr = row_pointer(degrees, torch.int64)
    entries = int(indptr[-1])
    row = torch.repeat_interleave(degrees, output_size=entries)
    if entries:
        mass = torch.randint(0, entries, (entries,), generator=generator, device=device)
        column = torch.searchsorted(indptr[1:], mass, right=True)
        first = row // block * block
        width = (nodes - first).clamp_max(block)
        share = torch.rand(entries, generator=generator, dtype=torch.float64, device=device)
        local = torch.rand(entries, generator=generator, device=device) < locality
        column = torch.where(local, first + (share * width).long(), column)
        column = column[row_order(row, column)]
    else:
        column = row
    index = torch.int32 if entries <= torch.iinfo(torch.int32).max else torch.int64
    return Graph(indptr.to(index), column.to(index))


def histogram_names(path: Path) -> list[str]:
    """The graphs in a file of degree histograms (arrays ``NAME__degree`` and ``NAME__count``)."""
    with np.load(path, allow_pickle=False) as archive:
        return sorted({name.removesuffix("__degree") for name in archive.files if name.endswith("__degree")})


def histogram_degrees(path: Path, name: str, *, seed: int = 0) -> Tensor:
    """[N] int64 degrees of the named graph, in an order drawn from ``seed``.

    Raises:
        DataError: the file has no such graph.
    """
    names = histogram_names(path)
    if name not in names:
        raise DataError(f"degree histogram {name!r} is not one of {', '.join(names)}")
    with np.load(path, allow_pickle=False) as archive:
        degrees = np.repeat(archive[f"{name}__degree"], archive[f"{name}__count"]).astype(np.int64)
    return torch.from_numpy(np.random.default_rng(seed).permutation(degrees))


def lognormal_degrees(nodes: int, entries: int, largest: int, sigma: float, *, seed: int = 0) -> Tensor:
    """[nodes] int64 degrees from 1 to ``largest`` with a log-normal spread and about ``entries`` in all, for graphs
    whose histogram is not known.

    Raises:
        DataError: the numbers allow no such sequence.
    """
    if not (nodes >= 1 and largest >= 1 and nodes <= entries <= nodes * largest and sigma >= 0):
        raise DataError(
            f"degrees: {nodes} nodes, {entries} entries, largest {largest}, sigma {sigma}; "
            "valid: nodes <= entries <= nodes * largest, sigma 0 or more"
        )
    weight = np.exp(sigma * np.random.default_rng(seed).standard_normal(nodes))
    low, high = 0.0, float(entries * largest)
    for _ in range(200):  # the sum rises with the factor, so that it can be bisected
        factor = (low + high) / 2
        degrees = np.clip(np.rint(factor * weight), 1, largest)
        low, high = (low, factor) if degrees.sum() > entries else (factor, high)
        if degrees.sum() == entries or not low < (low + high) / 2 < high:
            break
    return torch.from_numpy(np.clip(np.rint(low * weight), 1, largest).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Labelled:
    """A graph for node classification: x [N, F], y [N] (-1: no label), and boolean masks [N]."""

    graph: Graph
    x: Tensor
    y: Tensor
    train: Tensor
    validation: Tensor
    test: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


def planted_communities(
    nodes: int = 1000,
    communities: int = 5,
    *,
    average_degree: float = 10.0,
    homophily: float = 0.8,
    features: int = 32,
    signal: float = 1.0,
    seed: int = 0,
) -> Labelled:
    """An undirected graph whose communities are the labels (planted partition): both directions stored, no loops.

    ``round(nodes * average_degree / 2)`` edges are drawn; each joins two members of one community with probability
    ``homophily``, and of two communities otherwise. Loops and duplicates are dropped, so that a little fewer remain.
    Features are the community's direction, of length ``signal``, plus unit Gaussian noise. Nodes of a community have
    consecutive ids, so that neighbours are local, as in graphs stored in crawl order. Splits are 60/20/20.

    Raises:
        DataError: a parameter out of range.
    """
    rules = [
        ("communities", communities, 2 <= communities <= nodes, f"2 to {nodes}, the number of nodes"),
        ("average_degree", average_degree, 0 < average_degree < nodes, f"above 0, below {nodes}"),
        ("homophily", homophily, 0 <= homophily <= 1, "0 to 1"),
        ("features", features, features >= 1, "1 or more"),
    ]
    for name, value, valid, choices in rules:
        if not valid:
            raise DataError(f"{name} = {value}; valid: {choices}")
    rng = np.random.default_rng(seed)
    y = np.arange(nodes) * communities // nodes
    start = np.searchsorted(y, np.arange(communities + 1))
    edges = round(nodes * average_degree / 2)
    source = rng.integers(0, nodes, edges)
    first, end = start[y[source]], start[y[source] + 1]
    inside = first + (rng.random(edges) * (end - first)).astype(np.int64)
    outside = (rng.random(edges) * (nodes - (end - first))).astype(np.int64)
    outside += np.where(outside >= first, end - first, 0)
    target = np.where(rng.random(edges) < homophily, inside, outside)
    pairs = np.stack([np.minimum(source, target), np.maximum(source, target)])
    pairs = np.unique(pairs[:, source != target], axis=1)
    both = np.concatenate([pairs, pairs[::-1]], axis=1)
    direction = rng.standard_normal((communities, features))
    direction *= signal / np.linalg.norm(direction, axis=1, keepdims=True)
    x = direction[y] + rng.standard_normal((nodes, features))
    part = torch.from_numpy(rng.permutation(nodes)) / nodes
    return Labelled(
        from_edges(torch.from_numpy(both), nodes),
        torch.from_numpy(x.astype(np.float32)),
        torch.from_numpy(y.astype(np.int64)),
        part < 0.6,
        (part >= 0.6) & (part < 0.8),
        part >= 0.8,
    )
