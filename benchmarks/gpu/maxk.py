"""MaxK on one GPU: every kernel against float64, top-k beside the copy rate, forward and backward beside cuSPARSE on graphs
with the degrees of well-known ones, and an epoch of whole networks.

    PYTHONPATH=core/src:sdk/src:plugins/graph/src:plugins/maxk/src python3 benchmarks/gpu/maxk.py \
        --data FOLDER --out maxk.json [--quick] [--parts check,topk,graphs,epoch,pipeline,batches]

FOLDER holds graphs/degree_histograms.npz. Every part runs in a process of its own, so that one that fails leaves the
others alone; the file is written after every result, and keeps parts of earlier runs that are not run again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PARTS_OF_PLANISH = ("core", "sdk", "plugins/graph", "plugins/maxk")
sys.path[:0] = [str(ROOT / part / "src") for part in PARTS_OF_PLANISH]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402

from planish_graph import cusparse, dispatch  # noqa: E402
from planish_graph.convert import from_edges  # noqa: E402
from planish_graph.dispatch import SPMM  # noqa: E402
from planish_graph.generate import from_degrees, histogram_degrees, lognormal_degrees  # noqa: E402
from planish_graph.graph import Graph, Plan, row_pointer  # noqa: E402
from planish_graph.reference import csr_product  # noqa: E402
from planish_graph.spmm import spmm  # noqa: E402 - seen in forward passes that are traced
from planish_maxk import cuda, kernels, product, topk  # noqa: E402
from planish_maxk.cbsr import CBSR, aggregate, choose, maxk  # noqa: E402
from planish_maxk.cuda import products  # noqa: E402
from planish_maxk.cuda.tiles import tile_team  # noqa: E402
from planish_maxk.cuda.work import busy  # noqa: E402
from planish_maxk.nets import GraphNet  # noqa: E402
from planish_maxk.rewrite import rewrite  # noqa: E402
from planish_maxk.training import Training  # noqa: E402
from planish_maxk.ways import WAYS  # noqa: E402

Result = dict[str, Any]
GPU = torch.device("cuda", 0)
FLOATS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Type of the features, and its unit roundoff."""
SURE = 2.0
"""How far the error of a sum may go beyond what random rounding does to it; see `bound`."""
KS = (8, 16, 32, 64)
THREADS = 8


