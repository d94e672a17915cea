"""``planish bench accelgcn``: the product beside the best cuSPARSE algorithm, on a GPU; beside torch's, on a CPU."""

from __future__ import annotations

import itertools
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from planish import measure, timing
from planish.bench import Row
from planish_accelgcn import candidates
from planish_accelgcn.ops import spmm
from planish_accelgcn.reference import Fused
from planish_accelgcn.settings import FIXED
from planish_accelgcn.work import work
from planish_graph import cusparse
from planish_graph.dispatch import SPMM, gpu_seconds
from planish_graph.generate import from_degrees, histogram_degrees, lognormal_degrees
from planish_graph.graph import Graph
from planish_graph.reference import csr_product

COMMAND = "planish bench accelgcn"
SHARED = "PLANISH_SHARED"
"""Names the folder whose ``data/graphs/degree_histograms.npz`` holds degrees of real graphs."""
LOGNORMAL = {
    "Reddit-like": (232_965, 114_615_891, 21_657, 1.30),
    "products-like": (2_449_029, 123_718_280, 17_481, 1.15),
}
"""Nodes, entries, largest degree and spread of graphs whose histogram is not known."""
HISTOGRAMS = ("ppa", "yelp", "arxiv", "pubmed")
WIDTHS = (64, 128, 256)
ROUNDS = 20
BARS = {
    torch.float32: {0.0: 1.15, 0.5: 1.10},
    torch.float16: {0.0: 1.3, 0.5: 1.3},
    torch.bfloat16: {0.0: 1.3, 0.5: 1.3},
}
"""How many times faster than the best accurate cuSPARSE the geometric mean shall be, by type and locality."""


def rows(*, quick: bool = False) -> Iterator[Row]:
    """On stand-ins for well-known graphs, at locality 0 and 0.5; ``quick`` takes the smallest, in fp32."""
    if torch.cuda.is_available():
        yield from _on_gpu(quick)
    else:
        yield from _on_cpu(quick)


def _on_gpu(quick: bool) -> Iterator[Row]:
    registered = {candidate.name for candidate in SPMM.candidates}
    for candidate in candidates.spmm():
        if candidate.name not in registered:
            SPMM.register(candidate)
    types = (torch.float32,) if quick else tuple(BARS)
    for locality in (0.0, 0.5):
        factors: dict[torch.dtype, list[float]] = {dtype: [] for dtype in types}
        for name, degrees in _degrees(quick):
            graph = from_degrees(degrees.cuda(), locality=locality)
            generator = torch.Generator("cuda").manual_seed(0)
            weight = torch.rand(graph.num_edges, generator=generator, device="cuda") + 0.5
            yield from _preprocessing(name, graph, locality)
            for dtype in types:
                weighted = graph.with_values(weight.to(dtype))
                for width in WIDTHS:
                    row = _against_cusparse(name, weighted, width, dtype, locality)
                    factors[dtype].append(1 / row.ratio)
                    yield row
        for dtype, found in factors.items():
            yield Row(
                metric=f"SpMM {_short(dtype)}, geometric mean of {len(found)} factors, locality {locality:g}",
                value=math.exp(sum(map(math.log, found)) / len(found)),
                unit="x",
                peer="best accurate cuSPARSE",
                peer_value=1.0,
                bar=(">=", BARS[dtype][locality]),
                device=measure.device_name("cuda"),
                command=COMMAND,
            )


def _degrees(quick: bool) -> Iterator[tuple[str, Tensor]]:
    if not quick:
        for name, numbers in LOGNORMAL.items():
            yield name, lognormal_degrees(*numbers)
    path = Path(os.environ.get(SHARED, ".")) / "data" / "graphs" / "degree_histograms.npz"
    if path.is_file():
        for name in HISTOGRAMS[-1:] if quick else HISTOGRAMS:
            yield name, histogram_degrees(path, name)
    elif quick:
        yield "20,000 nodes", lognormal_degrees(20_000, 100_000, 200, 1.2)


