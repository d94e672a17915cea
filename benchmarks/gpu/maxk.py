"""MaxK on one GPU: every kernel against float64, top-k beside the copy rate, forward and backward beside cuSPARSE on graphs
with the degrees of well-known ones, and an epoch of whole networks.

    PYTHONPATH=core/src:sdk/src:plugins/graph/src:plugins/maxk/src python3 benchmarks/gpu/maxk.py \
        --data FOLDER --out maxk.json [--quick] [--parts check,topk,graphs,epoch]

FOLDER holds graphs/degree_histograms.npz. Every part runs in a process of its own, so that one that fails leaves the
others alone; the file is written after each, and keeps parts of earlier runs that are not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part / "src") for part in ("core", "sdk", "plugins/graph", "plugins/maxk")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from planish_graph import cusparse  # noqa: E402
from planish_graph.convert import from_edges  # noqa: E402
from planish_graph.dispatch import SPMM  # noqa: E402
from planish_graph.generate import from_degrees, histogram_degrees, lognormal_degrees  # noqa: E402
from planish_graph.graph import Graph, Plan, row_pointer  # noqa: E402
from planish_graph.reference import csr_product  # noqa: E402
from planish_graph.spmm import spmm  # noqa: E402 - seen in forward passes that are traced
from planish_maxk import cuda, kernels, product, topk  # noqa: E402
from planish_maxk.cbsr import CBSR, aggregate, choose, maxk  # noqa: E402
from planish_maxk.nets import GraphNet  # noqa: E402
from planish_maxk.rewrite import rewrite  # noqa: E402
from planish_maxk.training import Training  # noqa: E402

Result = dict[str, Any]
GPU = torch.device("cuda", 0)
FLOATS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Type of the features, and the relative error that passes: rounding of what is stored, sums being in fp32."""
KS = (8, 16, 32, 64)
THREADS = 14


# ---- correctness ------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Each kernel on small awkward inputs; the worst relative error of each, and what failed."""
    yield "top-k", check_top_k(options.quick)
    yield "products", check_products(options.quick)
    for how in ("cuda", "cuda-sorted", "triton", "dense", "auto"):
        yield f"interface, {how}", check_interface(how)


def check_top_k(quick: bool) -> Result:
    """Positions and values must be those of the plain path, whatever the row holds."""
    shapes = [(256, 16), (33, 5)] if quick else [
        (256, 8), (256, 16), (256, 32), (256, 64), (256, 255), (1, 1), (31, 7), (32, 31), (33, 5), (129, 64), (200, 50),
        (255, 17), (257, 32), (384, 96), (1000, 3), (1024, 1), (1024, 1000),
    ]  # fmt: skip
    cases = [(width, k, dtype) for width, k in shapes if k < width for dtype in FLOATS]
    with ThreadPoolExecutor(THREADS) as pool:  # most of the time goes into compiling
        found = list(pool.map(lambda case: list(_top_k_errors(*case)), cases))
    lines = [line for case in found for line in case]
    return {"cases": len(lines), "failed": [line for line in lines if line]}


def _top_k_errors(width: int, k: int, dtype: torch.dtype) -> Iterator[str]:
    generator = torch.Generator(GPU).manual_seed(0)
    for name, x in _rows_of_all_kinds(width, generator):
        x = x.to(dtype)
        values, index = cuda.top_k(x, k, topk.position_type(width))
        wanted, places = topk.top_k(x, k)
        same = (index.long() == places.long()) & ((values == wanted) | (values.isnan() & wanted.isnan()))
        dense = cuda.expand(values, index, width)
        back = cuda.pick(dense, index)
        same &= (back == values) | back.isnan() & values.isnan()
        same &= ((dense != 0).sum(1) == (values != 0).sum(1))[:, None]
        wrong = int((~same.all(1)).sum())
        yield f"{name}, width {width}, k {k}, {dtype}: {wrong} of {len(x)} rows" if wrong else ""