# ---- correctness ------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Each kernel on small awkward inputs; the worst error of each over its bound, and what failed.

    Most of the time goes into compiling, so that what is independent runs in processes of its own.
    """
    ways = [
        how
        for how in ("cuda", "cuda-sorted", "cuda-tiles", "cuda-gather", "triton", "dense", "auto")
        if how in (*WAYS, "auto")
    ]
    jobs: dict[str, tuple[Callable[..., Result], Any]] = {
        "top-k": (check_top_k, options.quick),
        "products": (check_products, options.quick),
        **{f"interface, {how}": (check_interface, how) for how in ways},
    }
    with ProcessPoolExecutor(len(jobs), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(*job): name for name, job in jobs.items()}
        for done in as_completed(running):
            yield running[done], done.result()


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
    """Forward, backward (atomic, by spans and tiles, in fixed order) and the gradient of weights against float64."""
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
        if not error <= 1:
            found["failed"].append(f"{part} on {where}: {error:.2g} x the bound")
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
    of_y, of_v, of_w = references(plan, values, index, grad)
    y = cuda.forward(plan, work, values, index, width)
    yield "forward", of_y(y)
    yield "forward twice", 0.0 if torch.equal(y, cuda.forward(plan, work, values, index, width)) else math.inf
    passes = {"": lambda wanted: cuda.backward(plan, work, grad, values, index, wanted)}
    for span in {s for s in (4, 32) if s < k}:
        passes[f" by spans of {span}"] = lambda wanted, span=span: cuda.backward(
            plan, work, grad, values, index, wanted, span=span
        )
    if cuda.fits_tiles(values, width):
        tiles = cuda.divide_tiles(graph, cuda.tile_rows(width, 0))
        passes[" by tiles"] = lambda wanted: cuda.backward_tiles(plan, tiles, grad, values, index, wanted)
    for name, run in passes.items():
        of_values, of_weight = run((True, True))
        yield f"backward{name}", of_v(of_values)
        yield f"weights{name}", of_w(of_weight)
        yield f"backward{name} alone", of_v(run((True, False))[0])
        yield f"weights{name} alone", of_w(run((False, True))[1])
    yield "backward in fixed order", of_v(cuda.gathered(plan, grad, index))


Judge = Callable[[Tensor], float]


def references(
    plan: Plan, values: Tensor, index: Tensor, grad: Tensor, stored: float = 0.0
) -> tuple[Judge, Judge, Judge]:
    """Judges of y, of the gradient of the kept values, and of that of A's values: the worst error over its bound.

    ``stored`` is the unit roundoff to which a way may round A's values before it multiplies.
    """
    width, alike = grad.shape[1], plan.value is None
    sizes = plan if plan.value is None else plan._replace(value=plan.value.abs())
    wide, across, kept = values.double(), grad.double(), torch.tensor(values.shape[1], device=GPU)
    rows = plan.indptr.diff()[:, None]
    sources = torch.bincount(plan.indices, minlength=len(values))[:, None]
    return (
        judge(
            product.entrywise(plan, wide, index, width),
            bound(product.entrywise(sizes, wide.abs(), index, width), rows, stored, alike),
        ),
        judge(
            product.entrywise_backward(plan, across, index),
            bound(product.entrywise_backward(sizes, across.abs(), index), sources, stored, alike),
        ),
        judge(
            product.entry_gradient(plan, across, wide, index),
            bound(product.entry_gradient(plan, across.abs(), wide.abs(), index), kept, 0.0),
        ),
    )


def bound(added: Tensor, terms: Tensor, stored: float, alike: bool = False) -> Tensor:
    """How far a sum of so many rounded products, in fp32 and in any order, may be off.

    The size of the result says nothing about that, since terms cancel: what counts is ``added``, the sum of the terms'
    absolute values. The error is at most n u of it, and sqrt(n) u but for a small factor where roundings are independent
    (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 4.2; Higham and Mary, "A New Approach to
    Probabilistic Rounding Error Analysis", 2019). Terms that are ``alike``, as those of duplicates without weights, are
    rounded alike; for them the first bound holds alone. By the second, a lost term is seen in rows of up to 40,000.
    """
    n = terms.double() + 2  # the product, and the first addition
    return added * (FLOATS[torch.float32] * (n if alike else SURE * n.sqrt()) + stored)


def judge(exact: Tensor, allowed: Tensor) -> Judge:
    def worst(got: Tensor) -> float:
        if exact.numel() == 0:
            return 0.0
        if got.shape != exact.shape or not bool(got.isfinite().all()):
            return math.inf
        # Rounding of what is stored, of numbers below the normal ones too.
        least = torch.finfo(got.dtype).smallest_normal
        limit = allowed + 2 * FLOATS[got.dtype] * exact.abs().clamp_min(least)
        return float(((got.double() - exact).abs() / limit).max())

    return worst


def reason() -> str:
    """The exception that is being handled, in one line; the traceback goes to standard error."""
    kind, error, _ = sys.exc_info()
    return f"{kind.__name__ if kind else ''}: {' '.join(str(error).split())[:300]}"


def check_interface(how: str) -> Result:
    """What users call, against float64: values, gradients of features and weights, repeatability, compilation."""
    found: Result = {"cases": 0, "failed": [], "chosen": {}}
    for name, graph in awkward_graphs():
        for dtype in (
            (torch.float32, torch.bfloat16) if how == "auto" else FLOATS
        ):  # timing the ways takes a while
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
    rows = maxk(x, 16)
    stored = FLOATS[dtype] if dtype != torch.float32 else 0.0
    judges = references(graph.plan(), rows.values, rows.positions, grad, stored)

    def run() -> list[Tensor]:
        leaf = x.clone().requires_grad_()
        value = graph.value.clone().requires_grad_()  # type: ignore[union-attr]
        y = aggregate(graph.with_values(value), maxk(leaf, 16), how)
        return [y.detach(), *torch.autograd.grad(y, (leaf, value), grad)]

    def lines(got: list[Tensor], when: str) -> Iterator[str]:
        y, of_x, of_weight = got
        kept = of_x.gather(1, rows.positions.long())
        for part, one, worst in zip(("y", "x", "weights"), (y, kept, of_weight), judges, strict=True):
            error = worst(one)
            yield "" if error <= 1 else f"{when}{part} wrong by {error:.2g} x the bound"
        others = of_x.count_nonzero() - kept.count_nonzero()
        yield f"{when}{int(others)} gradients of entries that were dropped" if others else ""

    yield from lines(run(), "")
    error = judges[0](aggregate(graph, rows, how))
    yield "" if error <= 1 else f"without gradients wrong by {error:.2g} x the bound"
    if how == "triton":
        return
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (run() for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    equal = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    yield "" if equal else "deterministic algorithms do not repeat"
    yield from lines(first, "with deterministic algorithms ")
    if (
        dtype != torch.float32 or how == "cuda-sorted"
    ):  # traced as the others are, and tracing takes most of the time
        return
    torch._dynamo.reset()  # each case is another function, and only a few are compiled of one
    whole = torch.compile(lambda x: aggregate(graph, maxk(x, 16), how), backend="aot_eager", fullgraph=True)
    leaf = x.clone().requires_grad_()
    y = whole(leaf)
    (of_x,) = torch.autograd.grad(y, leaf, grad)
    for part, error in (
        ("y", judges[0](y.detach())),
        ("x", judges[1](of_x.gather(1, rows.positions.long()))),
    ):
        yield "" if error <= 1 else f"compiled, {part} is wrong by {error:.2g} x the bound"


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
    rounds = 200 if small else 20  # what takes microseconds depends on the host
    found: Result = {
        "nodes": graph.num_rows, "entries": graph.num_edges, "largest degree": int(graph.degrees.max()), "k": {},
    }  # fmt: skip
    found["cuSPARSE ms"] = cusparse_times(graph, x, small, rounds)
    plan = graph.plan() if small else forward_plan(graph)
    ways = {"windows": cuda.divide(graph), "sorted": cuda.divide(graph, None)}
    tiles = cuda.divide_tiles(graph, cuda.tile_rows(256, 0))
    found["units, cut rows"] = [len(t) for t in ways["windows"]]
    for k in KS:
        values, index = cuda.top_k(x, k, torch.uint8)
        found["k"][k] = row = {}
        operands = grad, values, index, (True, False)
        programs: dict[tuple[str, str], Callable[[], Any]] = {
            ("backward", "tiles"): partial(cuda.backward_tiles, plan, tiles, *operands)
        }
        if small:
            programs["backward", "gather"] = partial(cuda.backward_gathered, plan, ways["windows"], *operands)
        for way, work in ways.items():
            programs["forward", way] = partial(
                cuda.forward, plan, work, values, index, 256, far=way == "sorted"
            )
            programs["backward", way] = partial(cuda.backward, plan, work, *operands)
        for (name, way), run in programs.items():
            row[f"{name} ms, {way}"] = median_ms(run, rounds)
            if small:
                row[f"{name} captured ms, {way}"] = captured_ms(run)
            if name == "forward":
                row[f"{name} error, {way}"] = sampled_error(graph, run(), values, index)
            else:
                row[f"{name} error, {way}"] = sampled_backward_error(graph, run()[0], grad, index)
        theirs = min(ms for name, ms in found["cuSPARSE ms"].items() if "captured" not in name)
        for name in ("forward", "backward"):
            row[f"{name} over cuSPARSE"] = theirs / min(
                ms for way, ms in row.items() if way.startswith(f"{name} ms")
            )
        if small:  # what a user calls, the operators and the choice included
            rows = CBSR(values, index, 256)
            row["chosen"] = choose(graph, rows)
            row["operator ms"] = median_ms(lambda: aggregate(graph, rows), rounds)  # noqa: B023
            row["dense operator ms"] = median_ms(lambda: spmm(graph, x), rounds)
    return found


def forward_plan(graph: Graph) -> Any:
    """The tensors of A alone: the transpose is not needed by the kernels that are timed."""
    return Plan(graph.indptr, graph.indices, graph.value, graph.indptr, graph.indices, graph.indices)


def cusparse_times(graph: Graph, x: Tensor, small: bool, rounds: int) -> Result:
    """torch's product, and cuSPARSE's algorithms with everything prepared that can be."""
    found = {"torch": median_ms(lambda: csr_product(graph.indptr, graph.indices, graph.value, x), 10)}
    for algorithm in cusparse.ALGORITHMS:
        if (program := cusparse.product(graph, x, algorithm)) is not None:
            found[algorithm] = median_ms(program, rounds)
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


# ---- settings of the kernels -----------------------------------------------------------------------------------------


def variant_times(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """How a warp is divided, and how much is in flight."""
    for name, locality in (("reddit", 0.5), ("yelp", 0.0), ("ppa", 0.0), ("products", 0.5), ("arxiv", 0.0)):
        if options.graphs and name not in options.graphs.split(","):
            continue
        graph = stand_in(name, locality, options.data, 0.002 if options.quick else 1.0)
        for k in KS:
            yield f"{name}, locality {locality}, k = {k}", one_variant(graph, k)
        del graph
        torch.cuda.empty_cache()


def one_variant(graph: Graph, k: int) -> Result:
    generator = torch.Generator(GPU).manual_seed(2)
    x = torch.randn(graph.num_cols, 256, generator=generator, device=GPU)
    grad = torch.randn(graph.num_rows, 256, generator=generator, device=GPU)
    values, index = cuda.top_k(x, k, torch.uint8)
    plan, work = forward_plan(graph), cuda.divide(graph)
    level = busy(graph.num_rows, graph.num_edges)
    programs: dict[str, Callable[[], Any]] = {}
    usual = products.forward_team(k, 256, 4, level)
    for vec, unroll in itertools.product({usual.vec, min(4, 2 * usual.vec)}, (1, 2, 4, 8)):
        lanes = min(32, k // vec)
        groups = min(4, 32 // lanes)
        if groups * unroll <= 32:
            team = replace(usual, vec=vec, lanes=lanes, groups=groups, unroll=unroll)
            programs[f"forward, {vec} a lane, {unroll} in flight"] = partial(
                cuda.forward, plan, work, values, index, 256, team
            )
    span = products.span_of(len(index), k)
    programs["backward"] = partial(cuda.backward, plan, work, grad, values, index, (True, False))
    tiles = cuda.divide_tiles(graph, cuda.tile_rows(256, 0))
    for unroll in (2, 4, 8):
        team = replace(tile_team(span), unroll=unroll)
        programs[f"backward, tiles, {unroll} in flight"] = partial(
            cuda.backward_tiles, plan, tiles, grad, values, index, (True, False), team
        )
    with ThreadPoolExecutor(THREADS) as pool:  # compiles
        ready = dict(zip(programs, pool.map(lambda run: why_not(run), programs.values()), strict=True))
    found: Result = {}
    for name, run in programs.items():
        if ready[name]:
            found[name] = {"error": ready[name]}
            continue
        result = run()
        if name.startswith("forward"):
            wrong = sampled_error(graph, result, values, index)
        else:
            wrong = sampled_backward_error(graph, result[0], grad, index)
        del result
        found[name] = {"ms": median_ms(run, 10), "error": wrong}
    return found


def why_not(run: Callable[[], Any]) -> str:
    """Why a program does not run, or nothing."""
    try:
        run()
        torch.cuda.synchronize()
    except Exception:  # a setting that does not fit
        return reason()
    return ""


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
    for locality in (0.5, 0.0):
        names = {kind: f"{kind}, locality {locality}" for kind in ("sage", "gcn")}
        kinds = [
            kind for kind, name in names.items() if name in options.graphs.split(";") or not options.graphs
        ]
        for kind, batch, y in reddit(locality, kinds, options):
            name = names[kind]
            row = {"relu": one_network(kind, None, "nothing", batch, y)}
            row["spmm chosen"] = SPMM.choose(batch["matrix"], torch.empty(len(y), 256, device=GPU)).name
            yield name, row
            cases = [(k, what) for k in (16, 32) for what in ("nothing", "layers", "half", "everything")]
            cases += [] if locality else [(None, "everything")]
            for k, what in cases:
                ours = one_network(kind, k, what, batch, y)
                for part in ("epoch ms", "activations MB", "peak MB"):
                    ours[f"{part}, relu over this"] = row["relu"][part] / max(ours[part], 1e-9)
                row["relu, blocks recomputed" if k is None else f"k = {k}, recompute {what}"] = ours
                yield name, row


def reddit(
    locality: float, kinds: Sequence[str], options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
    """What networks of these kinds need on the Reddit-like graph: inputs by name, and labels."""
    if not kinds:
        return
    torch.backends.cuda.matmul.allow_tf32 = True
    graph = stand_in("reddit", locality, options.data, 0.002 if options.quick else 1.0)
    nodes = graph.num_rows
    generator = torch.Generator(GPU).manual_seed(4)
    x = torch.randn(nodes, 602, generator=generator, device=GPU)
    y = torch.randint(0, 41, (nodes,), generator=generator, device=GPU)
    for kind in kinds:
        degree = graph.degrees.float().clamp_min(1)
        rows, columns = graph.rows.long(), graph.indices.long()
        value = 1 / degree[rows] if kind == "sage" else (degree[rows] * degree[columns]).rsqrt()
        del rows, columns
        # A structure of its own: descriptors of cuSPARSE are kept with it, and other values would have to be copied there.
        own = Graph(graph.indptr.clone(), graph.indices.clone(), value, nodes)
        yield kind, {"x": x, "matrix": own}, y
        del own, value
        torch.cuda.empty_cache()


def profiles(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """What an epoch at k = 32 consists of: milliseconds of each kernel on the GPU."""
    for kind, batch, y in reddit(0.5, ("sage", "gcn"), options):
        for k in (32, None):
            training = network(kind, k, "nothing", batch, y)
            for _ in range(3):
                training.step()
            activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
            with torch.profiler.profile(activities=activities) as seen:
                for _ in range(2):
                    training.step()
                torch.cuda.synchronize()
            rows = [
                (event.self_device_time_total / 2000, event.count / 2, event.key[:110])
                for event in seen.key_averages()
                if event.device_type == torch.autograd.DeviceType.CUDA
            ]
            rows.sort(reverse=True)
            yield (
                f"{kind}, k = {k}",
                {
                    "ms in kernels": sum(row[0] for row in rows),
                    "epoch ms": median_ms(training.step, 10, 1),
                    "kernels": [[round(ms, 3), count, name] for ms, count, name in rows[:45]],
                },
            )


def network(kind: Any, k: int | None, what: Any, batch: dict[str, Any], y: Tensor) -> Training:
    torch.manual_seed(0)
    net: Any = OnMatrix(602, 41, kind=kind, width=256, blocks=4).to(GPU)
    net.recompute = k is None and what == "everything"
    if k is not None:
        net = rewrite(net, k, None, what)
    everything = torch.ones(len(y), dtype=torch.bool, device=GPU)
    return Training(net, batch, y, everything, everything, lr=0.01, weight_decay=0.0)


def one_network(kind: Any, k: int | None, what: Any, batch: dict[str, Any], y: Tensor) -> Result:
    """Milliseconds an epoch, and what it keeps in memory."""
    training = network(kind, k, what, batch, y)
    losses = [float(training.step()) for _ in range(2)]
    found: Result = {"epoch ms": median_ms(training.step, 10, 1), "losses": losses}
    training.optimizer.zero_grad()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    logits = training.module(**batch)
    found["activations MB"] = (torch.cuda.memory_allocated() - before - logits.nbytes) / 1e6
    del logits
    torch.cuda.reset_peak_memory_stats()
    training.step()
    found["peak MB"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    return found


# ---- pipelines --------------------------------------------------------------------------------------------------------


def pipelines(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """`planish run` with a GCN, on the GPU: what its record says, and how long the command took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in (*PARTS_OF_PLANISH, "plugins/testbed"):
            describe(ROOT / part / "pyproject.toml", folder / "site")
        recipe = folder / "recipe.yaml"
        epochs = 5 if options.quick else 100
        recipe.write_text(
            f"planish: 1\nsource: testbed:graph\nstages:\n  - maxk: {{k: 16, epochs: {epochs}}}\n"
        )
        paths = [str(folder / "site"), str(ROOT / "plugins/testbed/src"), *sys.path]
        command = [sys.executable, "-m", "planish.cli.app", "run", str(recipe), "--out", str(folder / "run")]
        start = time.time()
        done = subprocess.run(
            [*command, "--device", GPU.type],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            capture_output=True,
            text=True,
            check=False,
        )
        found: Result = {"seconds": time.time() - start, "exit code": done.returncode}
        if done.returncode:
            found["failed"] = [(done.stderr or done.stdout)[-1500:]]
        for record in sorted((folder / "run").rglob("record.json")):
            found[record.parent.name] = json.loads(record.read_text()).get("facts")
        found["says"] = done.stdout[-1500:]
        yield "testbed:graph", found


def describe(project: Path, site: Path) -> None:
    """What an installed distribution says of itself, so that its entry points are found without installing it."""
    about = tomllib.loads(project.read_text())["project"]
    folder = site / f"{about['name'].replace('-', '_')}-{about['version']}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n"
    )
    groups = about.get("entry-points", {})
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items())
        for group, points in groups.items()
    ]
    (folder / "entry_points.txt").write_text("\n".join(lines))


