"""Slow, literal versions of the formulas in fp64, one element at a time, for the tests to compare with."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from planish_ace.metrics import Metric

Matrix = list[list[float]]


def scores(weight: Tensor, x: Tensor, metric: Metric) -> Tensor:
    """Scores [d_out, d_in] of weight [d_out, d_in] on inputs x [T, d_in]."""
    outputs = (x.double() @ weight.double().T).tolist()
    inputs, w = x.double().tolist(), weight.double().abs().tolist()
    row_sums, column_sums = [sum(row) for row in w], [sum(column) for column in zip(*w, strict=True)]
    norms = [math.sqrt(sum(v * v for v in column)) for column in zip(*inputs, strict=True)]
    factors = [_factor(inputs, j, metric) for j in range(len(norms))]
    row_terms = [[_row_term(a_t, i, metric) for a_t in outputs] for i in range(len(w))]

    def score(i: int, j: int) -> float:
        magnitude = w[i][j]
        ria = magnitude * (_inverse(row_sums[i]) + _inverse(column_sums[j])) * norms[j] ** metric.ria_exponent
        bases = {"weight": magnitude, "wanda": magnitude * norms[j], "ria": ria}
        if metric.name == "magnitude":
            return magnitude
        if metric.name in ("wanda", "ria"):
            return bases[metric.name]
        result = bases["wanda" if metric.name == "cosp" else metric.base]
        if metric.name != "varp":
            loss = magnitude * _loss(row_terms[i], [x_t[j] for x_t in inputs], metric, norms[j])
            result *= math.sqrt(loss) if metric.aggregation == "sqrt" else loss
        return result if metric.name == "cosp" else result * factors[j]

    return torch.tensor(
        [[score(i, j) for j in range(len(norms))] for i in range(len(w))], dtype=torch.float64
    )


def _inverse(value: float) -> float:
    return 1 / value if value else 0.0


def _factor(x: Matrix, j: int, metric: Metric) -> float:
    tokens = len(x)
    if metric.varp_reading == "A":
        total = 0.0
        for row in x:
            energy = sum(v * v for v in row)
            share = row[j] ** 2 / energy if energy else 0.0
            total += 1 / max(1 - share, 1e-3)
        return total / tokens
    column = [row[j] for row in x]
    mean = sum(column) / tokens
    std = math.sqrt(sum((v - mean) ** 2 for v in column) / tokens)
    return std if metric.base == "weight" else math.sqrt(std)


def _row_term(a_t: list[float], i: int, metric: Metric) -> float:
    """What one token's outputs say of row i: |a_i|/|a|^2 (paper), sqrt(1 - a_i^2/|a|^2)/|a| (exact); 0 where |a| = 0."""
    energy = sum(v * v for v in a_t)
    if energy == 0:
        return 0.0
    cosine = a_t[i] ** 2 / energy
    return math.sqrt((cosine if metric.cosp_form == "paper" else max(1 - cosine, 0)) / energy)


def _loss(rows: list[float], column: list[float], metric: Metric, norm: float) -> float:
    tokens = len(rows)
    if metric.separable:
        return math.sqrt(sum(r * r for r in rows)) * norm / tokens
    terms = [r * abs(x) for r, x in zip(rows, column, strict=True)]
    if metric.aggregation == "mean_abs":
        return sum(terms) / tokens
    return math.sqrt(sum(t * t for t in terms) / tokens)


def lowest(scores: Tensor, count: int) -> list[int]:
    """Columns of the ``count`` lowest scores of a row; of equal scores the lower column first."""
    return sorted(sorted(range(len(scores)), key=lambda j: (scores[j].item(), j))[:count])


def block_sequential(
    model: nn.Module, windows: Tensor, layers: list[nn.Linear], metric: Metric, sparsity: float
) -> None:
    """Prune ``layers`` of all blocks, block by block, by whole forward passes of the model: plain and quadratic.

    layers: all matrices of one block share its inputs, so one pass of the model, pruned so far, serves them together.
    """
    seen: dict[nn.Linear, Tensor] = {}
    hooks = [
        layer.register_forward_hook(
            lambda m, args, out: seen.__setitem__(m, args[0].reshape(-1, args[0].shape[-1]))
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(windows)
    for hook in hooks:
        hook.remove()
    for layer in layers:
        score = scores(layer.weight, seen[layer], metric)
        for row, row_scores in zip(layer.weight.data, score, strict=True):
            row[lowest(row_scores, int(len(row) * sparsity))] = 0
