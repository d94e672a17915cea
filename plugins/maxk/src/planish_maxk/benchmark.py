"""``planish bench maxk``: accuracy over k, what is saved for the backward pass, and epoch time, beside ReLU.

Real graphs are read from the folder that PLANISH_SHARED names (``data/graphs/*.npz``); without it a graph with planted
communities stands alone. Curves over k are drawn on standard error as they are measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from planish import measure, timing
from planish.bench import Row
from planish_graph.files import read_labelled
from planish_graph.generate import Labelled, from_degrees, lognormal_degrees, planted_communities
from planish_graph.graph import Graph
from planish_graph.spmm import spmm
from planish_maxk.accuracy import RELU, Accuracy, Setting, over_k
from planish_maxk.cbsr import aggregate, drop, maxk
from planish_maxk.nets import GraphNet, Kind
from planish_maxk.rewrite import rewrite
from planish_maxk.training import Training, saved_bytes

COMMAND = "planish bench maxk"
REAL = ("cora", "citeseer", "blogcatalog", "amazon_photo", "flickr_small")
KS = (4, 8, 16, 32)
RECOMMENDED = 16
"""The k that accuracy is held to: within one point of ReLU."""
LARGE = 100_000
"""Graphs with more entries are trained at the recommended k alone."""


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Everything the module's text names; ``quick`` takes one small graph, two seeds and two values of k."""
    seeds = range(2 if quick else 10)
    for name, data in _graphs(quick):
        few = (RECOMMENDED,) if data.graph.num_edges > LARGE else KS
        yield from accuracy_rows(name, data, (4, RECOMMENDED) if quick else few, seeds)
    yield from _memory()
    yield from _epochs(rounds=3 if quick else 15, nodes=1000 if quick else 10_000)


def _graphs(quick: bool) -> Iterator[tuple[str, Labelled]]:
    if quick:
        yield "planted communities", planted_communities(400, 5, signal=0.6)
        return
    yield "planted communities", planted_communities(2000, 5, signal=0.6)
    folder = (
        Path(os.environ["PLANISH_SHARED"]) / "data" / "graphs" if "PLANISH_SHARED" in os.environ else None
    )
    for name in REAL:
        if folder and (folder / f"{name}.npz").is_file():
            # Binary features that fill a third of the matrix are faster dense.
            yield name, read_labelled(folder / f"{name}.npz", dense=name == "amazon_photo")


def accuracy_rows(
    name: str, data: Labelled, ks: tuple[int, ...], seeds: range, setting: Setting | None = None
) -> Iterator[Row]:
    """A row a k beside ReLU on the same seeds. The bar is one point of accuracy, at the recommended k and ten seeds."""
    setting = setting or Setting()
    found = over_k(data, ks, seeds, setting)
    relu = found.pop(RELU)
    draw(f"{name}, {setting.kind}, width {setting.width}: test accuracy over k", relu, found)
    for k, taken in found.items():
        yield Row(
            metric=f"accuracy on {name}, {setting.kind}, k = {k} of {setting.width}, mean of {len(seeds)} seeds",
            value=taken.mean,
            unit="%",
            peer=f"ReLU (standard deviation {relu.deviation:.2f})",
            peer_value=relu.mean,
            bar=(">=", 1 - 1 / relu.mean) if k == RECOMMENDED and len(seeds) >= 10 else None,
            device=measure.device_name(),
            command=COMMAND,
            spread=taken.deviation,
        )


def draw(title: str, relu: Accuracy, found: dict[int, Accuracy], width: int = 40) -> None:
    """Bars on standard error, from the lowest mean less one point to the highest."""
    lines = {"ReLU": relu, **{f"k = {k}": taken for k, taken in found.items()}}
    low = min(taken.mean for taken in lines.values()) - 1
    high = max(taken.mean for taken in lines.values())
    print(title, file=sys.stderr)
    for label, taken in lines.items():
        length = max(1, round(width * (taken.mean - low) / (high - low)))
        print(f"{label:>8} {'#' * length:<{width}} {taken.mean:.2f} ± {taken.deviation:.2f}", file=sys.stderr)


def _stand_in(nodes: int) -> Graph:
    """Row means of a graph with a heavy tail of degrees."""
    graph = from_degrees(lognormal_degrees(nodes, 20 * nodes, nodes // 4, 1.3), locality=0.5)
    return graph.with_values(1 / graph.degrees[graph.rows.long()])


def _memory() -> Iterator[Row]:
    """Bytes saved for the backward pass: of nonlinearity, dropout and aggregation alone, and of whole networks."""
    graph = _stand_in(500)
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    edges = torch.stack([graph.indices, graph.rows]).long()
    relu: dict[str, nn.Module] = {"nonlinearity, dropout and aggregation, width 256": _Step(graph, RELU)}
    for kind in ("gcn", "sage"):
        relu[f"4-layer 256-wide {kind}"] = _net(kind)
    for name, net in relu.items():
        alone = isinstance(net, _Step)
        batch = {"x": x.requires_grad_()} if alone else {"x": x.detach(), "edge_index": edges}
        peer = saved_bytes(net, batch)
        for k in (16, 32):
            ours = saved_bytes(_Step(graph, k) if alone else rewrite(net, k), batch)
            yield Row(
                metric=f"saved for backward, {name}, k = {k}, 500 nodes",
                value=ours / 1e6,
                unit="MB",
                peer="ReLU",
                peer_value=peer / 1e6,
                bar=("<=", 0.25) if alone else None,
                device=measure.device_name(),
                command=COMMAND,
            )


class _Step(nn.Module):
    """Nonlinearity, dropout and aggregation, and nothing else."""

    def __init__(self, graph: Graph, k: int) -> None:
        super().__init__()
        self.graph = graph
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        if self.k == RELU:
            return spmm(self.graph, F.dropout(F.relu(x), 0.5, self.training))
        return aggregate(self.graph, drop(maxk(x, self.k), 0.5, self.training))


def _net(kind: Kind) -> GraphNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GraphNet(256, 16, kind=kind, width=256, blocks=4)


def _epochs(rounds: int, nodes: int) -> Iterator[Row]:
    """Seconds a training epoch of the same network on this CPU, with ReLU and with MaxK, top-k included."""
    graph = _stand_in(nodes)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(nodes, 256, generator=generator),
        "edge_index": torch.stack([graph.indices, graph.rows]).long(),
    }
    y = torch.randint(0, 16, (nodes,), generator=generator)
    everything = torch.ones(nodes, dtype=torch.bool)
    for kind in ("gcn", "sage"):
        nets: dict[str, nn.Module] = {"ReLU": _net(kind)}
        nets |= {f"k = {k}": rewrite(_net(kind), k) for k in (16, 32)}
        steps = {
            name: Training(net, batch, y, everything, everything, lr=0.01, weight_decay=0.0).step
            for name, net in nets.items()
        }
        taken = timing.interleaved(steps, warmup=1, rounds=rounds)
        for name in list(nets)[1:]:
            seconds = taken[name].seconds
            yield Row(
                metric=f"epoch of 4-layer 256-wide {kind}, {name}, {nodes} nodes, {graph.num_edges} entries, no kernels",
                value=1e3 * seconds.median,
                unit="ms",
                peer="the same with ReLU",
                peer_value=1e3 * taken["ReLU"].seconds.median,
                bar=None,
                device=measure.device_name(),
                command=COMMAND,
                spread=1e3 * (seconds.high - seconds.low) / 2,
            )
