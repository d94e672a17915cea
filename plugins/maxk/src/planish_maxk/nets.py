"""The networks of MaxK-GNN with ReLU, in plain torch: what is rewritten and compared in the benchmark.

An input layer, blocks that each aggregate once, and an output layer; layer normalisation in every block, and the
nonlinearity directly before the aggregation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from planish_graph.graph import Graph
from planish_graph.matrices import matrix_of
from planish_graph.normalise import Aggregation
from planish_graph.spmm import spmm

Kind = Literal["sage", "gcn", "gin"]
AGGREGATION: dict[Kind, Aggregation] = {"sage": "mean", "gcn": "gcn", "gin": "sum"}


class Projection(nn.Linear):
    """A linear layer that also takes sparse features, as a rectangular `Graph` [N, F]."""

    def forward(self, x: Tensor | Graph) -> Tensor:
        if isinstance(x, Tensor):
            return super().forward(x)
        return spmm(x, self.weight.T) + self.bias


class Block(nn.Module):
    """One aggregation: h [N, D] to [N, D].

    * ``sage``: norm(W1 mean(relu(h)) + W2 relu(h))
    * ``gcn``: norm(A relu(W h)) with A normalised on both sides, self-loops included
    * ``gin``: norm((1 + eps) relu(W h) + sum(relu(W h)))
    """

    def __init__(self, kind: Kind, width: int, dropout: float) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(width, width)
        self.root = nn.Linear(width, width, bias=False) if kind == "sage" else None
        self.eps = nn.Parameter(torch.zeros(())) if kind == "gin" else None
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, matrix: Graph) -> Tensor:
        if self.root is not None:
            h = self.dropout(self.activation(h))
            return self.norm(self.linear(spmm(matrix, h)) + self.root(h))  # type: ignore[no-any-return]
        h = self.dropout(self.activation(self.linear(h)))
        out = spmm(matrix, h)
        return self.norm(out if self.eps is None else out + (1 + self.eps) * h)  # type: ignore[no-any-return]


class GraphNet(nn.Module):
    """x [N, F] (or a `Graph`) and edge_index [2, E] to logits [N, classes]."""

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        kind: Kind = "sage",
        width: int = 256,
        blocks: int = 2,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.input = Projection(features, width)
        self.blocks = nn.ModuleList(Block(kind, width, dropout) for _ in range(blocks))
        self.output = nn.Linear(width, classes)

    def forward(self, x: Tensor | Graph, edge_index: Tensor) -> Tensor:
        h = self.input(x)
        matrix = matrix_of(edge_index, h.shape[0], AGGREGATION[self.kind], self_loops=self.kind == "gcn")
        for block in self.blocks:
            h = block(h, matrix)
        return self.output(h)  # type: ignore[no-any-return]