def _preprocessing(name: str, graph: Graph, locality: float) -> Iterator[Row]:
    """Building the work lists, against one product with them."""
    x = torch.randn(graph.num_cols, WIDTHS[0], device="cuda")
    fresh = lambda: Graph(graph.indptr, graph.indices, num_cols=graph.num_cols)  # noqa: E731
    graphs = [fresh() for _ in range(6)]
    programs = {
        "lists": lambda: work(graphs.pop(), FIXED.chunk, FIXED.segment, FIXED.short),
        "product": lambda: candidates.fixed(graph, x, Fused())(),
    }
    taken = timing.interleaved(programs, warmup=1, rounds=5, device="cuda")
    lists, product = (taken[part].seconds for part in programs)
    yield Row(
        metric=f"work lists of {name}, {graph.num_edges} entries, locality {locality:g}",
        value=1e3 * lists.median,
        unit="ms",
        spread=1e3 * (lists.high - lists.low) / 2,
        peer=f"one product, width {WIDTHS[0]}",
        peer_value=1e3 * product.median,
        bar=("<=", 10.0),
        device=measure.device_name("cuda"),
        command=COMMAND,
    )


def _against_cusparse(name: str, graph: Graph, width: int, dtype: torch.dtype, locality: float) -> Row:
    """The dispatcher's choice with the kernels of this distribution, and the best of cuSPARSE that was accurate; medians
    of `ROUNDS`, in turns."""
    x = torch.randn(graph.num_cols, width, device="cuda").to(dtype)
    choice = SPMM.choose(graph, x)
    accurate = {f"cuSPARSE {a}" for a in cusparse.ALGORITHMS} & choice.seconds.keys()
    ways = {choice.name} | (accurate or {"torch CSR"})
    prepared = {c.name: c.prepare(graph, x) for c in SPMM.candidates if c.name in ways}
    programs = {way: program for way, program in prepared.items() if program is not None}
    taken: dict[str, list[float]] = {way: [] for way in programs}
    for _, (way, program) in itertools.product(range(ROUNDS), programs.items()):
        taken[way].append(gpu_seconds(program, max(1, min(20, int(2e-3 / choice.seconds[way])))))
    seconds = {way: statistics.median(times) for way, times in taken.items()}
    peer = min(accurate or {"torch CSR"}, key=lambda way: seconds[way])
    return Row(
        metric=f"SpMM {name}, {_short(dtype)}, width {width}, locality {locality:g} ({choice.name})",
        value=1e3 * seconds[choice.name],
        unit="ms",
        peer=peer,
        peer_value=1e3 * seconds[peer],
        bar=("<=", 1.0),
        device=measure.device_name("cuda"),
        command=COMMAND,
    )


def _on_cpu(quick: bool) -> Iterator[Row]:
    """The path without a GPU: the normalised product of a GCN layer, against torch's CSR product and the same vectors."""
    nodes, entries = (4000, 60_000) if quick else (50_000, 1_500_000)
    graph = from_degrees(lognormal_degrees(nodes, entries, nodes // 10, 1.3))
    scale = graph.degrees.clamp_min(1).float().rsqrt()
    for width in WIDTHS[:2]:
        x = torch.randn(nodes, width, generator=torch.Generator().manual_seed(0))

        def peer(x: Tensor = x) -> Tensor:
            return csr_product(graph.indptr, graph.indices, None, x * scale[:, None]) * scale[:, None]

        def ours(x: Tensor = x) -> Tensor:
            return spmm(graph, x, row_scale=scale, column_scale=scale)

        torch.testing.assert_close(ours(), peer(), rtol=1e-4, atol=1e-4)
        taken = timing.interleaved({"ours": ours, "peer": peer}, warmup=1, rounds=5 if quick else 9)
        seconds = taken["ours"].seconds
        yield Row(
            metric=f"GCN-normalised SpMM on a CPU, {entries} entries, width {width}",
            value=1e3 * seconds.median,
            unit="ms",
            spread=1e3 * (seconds.high - seconds.low) / 2,
            peer="torch CSR product",
            peer_value=1e3 * taken["peer"].seconds.median,
            bar=None,
            device=measure.device_name(),
            command=COMMAND,
        )


def _short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
