"""Test accuracy of MaxK and ReLU over k, on the same graphs, seeds and budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from planish_graph.convert import as_graph
from planish_graph.generate import Labelled
from planish_maxk.nets import GraphNet, Kind
from planish_maxk.rewrite import rewrite
from planish_maxk.training import Training

RELU = 0
"""Stands for the network as it is, where a k is asked for."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to train.

    Attributes:
        kind, width, blocks, dropout: of `planish_maxk.nets.GraphNet`.
        epochs, lr, weight_decay: of Adam, full batch. validate: epochs between two validations; the best one is kept.
    """

    kind: Kind = "sage"
    width: int = 64
    blocks: int = 2
    dropout: float = 0.5
    epochs: int = 40
    lr: float = 0.01
    weight_decay: float = 5e-4
    validate: int = 5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Mean and standard deviation over seeds, in per cent, and the single values."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def over_k(data: Labelled, ks: Sequence[int], seeds: Sequence[int], setting: Setting) -> dict[int, Accuracy]:
    """Accuracy for every k, and for ReLU under `RELU`. With one seed all start from the same weights."""
    return {k: Accuracy(tuple(train(data, k, seed, setting) for seed in seeds)) for k in (RELU, *ks)}


def train(data: Labelled, k: int, seed: int, setting: Setting) -> float:
    """Test accuracy in per cent of one network trained from ``seed``, at its best validation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = GraphNet(
            data.x.shape[1],
            data.classes,
            kind=setting.kind,
            width=setting.width,
            blocks=setting.blocks,
            dropout=setting.dropout,
        )
    if k != RELU:
        net = rewrite(net, k)
    edges = torch.stack([data.graph.indices, data.graph.rows])
    features = as_graph(data.x) if data.x.layout == torch.sparse_csr else data.x
    training = Training(
        net, {"x": features, "edge_index": edges}, data.y, data.train, data.validation,
        lr=setting.lr, weight_decay=setting.weight_decay,
    )  # fmt: skip
    for number in range(1, setting.epochs + 1):
        training.epoch(
            seed * 100_003 + number, validate=number % setting.validate == 0 or number == setting.epochs
        )
    training.finish("best")
    labelled = data.test & (data.y >= 0)
    return 100 * training.right(labelled) / int(labelled.sum())