def _rows_of_all_kinds(width: int, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    normal = torch.randn(3000, width, generator=generator, device=GPU)
    yield "normal", normal
    yield "scaled rows", normal * torch.logspace(-20, 15, 3000, device=GPU)[:, None] + 3
    yield "whole numbers", torch.randint(-3, 4, (500, width), generator=generator, device=GPU).float()
    yield "after relu", normal[:1000].relu()
    yield "one far away", normal[:500].scatter(1, torch.zeros(500, 1, dtype=torch.long, device=GPU), 1e6)
    yield "exponential", normal[:500].exp()
    yield "constant", torch.full((20, width), -0.75, device=GPU)
    special = torch.tensor(
        [math.nan, -math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-40, -1e-40, 3e38, -3e38], device=GPU
    )
    yield "special", special[torch.randint(0, 10, (2000, width), generator=generator, device=GPU)]


def awkward_graphs() -> Iterator[tuple[str, Graph]]:
    generator = torch.Generator().manual_seed(0)
    degrees = torch.ones(301, dtype=torch.int64)
    degrees[3], degrees[298], degrees[299], degrees[300] = 9000, 0, 33, 600
    hub = from_degrees(degrees)
    yield "gigantic row", hub.with_values(torch.randn(hub.num_edges, generator=generator))
    for name, (size, edges) in {
        "rectangular": ((70, 3000), 9000), "one node": ((1, 1), 3), "no entries": ((5, 4), 0),
    }.items():  # fmt: skip
        pair = torch.stack([torch.randint(0, n, (edges,), generator=generator) for n in (size[1], size[0])])
        yield name, from_edges(pair, size, torch.randn(edges, generator=generator))


def check_products(quick: bool) -> Result:
    """Forward, backward (atomic, in tiles, in fixed order) and the gradient of weights against float64."""
    shapes = [(256, 16), (33, 5)] if quick else [
        (256, 8), (256, 16), (256, 32), (256, 64), (256, 130), (33, 5), (32, 32), (1, 1), (200, 50), (257, 6),
        (384, 48), (1024, 100), (4096, 12), (8192, 3),
    ]  # fmt: skip
    graphs = list(awkward_graphs())
    cases = [(graph, number, *shape) for graph in graphs for number, shape in enumerate(shapes)]
    with ThreadPoolExecutor(THREADS) as pool:
        results = [pair for case in pool.map(lambda case: _product_case(*case), cases) for pair in case]
    found: Result = {"cases": len(results), "failed": [], "worst": {}}
    for part, where, dtype, error in results:
        key = f"{part}, {str(dtype).removeprefix('torch.')}"
        found["worst"][key] = max(error, found["worst"].get(key, 0.0))
        if not error <= FLOATS[dtype]:
            found["failed"].append(f"{part} on {where}: {error:.1e}")
    return found


def _product_case(
    named: tuple[str, Graph], number: int, width: int, k: int
) -> list[tuple[str, str, torch.dtype, float]]:
    """Types of features, indices and weights change from shape to shape."""
    name, graph = named
    dtype = list(FLOATS)[number % 3] if number > 3 else torch.float32
    on = graph.to(GPU, index=torch.int64 if number % 4 == 1 else torch.int32)
    if number % 5 == 4:
        on = on.with_values(None)
    where = f"{name}, width {width}, k {k}, {dtype}"
    try:
        return [(part, where, dtype, error) for part, error in _product_errors(on, width, k, dtype)]
    except Exception:  # an infinite error is a failed case
        return [("error", f"{where}: {reason()}", dtype, math.inf)]


def _product_errors(graph: Graph, width: int, k: int, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    generator = torch.Generator(GPU).manual_seed(0)
    x = torch.randn(graph.num_cols, width, generator=generator, device=GPU).to(dtype)
    grad = torch.randn(graph.num_rows, width, generator=generator, device=GPU).to(dtype)
    values, index = topk.top_k(x, k)
    plan, work = graph.plan(), cuda.divide(graph)
    exact_y = product.entrywise(plan, values.double(), index, width)
    exact_v = product.entrywise_backward(plan, grad.double(), index)
    sizes = plan if plan.value is None else plan._replace(value=plan.value.abs())
    added_y = product.entrywise(sizes, values.double().abs(), index, width)
    added_v = product.entrywise_backward(sizes, grad.double().abs(), index)
    exact_w = product.entry_gradient(plan, grad.double(), values.double(), index)
    y = cuda.forward(plan, work, values, index, width)
    yield "forward", _rowwise(y, exact_y, added_y)
    yield "forward twice", 0.0 if torch.equal(y, cuda.forward(plan, work, values, index, width)) else math.inf
    of_values, of_weight = cuda.backward(plan, work, grad, values, index, (True, True))
    yield "backward", _rowwise(of_values, exact_v, added_v)
    yield "weights", _overall(of_weight, exact_w)
    for span in {s for s in (4, 32) if s < k}:
        of_values, of_weight = cuda.backward(plan, work, grad, values, index, (True, True), span=span)
        yield "backward in tiles", _rowwise(of_values, exact_v, added_v)
        yield "weights in tiles", _overall(of_weight, exact_w)
    of_values, _ = cuda.backward(plan, work, grad, values, index, (True, False))
    yield "backward alone", _rowwise(of_values, exact_v, added_v)
    _, of_weight = cuda.backward(plan, work, grad, values, index, (False, True))
    yield "weights alone", _overall(of_weight, exact_w)
    strict = cuda.gathered(plan, grad, index)
    yield "backward in fixed order", _rowwise(strict, exact_v, added_v)


def reason() -> str:
    """The exception that is being handled, in one line; the traceback goes to standard error."""
    kind, error, _ = sys.exc_info()
    return f"{kind.__name__ if kind else ''}: {' '.join(str(error).split())[:300]}"


def _rowwise(got: Tensor, exact: Tensor, added: Tensor) -> float:
    """Worst error of a row over the row's length; where terms cancel to less than a hundredth of what was ``added`` up
    in absolute values, over that hundredth."""
    if exact.numel() == 0:
        return 0.0
    if not bool(got.isfinite().all()):
        return math.inf
    length = torch.maximum(exact.norm(dim=1), added.norm(dim=1) / 100).clamp_min(1e-30)
    return float(((got.double() - exact).norm(dim=1) / length).max())


def _overall(got: Tensor, exact: Tensor) -> float:
    if exact.numel() == 0:
        return 0.0
    return float((got.double() - exact).norm() / exact.norm().clamp_min(1e-30))


def check_interface(how: str) -> Result:
    """What users call, against float64: values, gradients of features and weights, repeatability, compilation."""
    found: Result = {"cases": 0, "failed": [], "chosen": {}}
    for name, graph in awkward_graphs():
        for dtype in FLOATS:
            where = f"{name}, {str(dtype).removeprefix('torch.')}"
            try:
                for line in _interface_errors(graph.to(GPU), dtype, how):
                    found["cases"] += 1
                    found["failed"] += [f"{where}: {line}"] if line else []
                if how == "auto":
                    rows = maxk(torch.randn(graph.num_cols, 256, device=GPU).to(dtype), 16)
                    found["chosen"][where] = choose(graph.to(GPU), rows)
            except Exception:  # the other cases still run; `failed` becomes the exit status
                found["failed"].append(f"{where}: {reason()}")
    return found


def _interface_errors(graph: Graph, dtype: torch.dtype, how: str) -> Iterator[str]:
    torch.manual_seed(0)
    x = torch.randn(graph.num_cols, 256, device=GPU).to(dtype)
    grad = torch.randn(graph.num_rows, 256, device=GPU).to(dtype)

    def run(graph: Graph, x: Tensor, grad: Tensor, how: str) -> list[Tensor]:
        x = x.clone().requires_grad_()
        assert graph.value is not None
        value = (
            graph.value.clone()
            .to(torch.float64 if x.dtype == torch.float64 else torch.float32)
            .requires_grad_()
        )
        y = aggregate(graph.with_values(value), maxk(x, 16), how)
        return [y.detach(), *torch.autograd.grad(y, (x, value), grad)]

    exact = run(graph, x.double(), grad.double(), "entries")
    got = run(graph, x, grad, how)
    for part, one, other in zip(("y", "x", "weights"), got, exact, strict=True):
        error = _overall(one, other)
        yield "" if error <= 2 * FLOATS[dtype] else f"{part} wrong by {error:.1e}"
    if how == "triton":
        return
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run(graph, x, grad, how) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    equal = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    yield "" if equal else "deterministic algorithms do not repeat"
    error = max(_overall(one, other) for one, other in zip(first, exact, strict=True))
    yield "" if error <= 2 * FLOATS[dtype] else f"deterministic algorithms are wrong by {error:.1e}"
    aggregate(graph, maxk(x, 16), how)
    torch._dynamo.reset()  # each case is another function, and only a few are compiled of one
    whole = torch.compile(lambda x: aggregate(graph, maxk(x, 16), how), backend="aot_eager", fullgraph=True)
    yield "" if _overall(whole(x), exact[0]) <= 2 * FLOATS[dtype] else "compiled, it is wrong"


# ---- timing -----------------------------------------------------------------------------------------------------------


def median_ms(program: Callable[[], Any], rounds: int = 20, warmup: int = 3) -> float:
    """Median of CUDA-event timings; fewer rounds for what takes long."""
    for _ in range(warmup):
        program()
    torch.cuda.synchronize()
    start = time.perf_counter()
    program()
    torch.cuda.synchronize()
    rounds = max(10, min(rounds, int(0.4 / max(1e-6, time.perf_counter() - start))))
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for first, second in pairs:
        first.record()
        program()
        second.record()
    torch.cuda.synchronize()
    return statistics.median(first.elapsed_time(second) for first, second in pairs)


def captured_ms(program: Callable[[], Any]) -> float:
    """The same without the host: replays of a CUDA graph, ten calls in each."""
    program()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            program()
    return median_ms(graph.replay) / 10


def copy_rate(numbers: int) -> float:
    """GB/s, read and written."""
    one = torch.empty(numbers, device=GPU)
    other = torch.empty_like(one)
    return 2 * one.nbytes / median_ms(lambda: other.copy_(one)) / 1e6


def top_k_times(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """N x 256 to compressed rows, beside torch.topk and the rate of a copy of 2 GiB."""
    rate = copy_rate(1 << (24 if options.quick else 28))
    yield "copy GB/s", {"value": rate}
    generator = torch.Generator(GPU).manual_seed(0)
    sizes = {"reddit": 232_965, "products": 2_449_029, "pubmed": 19_717}
    for name, rows in {"tiny": 4000}.items() if options.quick else sizes.items():
        x = torch.randn(rows, 256, generator=generator, device=GPU)
        for dtype in (torch.float32, torch.bfloat16) if name == "reddit" else (torch.float32,):
            typed = x.to(dtype)
            for k in KS:
                ours = median_ms(lambda: cuda.top_k(typed, k, torch.uint8))  # noqa: B023
                moved = rows * (256 * typed.element_size() + k * (typed.element_size() + 1))
                share = moved / ours / 1e6 / rate
                row = {"ms": ours, "share of copy rate": share}
                if name == "reddit":
                    row["torch.topk ms"] = median_ms(lambda: torch.topk(typed, k, dim=1), 10)  # noqa: B023
                yield f"{name}, {str(dtype).removeprefix('torch.')}, k = {k}", row


# ---- graphs -----------------------------------------------------------------------------------------------------------

GRAPHS: dict[str, tuple[int, int, int, float] | None] = {
    "reddit": (232_965, 114_615_891, 21_657, 1.3),
    "products": (2_449_029, 123_718_280, 17_481, 1.15),
    "ppa": None,
    "yelp": None,
    "arxiv": None,
    "pubmed": None,
}
"""Nodes, entries, largest degree and log-normal spread; None: the exact degree histogram is on file."""
NEAR = 2048
"""Consecutive nodes among which local neighbours are drawn."""


def stand_in(name: str, locality: float, data: Path, scale: float = 1.0) -> Graph:
    """A graph with the named one's degrees, drawn on the GPU as `planish_graph.generate.from_degrees` does on the CPU,
    with random values. Columns in proportion to degree, or with probability ``locality`` among the nodes nearby."""
    shape = GRAPHS[name]
    if shape is None:
        degrees = histogram_degrees(data / "graphs" / "degree_histograms.npz", name)
        if scale < 1:
            degrees = degrees[: max(100, int(scale * len(degrees)))].clamp_max(int(500 * scale) + 20)
    else:
        nodes, entries, largest, spread = shape
        nodes, largest = int(nodes * scale), max(9, int(largest * scale**0.5))
        entries = int(entries * scale**1.5)
        degrees = lognormal_degrees(nodes, entries, largest, spread)
    degrees = degrees.to(GPU)
    nodes, generator = len(degrees), torch.Generator(GPU).manual_seed(1)
    indptr = row_pointer(degrees, torch.int64)
    entries = int(indptr[-1])
    row = torch.repeat_interleave(degrees, output_size=entries)
    drawn = torch.randint(0, entries, (entries,), generator=generator, device=GPU)
    column = torch.searchsorted(indptr[1:], drawn, right=True)
    del drawn
    if locality:
        near = row // NEAR * NEAR + torch.randint(0, NEAR, (entries,), generator=generator, device=GPU)
        pick = torch.rand(entries, generator=generator, device=GPU) < locality
        column = torch.where(pick, near.clamp_max(nodes - 1), column)
        del near, pick
    key = (row * nodes + column).sort().values
    del row, column
    value = torch.rand(entries, generator=generator, device=GPU) + 0.5
    return Graph(indptr.int(), (key % nodes).int(), value)


def graph_times(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    names = options.graphs.split(",") if options.graphs else list(GRAPHS)
    for name in names:
        for locality in (0.0, 0.5):
            graph = stand_in(name, locality, options.data, 0.002 if options.quick else 1.0)
            yield f"{name}, locality {locality}", one_graph(graph, options)
            del graph
            torch.cuda.empty_cache()


def one_graph(graph: Graph, options: argparse.Namespace) -> Result:
    generator = torch.Generator(GPU).manual_seed(2)
    x = torch.randn(graph.num_cols, 256, generator=generator, device=GPU)
    grad = torch.randn(graph.num_rows, 256, generator=generator, device=GPU)
    small = graph.num_edges < 2_000_000
    found: Result = {
        "nodes": graph.num_rows, "entries": graph.num_edges, "largest degree": int(graph.degrees.max()), "k": {},
    }  # fmt: skip
    found["cuSPARSE ms"] = cusparse_times(graph, x, small)
    plan = forward_plan(graph)
    ways = {"windows": cuda.divide(graph), "sorted": cuda.divide(graph, None)}
    found["units, cut rows"] = [len(t) for t in ways["windows"]]
    for k in KS:
        values, index = cuda.top_k(x, k, torch.uint8)
        found["k"][k] = row = {}
        for way, work in ways.items():
            forward = lambda: cuda.forward(plan, work, values, index, 256)  # noqa: B023, E731
            backward = lambda: cuda.backward(plan, work, grad, values, index, (True, False))  # noqa: B023, E731
            for name, run in (("forward", forward), ("backward", backward)):
                row[f"{name} ms, {way}"] = median_ms(run)
                if small:
                    row[f"{name} captured ms, {way}"] = captured_ms(run)
            row[f"forward error, {way}"] = sampled_error(graph, forward(), values, index)
            row[f"backward error, {way}"] = sampled_backward_error(graph, backward()[0], grad, index)
        theirs = min(ms for name, ms in found["cuSPARSE ms"].items() if "captured" not in name)
        for name in ("forward", "backward"):
            row[f"{name} over cuSPARSE"] = theirs / min(row[f"{name} ms, {way}"] for way in ways)
        if small:  # what a user calls, the operators and the choice included
            rows = CBSR(values, index, 256)
            row["chosen"] = choose(graph, rows)
            row["operator ms"] = median_ms(lambda: aggregate(graph, rows))  # noqa: B023
            row["dense operator ms"] = median_ms(lambda: spmm(graph, x))
    return found


def forward_plan(graph: Graph) -> Any:
    """The tensors of A alone: the transpose is not needed by the kernels that are timed."""
    return Plan(graph.indptr, graph.indices, graph.value, graph.indptr, graph.indices, graph.indices)


def cusparse_times(graph: Graph, x: Tensor, small: bool) -> Result:
    """torch's product, and cuSPARSE's algorithms with everything prepared that can be."""
    found = {"torch": median_ms(lambda: csr_product(graph.indptr, graph.indices, graph.value, x), 10)}
    for algorithm in cusparse.ALGORITHMS:
        if (program := cusparse.product(graph, x, algorithm)) is not None:
            found[algorithm] = median_ms(program)
            if small:
                found[f"{algorithm}, captured"] = captured_ms(program)
    return found


def sampled_error(graph: Graph, y: Tensor, values: Tensor, index: Tensor) -> float:
    """Worst relative error of 60 rows, the longest, the first and the last among them, against float64."""
    worst = 0.0
    for row in _sample(graph.degrees):
        part = slice(int(graph.indptr[row]), int(graph.indptr[row + 1]))
        source = graph.indices[part].long()
        exact = torch.zeros(256, dtype=torch.float64, device=GPU)
        weight = 1.0 if graph.value is None else graph.value[part, None].double()
        exact.index_add_(0, index[source].long().flatten(), (weight * values[source].double()).flatten())
        worst = max(worst, float((y[row].double() - exact).norm() / exact.norm().clamp_min(1e-30)))
    return worst


def sampled_backward_error(graph: Graph, of_values: Tensor, grad: Tensor, index: Tensor) -> float:
    """The same for sources, found by one comparison over all entries each; few, with the most and least read one."""
    counts = torch.bincount(graph.indices, minlength=graph.num_cols)
    worst = 0.0
    for source in _sample(counts, 6):
        entries = (graph.indices == source).nonzero()[:, 0]
        rows = torch.searchsorted(graph.indptr.long(), entries, right=True) - 1
        weight = 1.0 if graph.value is None else graph.value[entries, None].double()
        exact = (weight * grad[rows][:, index[source].long()].double()).sum(0)
        worst = max(worst, float((of_values[source].double() - exact).norm() / exact.norm().clamp_min(1e-30)))
    return worst


def _sample(counts: Tensor, number: int = 60) -> list[int]:
    some = torch.randint(0, len(counts), (number,), generator=torch.Generator().manual_seed(3)).tolist()
    return sorted({*some, 0, len(counts) - 1, int(counts.argmax())})


# ---- whole networks ---------------------------------------------------------------------------------------------------


class OnMatrix(GraphNet):
    """The network of `planish_maxk.nets` for a matrix that is given: (x [N, F], matrix) to logits."""

    recompute = False
    """Whether blocks are recomputed in the backward pass, so that their inputs [N, D] alone are kept."""

    def forward(self, x: Tensor, matrix: Graph) -> Tensor:  # type: ignore[override]
        h = self.input(x)
        for block in self.blocks:
            h = checkpoint(block, h, matrix, use_reentrant=False) if self.recompute else block(h, matrix)
        return self.output(h)  # type: ignore[no-any-return]


def epoch_times(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Forward, backward and optimiser of 4-layer, 256-wide networks with 602 features and 41 classes, TF32 products.

    The network with ReLU is plain torch; its sparse products are the faster of cuSPARSE's algorithms, preprocessed, as
    `planish_graph.dispatch` measures them (PyG is not on this machine).
    """
    torch.backends.cuda.matmul.allow_tf32 = True
    for locality in (0.0, 0.5):
        graph = stand_in("reddit", locality, options.data, 0.002 if options.quick else 1.0)
        nodes = graph.num_rows
        generator = torch.Generator(GPU).manual_seed(4)
        x = torch.randn(nodes, 602, generator=generator, device=GPU)
        y = torch.randint(0, 41, (nodes,), generator=generator, device=GPU)
        for kind in ("sage", "gcn"):
            degree = graph.degrees.float().clamp_min(1)
            rows, columns = graph.rows.long(), graph.indices.long()
            value = 1 / degree[rows] if kind == "sage" else (degree[rows] * degree[columns]).rsqrt()
            del rows, columns
            batch = {"x": x, "matrix": graph.with_values(value)}
            row = {"relu": one_network(kind, None, "nothing", batch, y)}
            if not locality:
                row["relu, blocks recomputed"] = one_network(kind, None, "everything", batch, y)
            row["spmm chosen"] = SPMM.choose(batch["matrix"], torch.empty(nodes, 256, device=GPU)).name
            for k in (16, 32):
                for what in ("nothing", "layers", "everything"):
                    row[f"k = {k}, recompute {what}"] = ours = one_network(kind, k, what, batch, y)
                    for name in ("epoch ms", "activations MB", "peak MB"):
                        ours[f"{name}, relu over this"] = row["relu"][name] / max(ours[name], 1e-9)
            yield f"{kind}, locality {locality}", row


def one_network(kind: Any, k: int | None, what: Any, batch: dict[str, Any], y: Tensor) -> Result:
    """Milliseconds an epoch, and what it keeps in memory."""
    torch.manual_seed(0)
    net: Any = OnMatrix(602, 41, kind=kind, width=256, blocks=4).to(GPU)
    net.recompute = k is None and what == "everything"
    if k is not None:
        net = rewrite(net, k, None, what)
    everything = torch.ones(len(y), dtype=torch.bool, device=GPU)
    training = Training(net, batch, y, everything, everything, lr=0.01, weight_decay=0.0)
    losses = [float(training.step()) for _ in range(2)]
    found: Result = {"epoch ms": median_ms(training.step, 10, 1), "losses": losses}
    training.optimizer.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    logits = net(**batch)
    found["activations MB"] = (torch.cuda.memory_allocated() - before - logits.nbytes) / 1e6
    del logits
    torch.cuda.reset_peak_memory_stats()
    training.step()
    found["peak MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


# ---- running ----------------------------------------------------------------------------------------------------------

PARTS = {"check": check, "topk": top_k_times, "graphs": graph_times, "epoch": epoch_times}


def run_part(name: str, options: argparse.Namespace) -> None:
    """One part in this process; the file is written after every result."""
    found: Result = {}
    start = time.time()
    try:
        for key, value in PARTS[name](options):
            found[key] = value
            options.out.write_text(json.dumps(found))
            print(f"{time.time() - start:6.1f} s  {name}: {key} {json.dumps(value)[:300]}", flush=True)
    except Exception:  # what was found before is kept; the exit status tells
        found["error"] = reason()
        traceback.print_exc()
    options.out.write_text(json.dumps({**found, "seconds": time.time() - start}))
    cases = [value for value in found.values() if isinstance(value, dict) and value.get("failed")]
    sys.exit("error" in found or bool(cases))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--graphs", default="")
    parser.add_argument("--alone", action="store_true", help="run the one part in this process")
    options = parser.parse_args()
    if options.alone:
        run_part(options.parts, options)
        return
    result: Result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result |= {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": getattr(kernels.triton, "__version__", "") if kernels.AVAILABLE else None,
        "python": platform.python_version(),
    }
    failed: list[str] = []
    for part in options.parts.split(","):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "part.json"
            command = [
                sys.executable,
                __file__,
                "--data",
                str(options.data),
                "--out",
                str(out),
                "--parts",
                part,
                "--alone",
            ]
            command += ["--quick"] * options.quick + ["--graphs", options.graphs] * bool(options.graphs)
            code = subprocess.run(command, check=False).returncode
            result[part] = json.loads(out.read_text()) if out.is_file() else {}
            if code:
                result[part]["exit code"] = code
                failed.append(part)
        options.out.write_text(json.dumps(result, indent=1))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {options.out}")


if __name__ == "__main__":
    main()
