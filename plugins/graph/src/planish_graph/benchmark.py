"""``planish bench graph``: preprocessing in units of one product, and the dispatcher beside its candidates."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from planish import measure, timing
from planish.bench import Row
from planish_graph.dispatch import SPMM
from planish_graph.generate import from_degrees, lognormal_degrees
from planish_graph.graph import Graph
from planish_graph.partition import segments

COMMAND = "planish bench graph"
WIDTH = 128


def rows(*, quick: bool = False) -> Iterator[Row]:
    """On a stand-in with a heavy tail of degrees, at locality 0 and 0.5; ``quick`` takes a smaller one."""
    nodes, entries = (4000, 60_000) if quick else (50_000, 1_500_000)
    degrees = lognormal_degrees(nodes, entries, nodes // 10, 1.3)
    for locality in (0.0, 0.5):
        graph = from_degrees(degrees, locality=locality)
        yield from _preprocessing(graph, locality, rounds=3 if quick else 9)
        yield from _choice(graph, locality)


def _preprocessing(graph: Graph, locality: float, rounds: int) -> Iterator[Row]:
    """Seconds to build what is built once a graph, against one product with cached structure."""
    x = torch.randn(graph.num_cols, WIDTH, generator=torch.Generator().manual_seed(0))
    fresh = lambda: Graph(graph.indptr, graph.indices, num_cols=graph.num_cols)  # noqa: E731
    taken = timing.interleaved(
        {
            "segments": lambda: segments(fresh(), 512),
            "transpose": lambda: fresh().transposed(),
            "product": lambda: SPMM.candidates[0].prepare(graph, x)(),  # type: ignore[misc]
        },
        warmup=1,
        rounds=rounds,
    )
    product = taken["product"].seconds.median
    for name in ("segments", "transpose"):
        seconds = taken[name].seconds
        yield Row(
            metric=f"check and {name}, {graph.num_edges} entries, locality {locality:g}",
            value=1e3 * seconds.median,
            unit="ms",
            peer=f"one torch CSR product, width {WIDTH}",
            peer_value=1e3 * product,
            bar=("<=", 10.0),
            device=measure.device_name(),
            command=COMMAND,
            spread=1e3 * (seconds.high - seconds.low) / 2,
        )


def _choice(graph: Graph, locality: float) -> Iterator[Row]:
    """The chosen candidate beside every other that gave the right result."""
    for width in (64, 256):
        x = torch.randn(graph.num_cols, width, generator=torch.Generator().manual_seed(0))
        choice = SPMM.choose(graph, x)
        for peer, seconds in choice.seconds.items():
            yield Row(
                metric=f"SpMM by choice ({choice.name}), width {width}, locality {locality:g}",
                value=1e3 * choice.seconds[choice.name],
                unit="ms",
                peer=peer,
                peer_value=1e3 * seconds,
                bar=("<=", 1.0),
                device=measure.device_name(),
                command=COMMAND,
            )
