"""Reference networks for the testbed's data, in plain torch, with short seeded training.

Each `fit_*` trains in place, on the CPU, from the weights it is given, and returns the test accuracy; it leaves torch's
global generator as it was. Seed that before a network is built:

    torch.manual_seed(0)
    net = DigitsCNN()
    fit_digits(net, digits.load())
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .digits import Digits
from .graph import Graph
from .skeleton import Skeletons


@dataclass(frozen=True, slots=True)
class Accuracy:
    """`correct` of `total` samples."""

    correct: int
    total: int

    @property
    def value(self) -> float:
        return self.correct / self.total


class DigitsMLP(nn.Sequential):
    """Images [N, 1, 8, 8] to logits [N, 10] through two hidden layers."""

    planish_builder = "testbed"

    def __init__(self, hidden: int = 128) -> None:
        self.arguments = {"hidden": hidden}
        super().__init__(
            nn.Flatten(),
            nn.Linear(64, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )


class DigitsCNN(nn.Sequential):
    """Images [N, 1, 8, 8] to logits [N, 10] through three convolutions with batch normalisation."""

    planish_builder = "testbed"

    def __init__(self, channels: int = 16) -> None:
        self.arguments = {"channels": channels}
        super().__init__(
            nn.Conv2d(1, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * channels, 10),
        )


class GCN(nn.Module):
    """Two graph convolutions (Kipf and Welling, 2017): x [N, F] and edge_index [2, E] to logits [N, K]."""

    planish_builder = "testbed"

    def __init__(self, feature_dim: int, classes: int, hidden: int = 64, dropout: float = 0.5) -> None:
        super().__init__()
        self.arguments = {
            "feature_dim": feature_dim,
            "classes": classes,
            "hidden": hidden,
            "dropout": dropout,
        }
        self.input = nn.Linear(feature_dim, hidden)
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, classes)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        scale = degree_scale(edge_index, x.shape[0])
        hidden: Tensor = self.activation(propagate(self.input(self.dropout(x)), edge_index, scale))
        return propagate(self.output(self.dropout(hidden)), edge_index, scale)


def degree_scale(edge_index: Tensor, nodes: int) -> Tensor:
    """(degree + 1)^-1/2 of every node [N], the factor on both sides of the normalised adjacency."""
    ones = torch.ones(edge_index.shape[1], device=edge_index.device)
    return torch.ones(nodes, device=edge_index.device).index_add(0, edge_index[1], ones).rsqrt()


def propagate(x: Tensor, edge_index: Tensor, scale: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 x for x [N, F], edges (source, target) [2, E] and ``scale`` [N]."""
    source, target = edge_index
    x = x * scale[:, None]
    return x.index_add(0, target, x[source]) * scale[:, None]


class STGCNBlock(nn.Module):
    """Graph convolution over joints, then a convolution over frames, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, adjacency: Tensor, stride: int, kernel: int) -> None:
        super().__init__()
        self.adjacency: Tensor
        self.register_buffer("adjacency", adjacency)
        self.spatial = nn.Conv2d(inputs, outputs * len(adjacency), 1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(outputs)
        self.spatial_activation = nn.ReLU()
        self.temporal = nn.Conv2d(outputs, outputs, (kernel, 1), (stride, 1), (kernel // 2, 0), bias=False)
        self.temporal_norm = nn.BatchNorm2d(outputs)
        self.temporal_activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, T, V] to [N, outputs, T / stride, V]."""
        parts = self.spatial(x).unflatten(1, (len(self.adjacency), -1))
        x = torch.einsum("npctv,pvw->nctw", parts, self.adjacency)
        x = self.spatial_activation(self.spatial_norm(x))
        out: Tensor = self.temporal_activation(self.temporal_norm(self.temporal(x)))
        return out


