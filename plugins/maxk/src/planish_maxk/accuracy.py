"""Test accuracy of MaxK and ReLU over k, on the same graphs, seeds and budget."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from planish_graph.convert import as_graph
from planish_graph.generate import Labelled
from planish_graph.graph import Graph
from planish_graph.matrices import matrix_of
from planish_maxk.nets import AGGREGATION, GraphNet, Kind
from planish_maxk.stacked import Stacked

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
    """Test accuracy over seeds, in per cent.

    Attributes:
        values: of each seed, at its best validation (the first of equals).
        epochs: when that was.
    """

    values: tuple[float, ...]
    epochs: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


def over_k(
    data: Labelled, ks: Sequence[int], seeds: Sequence[int], setting: Setting, device: str = "cpu"
) -> dict[int, Accuracy]:
    """Accuracy for every k, and for ReLU under `RELU`. With one seed all start from the same weights."""
    return {k: train(data, k, seeds, setting, device) for k in (RELU, *ks)}


def train(data: Labelled, k: int, seeds: Sequence[int], setting: Setting, device: str = "cpu") -> Accuracy:
    """One network a seed, trained beside each other; see `planish_maxk.stacked`."""
    nets = [_net(data, seed, setting) for seed in seeds]
    kind = nets[0].kind
    edges = torch.stack([data.graph.indices, data.graph.rows])
    matrix = matrix_of(edges, len(data.y), AGGREGATION[kind], self_loops=kind == "gcn").to(device)
    net = Stacked(nets, matrix, None if k == RELU else k).to(device)
    x = _features(data.x, device)
    y = data.y.to(device)
    train, validation, test = (
        (mask.to(device) & (y >= 0)).nonzero()[:, 0] for mask in (data.train, data.validation, data.test)
    )
    wanted = y[train].expand(len(nets), -1)
    optimizer = torch.optim.Adam(
        net.parameters(), lr=setting.lr, weight_decay=setting.weight_decay, fused=y.is_cuda
    )
    best, accuracy, when = (torch.full((len(nets),), -1.0, device=device) for _ in range(3))
    with torch.random.fork_rng(devices=[torch.device(device)] if y.is_cuda else []):
        torch.manual_seed(seeds[0] * 100_003 + 1)
        for number in range(1, setting.epochs + 1):
            net.train()
            optimizer.zero_grad()
            logits = net(x)[:, train].flatten(0, 1)
            losses = F.cross_entropy(logits, wanted.flatten(), reduction="none").view(len(nets), -1)
            losses.mean(1).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if number % setting.validate == 0 or number == setting.epochs:
                right = _right(net, x, y)
                now = right[:, validation].float().mean(1)
                better = now > best
                best = torch.where(better, now, best)
                accuracy = torch.where(better, right[:, test].double().mean(1), accuracy)
                when = torch.where(better, float(number), when)
    return Accuracy(tuple((100 * accuracy).tolist()), tuple(int(n) for n in when.tolist()))


def _net(data: Labelled, seed: int, setting: Setting) -> GraphNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GraphNet(
            data.x.shape[1],
            data.classes,
            kind=setting.kind,
            width=setting.width,
            blocks=setting.blocks,
            dropout=setting.dropout,
        )


def _features(x: Tensor, device: str) -> Tensor | Graph:
    return as_graph(x).to(device) if x.layout == torch.sparse_csr else x.to(device)


@torch.no_grad()
def _right(net: Stacked, x: Tensor | Graph, y: Tensor) -> Tensor:
    """[seeds, N] whether the largest logit is the label's, in evaluation mode."""
    net.eval()
    return net(x).argmax(2) == y  # type: ignore[no-any-return]
