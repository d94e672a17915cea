"""Run with TRITON_INTERPRET=1 in a process of its own: the Triton kernels against their references, on the CPU.

Prints one line for each thing that was compared; any difference raises.
"""

from __future__ import annotations

import math

import torch

from planish_graph.convert import from_edges
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph
from planish_maxk import kernels, topk
from planish_maxk.cbsr import aggregate, choose, maxk

generator = torch.Generator().manual_seed(0)


def top_k() -> None:
    special = torch.tensor([math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40])
    count = 0
    for width in (1, 33, 256, 300):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            x = torch.randint(-4, 5, (6, width), generator=generator).float()
            x[1] = torch.randn(width, generator=generator)
            x[2] = special[torch.randint(0, 8, (width,), generator=generator)]
            x[3] = 1.0
            x = x.to(dtype)
            for k in {1, width // 2, width} & set(range(1, width + 1)):
                values, index = kernels.top_k(x, k, topk.position_type(width))
                wanted, places = topk.top_k(x, k)
                assert torch.equal(index.long(), places.long()), (width, k, dtype)
                torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
                count += 1
    print(f"top-k: {count} shapes")


def graph_of(kind: str, index: torch.dtype) -> Graph:
    if kind == "gigantic row":
        degrees = torch.ones(24, dtype=torch.int64)
        degrees[3], degrees[22], degrees[23] = 70, 0, 33
        graph = from_degrees(degrees)
        return graph.with_values(torch.rand(graph.num_edges, generator=generator)).to(index=index)
    size, edges = {"rectangular": ((5, 20), 60), "one node": ((1, 1), 3), "no entries": ((5, 4), 0)}[kind]
    pair = torch.stack([torch.randint(0, n, (edges,), generator=generator) for n in (size[1], size[0])])
    return from_edges(pair.to(index), size, torch.randn(edges, generator=generator))


def products() -> None:
    exact, half, brain = (torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)
    cases = [
        ("gigantic row", torch.int64, 33, 5, True, exact),
        ("rectangular", torch.int32, 257, 70, True, exact),
        ("rectangular", torch.int64, 16, 16, False, half),
        ("rectangular", torch.int32, 16, 3, True, brain),
        ("one node", torch.int64, 1, 1, True, exact),
        ("no entries", torch.int64, 8, 2, True, exact),
    ]
    for kind, index, width, k, weighted, (dtype, bound) in cases:
        graph = graph_of(kind, index)
        compare(graph if weighted else graph.with_values(None), width, k, dtype, bound)
    print(f"forward and backward: {len(cases)} cases")


def compare(graph: Graph, width: int, k: int, dtype: torch.dtype, bound: float) -> None:
    x = torch.randn(graph.num_cols, width, generator=generator).to(dtype)
    grad = torch.randn(graph.num_rows, width, generator=generator).to(dtype)
    results = []
    for how in ("triton", "entries"):
        leaf = x.clone().requires_grad_()
        value = None if graph.value is None else graph.value.clone().requires_grad_()
        y = aggregate(graph.with_values(value), maxk(leaf, k), how)
        y.backward(grad)
        results.append([y.detach(), leaf.grad, None if value is None else value.grad])
    for ours, wanted in zip(*results, strict=True):
        if ours is not None and wanted is not None and ours.numel():
            scale = wanted.abs().max().clamp_min(1e-6)
            assert ours.dtype == wanted.dtype
            assert (ours - wanted).abs().max() / scale <= bound, (graph, width, k, dtype)


def selection() -> None:
    graph = graph_of("rectangular", torch.int64)
    rows = maxk(torch.randn(20, 8, requires_grad=True), 3)
    assert choose(graph, rows) == ("triton", "triton")
    assert choose(graph, maxk(torch.randn(20, 8).double(), 3)) == ("dense", "dense"), "float64 has no kernel"
    torch.use_deterministic_algorithms(True)
    assert choose(graph, rows) == ("dense", "dense"), "atomic additions do not repeat"
    torch.use_deterministic_algorithms(False)
    aggregate(graph, rows)  # what is built once is built before compiling
    compiled = torch.compile(lambda x: aggregate(graph, maxk(x, 3)), backend="aot_eager", fullgraph=True)
    x = torch.randn(20, 8, requires_grad=True)
    torch.testing.assert_close(compiled(x), aggregate(graph, maxk(x, 3), "dense"))
    compiled(x).sum().backward()
    print("choice and compilation")


if __name__ == "__main__":
    top_k()
    products()
    selection()