def mini_batches(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Forward and backward on graphs that are new at every step, as mini-batches are; milliseconds from idle to idle."""
    nodes, entries = (1_000, 5_000) if options.quick else (10_000, 100_000)
    x = torch.randn(nodes, 256, device=GPU, requires_grad=True)
    steps: dict[str, Callable[[Graph], Tensor]] = {
        "spmm": lambda graph: spmm(graph, x),
        "maxk, k = 32": lambda graph: aggregate(graph, maxk(x, 32)),
    }
    shared = dispatch.ALIKE
    for (name, step), (way, alike) in itertools.product(
        steps.items(), {"each timed": 0, "sharing a choice": shared}.items()
    ):
        dispatch.ALIKE = alike
        taken = []
        for graph in _new_graphs(nodes, entries, 12):
            torch.cuda.synchronize()
            start = time.perf_counter()
            step(graph).sum().backward()  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
            taken.append(1e3 * (time.perf_counter() - start))
        yield (
            f"{name}, {way}",
            {"first ms": taken[0], "median of those after ms": statistics.median(taken[2:])},
        )
    dispatch.ALIKE = shared


def _new_graphs(nodes: int, entries: int, number: int) -> Iterator[Graph]:
    generator = torch.Generator(GPU).manual_seed(0)
    for _ in range(number):
        more = int(torch.randint(0, entries // 20, (1,), generator=generator, device=GPU))
        pairs = torch.randint(0, nodes, (2, entries + more), generator=generator, device=GPU)
        yield from_edges(pairs, (nodes, nodes))


# ---- running ----------------------------------------------------------------------------------------------------------

PARTS = {
    "check": check,
    "topk": top_k_times,
    "graphs": graph_times,
    "epoch": epoch_times,
    "pipeline": pipelines,
    "batches": mini_batches,
}
ASKED = {"variants": variant_times, "profile": profiles}
"""Parts that run only where they are asked for."""


def run_part(name: str, options: argparse.Namespace) -> None:
    """One part in this process; what is found is in the file at once."""
    start = time.time()
    keep(options.out, name, {})
    keep(options.out, name, {"when": time.strftime("%Y-%m-%d %H:%M", time.gmtime())})
    try:
        for key, value in PARTS[name](options):
            keep(options.out, name, {key: value, "seconds": time.time() - start})
            print(f"{time.time() - start:6.1f} s  {name}: {key} {json.dumps(value)[:300]}", flush=True)
    except Exception:  # what was found before is kept; the exit status tells
        keep(options.out, name, {"error": reason()})
        traceback.print_exc()
    found = json.loads(options.out.read_text())[name]
    cases = [value for value in found.values() if isinstance(value, dict) and value.get("failed")]
    sys.exit("error" in found or bool(cases))


def keep(path: Path, part: str, found: Result) -> None:
    """Add to a part of the file; with nothing to add, the part begins anew. Killed at any time, a whole file is left."""
    result: Result = json.loads(path.read_text()) if path.is_file() else {}
    result[part] = {**result.get(part, {}), **found} if found else {}
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1))
    new.replace(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join((*PARTS, *ASKED))}")
    parser.add_argument("--graphs", default="", help="only these; epochs by name, with ; between them")
    parser.add_argument("--alone", action="store_true", help="run the one part in this process")
    options = parser.parse_args()
    PARTS.update(ASKED)
    if options.alone:
        run_part(options.parts, options)
        return
    about = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": getattr(kernels.triton, "__version__", "") if kernels.AVAILABLE else None,
        "python": platform.python_version(),
    }
    result: Result = json.loads(options.out.read_text()) if options.out.is_file() else {}
    options.out.write_text(json.dumps({**result, **about}, indent=1))
    failed = [part for part in options.parts.split(",") if run_apart(part, options)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {options.out}")


def run_apart(part: str, options: argparse.Namespace) -> int:
    """The part's exit status; the process ends with this one."""
    command = [
        sys.executable,
        __file__,
        "--data",
        str(options.data),
        "--out",
        str(options.out),
        "--parts",
        part,
        "--alone",
    ]
    command += ["--quick"] * options.quick + ["--graphs", options.graphs] * bool(options.graphs)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    process = subprocess.Popen(command)
    try:
        code = process.wait()
    finally:
        process.kill()
    if code:
        keep(options.out, part, {"exit code": code})
    return code


if __name__ == "__main__":
    main()