class STGCN(nn.Module):
    """A small spatial-temporal graph network (Yan et al., 2018): clips [N, 3, T, V, M] to logits [N, K].

    Two partitions of the neighbourhood: the joint itself, and its neighbours in the tree (column-normalised).
    """

    planish_builder = "testbed"

    def __init__(
        self,
        edges: Tensor | Sequence[Sequence[int]],
        classes: int,
        channels: Sequence[int] = (16, 32, 32),
        kernel: int = 9,
    ) -> None:
        super().__init__()
        edges = torch.as_tensor(edges)
        self.arguments = {
            "edges": edges.tolist(),
            "classes": classes,
            "channels": list(channels),
            "kernel": kernel,
        }
        joints = int(edges.max()) + 1
        neighbours = torch.zeros(joints, joints)
        neighbours[edges[:, 0], edges[:, 1]] = 1
        neighbours[edges[:, 1], edges[:, 0]] = 1
        adjacency = torch.stack([torch.eye(joints), neighbours / neighbours.sum(0)])
        self.input_norm = nn.BatchNorm1d(3 * joints)
        widths = (3, *channels)
        self.blocks = nn.Sequential(
            *(
                STGCNBlock(widths[i], widths[i + 1], adjacency, 1 if i == 0 else 2, kernel)
                for i in range(len(channels))
            )
        )
        self.output = nn.Linear(channels[-1], classes)

    def forward(self, clips: Tensor) -> Tensor:
        n, c, t, v, m = clips.shape
        x = clips.permute(0, 4, 3, 1, 2).reshape(n * m, v * c, t)
        x = self.input_norm(x).view(n * m, v, c, t).permute(0, 2, 3, 1)
        logits: Tensor = self.output(self.blocks(x).mean((2, 3)).view(n, m, -1).mean(1))
        return logits


NETS = {net.__name__: net for net in (DigitsMLP, DigitsCNN, GCN, STGCN)}


def fit_digits(model: nn.Module, data: Digits, epochs: int = 12, seed: int = 0) -> Accuracy:
    """Train on the training images, measure on the test images."""
    _fit(model, *data.tensors(data.train_mask), epochs, batch=64, lr=3e-3, seed=seed)
    return classification_accuracy(model, *data.tensors(data.test_mask))


def fit_skeleton(model: nn.Module, data: Skeletons, epochs: int = 12, seed: int = 0) -> Accuracy:
    """Train on the clips of the training subjects, measure on those of the others."""
    _fit(model, *data.tensors(data.train_mask), epochs, batch=32, lr=1e-2, seed=seed)
    return classification_accuracy(model, *data.tensors(data.test_mask))


def fit_graph(model: nn.Module, data: Graph, epochs: int = 100, seed: int = 0) -> Accuracy:
    """Full-batch training on the training nodes, measured on the test nodes."""
    edges, features = torch.from_numpy(data.edge_index), torch.from_numpy(data.features)
    labels, train = torch.from_numpy(data.labels), torch.from_numpy(data.train_mask)
    test = torch.from_numpy(data.test_mask)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4)
        model.train()
        for _ in range(epochs):
            _step(optimizer, F.cross_entropy(model(features, edges)[train], labels[train]))
    model.eval()
    with torch.inference_mode():
        predicted = model(features, edges)[test].argmax(1)
    return Accuracy(int((predicted == labels[test]).sum()), len(predicted))


def classification_accuracy(model: nn.Module, inputs: Tensor, labels: Tensor, batch: int = 256) -> Accuracy:
    """Share of inputs [N, ...] whose largest logit is the label's; leaves the model in evaluation mode."""
    model.eval()
    with torch.inference_mode():
        predicted = torch.cat([model(part).argmax(1) for part in torch.split(inputs, batch)])
    return Accuracy(int((predicted == labels).sum()), len(labels))


def _fit(
    model: nn.Module, inputs: Tensor, labels: Tensor, epochs: int, batch: int, lr: float, seed: int
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-2)
        steps = epochs * -(-len(inputs) // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
        model.train()
        for _ in range(epochs):
            for rows in torch.split(torch.randperm(len(inputs)), batch):
                _step(optimizer, F.cross_entropy(model(inputs[rows]), labels[rows]))
                schedule.step()


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
