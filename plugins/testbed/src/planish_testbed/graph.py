"""Synthetic node classification: a degree-corrected stochastic block model (Karrer and Newman, 2011).

Every undirected edge draws one end in proportion to a power-law weight, then its other end, again by weight, inside the
same community with probability `homophily` and outside it otherwise. Features are a class mean plus Gaussian noise.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.errors import DataError

from .hashing import sha256_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Graph:
    """An undirected graph with labelled nodes.

    `edge_index` [2, E] int64 holds both directions of every edge, sorted by source then target, without self loops or
    duplicates; `features` [N, F] float32; `labels` [N] int64; the three masks [N] bool cover the nodes without overlap.
    """

    edge_index: NDArray[np.int64]
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    train_mask: NDArray[np.bool_]
    validation_mask: NDArray[np.bool_]
    test_mask: NDArray[np.bool_]

    @property
    def nodes(self) -> int:
        return len(self.labels)

    def degrees(self) -> NDArray[np.int64]:
        """[N] int64, the number of neighbours of each node; isolated nodes have 0."""
        return np.bincount(self.edge_index[0], minlength=self.nodes)

    def csr(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(row offsets [N + 1], column indices [E]) of the adjacency matrix."""
        return np.concatenate([[0], np.cumsum(self.degrees())]), self.edge_index[1]

    def normalised_adjacency(self) -> torch.Tensor:
        """D^-1/2 (A + I) D^-1/2 as a torch sparse CSR tensor [N, N] float32 (Kipf and Welling, 2017)."""
        import torch

        loops = np.arange(self.nodes)
        row = np.concatenate([self.edge_index[0], loops])
        column = np.concatenate([self.edge_index[1], loops])
        order = np.lexsort((column, row))
        row, column = row[order], column[order]
        scale = (self.degrees() + 1.0) ** -0.5
        offsets = np.concatenate([[0], np.cumsum(self.degrees() + 1)])
        values = (scale[row] * scale[column]).astype(np.float32)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                torch.from_numpy(offsets),
                torch.from_numpy(column),
                torch.from_numpy(values),
                size=(self.nodes, self.nodes),
                check_invariants=True,
            )

    def fingerprint(self) -> str:
        return sha256_of(
            edge_index=self.edge_index,
            features=self.features,
            labels=self.labels,
            train_mask=self.train_mask,
            validation_mask=self.validation_mask,
            test_mask=self.test_mask,
        )


def generate(
    nodes: int = 2000,
    classes: int = 5,
    average_degree: float = 10.0,
    homophily: float = 0.8,
    exponent: float = 2.5,
    feature_dim: int = 32,
    signal: float = 1.0,
    train_share: float = 0.5,
    validation_share: float = 0.25,
    seed: int = 0,
) -> Graph:
    """Draw a graph with exactly `round(nodes * average_degree / 2)` undirected edges.

    exponent:  of the power-law tail of the degrees; smaller is heavier.
    homophily: probability that a draw stays in its community; 1 / classes makes the structure worthless. The share
               of such edges comes out a little lower, since repeated draws, which are dropped, are mostly of this kind.
    signal:    length of a class mean against noise of unit variance in each feature; 0 makes the features worthless.
    Raises DataError where a value leaves no such graph.
    """
    _check(nodes, classes, average_degree, homophily, exponent, feature_dim, train_share, validation_share)
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(nodes) % classes)
    # Weights above sqrt(N) would ask for more edges between two hubs than the one that a simple graph has.
    weights = np.minimum(1 + rng.pareto(exponent - 1, nodes), np.sqrt(nodes))
    edge_index = _draw_edges(labels, weights, round(nodes * average_degree / 2), homophily, rng)

    means = rng.standard_normal((classes, feature_dim))
    means *= signal / np.linalg.norm(means, axis=1, keepdims=True)
    features = (means[labels] + rng.standard_normal((nodes, feature_dim))).astype(np.float32)

    place = rng.permutation(nodes)
    train = place < round(train_share * nodes)
    validation = ~train & (place < round((train_share + validation_share) * nodes))
    return Graph(edge_index, features, labels, train, validation, ~(train | validation))


def _draw_edges(
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    edges: int,
    homophily: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """[2, 2 * edges] int64, symmetric. Nodes are drawn by weight from the cumulative sum over nodes sorted by class."""
    nodes = len(labels)
    order = np.argsort(labels, kind="stable")
    cumulative = np.cumsum(weights[order])
    total = cumulative[-1]
    ends = cumulative[np.cumsum(np.bincount(labels)) - 1]
    starts = np.concatenate([[0.0], ends[:-1]])

    def node_at(mass: NDArray[np.float64]) -> NDArray[np.int64]:
        return order[np.minimum(np.searchsorted(cumulative, mass, side="right"), nodes - 1)]

    keys = np.empty(0, dtype=np.int64)
    for _ in range(50):
        wanted = edges - len(keys)
        if wanted <= 0:
            break
        draws = round(1.2 * wanted) + 16
        source = node_at(rng.random(draws) * total)
        start, end = starts[labels[source]], ends[labels[source]]
        inside = start + rng.random(draws) * (end - start)
        outside = rng.random(draws) * (total - (end - start))
        outside += np.where(outside >= start, end - start, 0)
        target = node_at(np.where(rng.random(draws) < homophily, inside, outside))
        low, high = np.minimum(source, target), np.maximum(source, target)
        keys = np.unique(np.concatenate([keys, (low * nodes + high)[low != high]]))
    if len(keys) < edges:
        raise DataError(
            f"average_degree asks for {edges} edges, which {nodes} nodes of these classes do not hold"
        )
    keys = rng.permutation(keys)[:edges]
    low, high = keys // nodes, keys % nodes
    both = np.sort(np.concatenate([low * nodes + high, high * nodes + low]))
    return np.stack([both // nodes, both % nodes])


def _check(
    nodes: int,
    classes: int,
    average_degree: float,
    homophily: float,
    exponent: float,
    feature_dim: int,
    train_share: float,
    validation_share: float,
) -> None:
    rules = [
        ("classes", classes, classes >= 2, "2 or more"),
        ("nodes", nodes, nodes >= 4 * classes, "4 or more a class"),
        ("average_degree", average_degree, 0 < average_degree <= nodes / 8, "above 0, at most nodes / 8"),
        ("homophily", homophily, 0 <= homophily <= 1, "0 to 1"),
        ("exponent", exponent, exponent > 1, "above 1"),
        ("feature_dim", feature_dim, feature_dim >= 1, "1 or more"),
        ("train_share", train_share, 0 < train_share < 1, "between 0 and 1"),
        (
            "validation_share",
            validation_share,
            0 <= validation_share < 1 - train_share,
            "0 to 1 - train_share",
        ),
    ]
    for name, value, valid, choices in rules:
        if not valid:
            raise DataError(f"{name} is {value}; valid: {choices}")
