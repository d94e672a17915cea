"""``planish bench maxk``: accuracy over k, what is saved for the backward pass, and epoch time, beside ReLU; with a GPU
the kernels too, beside the fastest dense product, and wider networks that train longer.

Real graphs are read from the folder that PLANISH_SHARED names (``data/graphs/*.npz``); without it a graph with planted
communities stands alone. Curves over k are drawn on standard error as they are measured.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

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
from planish_maxk.recompute import Recompute
from planish_maxk.rewrite import rewrite
from planish_maxk.training import Training, saved_bytes

COMMAND = "planish bench maxk"
REAL = ("cora", "citeseer", "blogcatalog", "amazon_photo", "flickr_small")
KS = (4, 8, 16, 32)
RECOMMENDED = 16
"""The k that accuracy is held to: within one point of ReLU."""
LARGE = 100_000
"""Graphs with more entries are trained at the recommended k alone on a CPU."""


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Everything the module's text names; ``quick`` takes one small graph, two seeds and two values of k."""
    seeds = range(2 if quick else 10)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(width=256, epochs=20 if quick else 200) if device == "cuda" else Setting()
    for name, data in _graphs(quick):
        few = (RECOMMENDED,) if data.graph.num_edges > LARGE and device == "cpu" else KS
        yield from accuracy_rows(name, data, (4, RECOMMENDED) if quick else few, seeds, setting, device)
    yield from _memory()
    nodes = 1000 if quick else 10_000
    if device == "cuda":
        yield from _kernels(nodes if quick else 232_965)
        nodes *= 10
    yield from _epochs(rounds=3 if quick else 15, nodes=nodes, device=device)


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
    name: str,
    data: Labelled,
    ks: tuple[int, ...],
    seeds: range,
    setting: Setting | None = None,
    device: str = "cpu",
) -> Iterator[Row]:
    """A row a k beside ReLU on the same seeds. The bar is one point of accuracy, at the recommended k and ten seeds."""
    setting = setting or Setting()
    found = over_k(data, ks, seeds, setting, device)
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
            device=measure.device_name(device),
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


def _stand_in(nodes: int, average: int = 20) -> Graph:
    """Row means of a graph with a heavy tail of degrees."""
    graph = from_degrees(lognormal_degrees(nodes, average * nodes, nodes // 4, 1.3), locality=0.5)
    return graph.with_values(1 / graph.degrees[graph.rows.long()])


def _memory() -> Iterator[Row]:
    """Bytes saved for the backward pass: of nonlinearity, dropout and aggregation alone, and of whole networks, of which
    more or less is recomputed."""
    graph = _stand_in(500)
    x = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    edges = torch.stack([graph.indices, graph.rows]).long()
    alone = {"x": x.clone().requires_grad_()}
    peer = saved_bytes(_Step(graph, RELU), alone)
    for k in (16, 32):
        ours = saved_bytes(_Step(graph, k), alone)
        yield _saved("nonlinearity, dropout and aggregation, width 256", k, ours, peer, ("<=", 0.25))
    batch = {"x": x, "edge_index": edges}
    for kind in ("gcn", "sage"):
        net = _net(kind)
        peer = saved_bytes(net, batch)
        for k in (16, 32):
            for what in get_args(Recompute):
                name = f"4-layer 256-wide {kind}, {what} recomputed"
                bar = ("<=", 0.25) if what in ("half", "everything") else None
                yield _saved(name, k, saved_bytes(rewrite(net, k, None, what), batch), peer, bar)


def _saved(name: str, k: int, ours: int, peer: int, bar: tuple[str, float] | None) -> Row:
    return Row(
        metric=f"saved for backward, {name}, k = {k}, 500 nodes",
        value=ours / 1e6,
        unit="MB",
        peer="ReLU",
        peer_value=peer / 1e6,
        bar=bar,
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


def _kernels(nodes: int) -> Iterator[Row]:
    """On a GPU: top-k beside `torch.topk`, and both passes of the aggregation beside the fastest dense product."""
    graph = _stand_in(nodes, 200).to("cuda")
    x = torch.randn(nodes, 256, device="cuda")
    size = f"{nodes} nodes, {graph.num_edges} entries"
    dense = aggregate(graph, x)
    spmm_seconds = timing.interleaved({"": lambda: spmm(graph, x)}, rounds=15, device="cuda")[
        ""
    ].seconds.median
    for k in (8, 16, 32, 64):
        programs = {"ours": lambda k=k: maxk(x, k), "torch": lambda k=k: torch.topk(x, k)}
        taken = timing.interleaved(programs, rounds=15, device="cuda")
        one, other = (taken[n].seconds.median for n in ("ours", "torch"))
        yield _milliseconds(f"top-k to compressed rows, k = {k}, {nodes} x 256", one, "torch.topk", other)
        rows = maxk(x, k)
        rows = rows._replace(values=rows.values.requires_grad_())
        y = aggregate(graph, rows)
        passes: dict[str, Callable[[], Tensor]] = {
            "forward": lambda rows=rows: aggregate(graph, rows),
            "backward": lambda rows=rows, y=y: torch.autograd.grad(y, rows.values, dense, retain_graph=True)[
                0
            ],
        }
        taken = timing.interleaved(passes, rounds=15, device="cuda")
        for name in passes:
            seconds = taken[name].seconds.median
            metric = f"{name} of the aggregation, k = {k} of 256, {size}"
            yield _milliseconds(metric, seconds, "the fastest dense product", spmm_seconds)


def _milliseconds(metric: str, ours: float, peer: str, theirs: float) -> Row:
    return Row(
        metric=metric,
        value=1e3 * ours,
        unit="ms",
        peer=peer,
        peer_value=1e3 * theirs,
        bar=("<=", 1.0),
        device=measure.device_name("cuda"),
        command=COMMAND,
    )


def _epochs(rounds: int, nodes: int, device: str = "cpu") -> Iterator[Row]:
    """Seconds a training epoch of the same network, with ReLU and with MaxK, top-k included."""
    graph = _stand_in(nodes)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "x": torch.randn(nodes, 256, generator=generator).to(device),
        "edge_index": torch.stack([graph.indices, graph.rows]).long().to(device),
    }
    y = torch.randint(0, 16, (nodes,), generator=generator).to(device)
    everything = torch.ones(nodes, dtype=torch.bool, device=device)
    for kind in ("gcn", "sage"):
        nets: dict[str, nn.Module] = {"ReLU": _net(kind).to(device)}
        nets |= {f"k = {k}": rewrite(_net(kind).to(device), k) for k in (16, 32)}
        steps = {
            name: Training(net, batch, y, everything, everything, lr=0.01, weight_decay=0.0).step
            for name, net in nets.items()
        }
        taken = timing.interleaved(steps, warmup=1, rounds=rounds, device=device)
        for name in list(nets)[1:]:
            seconds = taken[name].seconds
            yield Row(
                metric=f"epoch of 4-layer 256-wide {kind}, {name}, {nodes} nodes, {graph.num_edges} entries",
                value=1e3 * seconds.median,
                unit="ms",
                peer="the same with ReLU",
                peer_value=1e3 * taken["ReLU"].seconds.median,
                bar=None,
                device=measure.device_name(device),
                command=COMMAND,
                spread=1e3 * (seconds.high - seconds.low) / 2,
            )
