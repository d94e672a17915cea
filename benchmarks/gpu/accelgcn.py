"""SpMM on one GPU: planish-accelgcn beside cuSPARSE, on stand-ins for well-known graphs.

Every result is compared with float64 on sampled rows before it is timed. Times are of GPU work (short calls many in one
CUDA graph), medians of at least 10; what a call costs on the host is reported apart.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.bench import Row
from planish.errors import PlanishError
from planish_accelgcn import candidates, kernel, sources
from planish_accelgcn.benchmark import BARS, HISTOGRAMS, LOGNORMAL, WIDTHS
from planish_accelgcn.ops import spmm as fused
from planish_accelgcn.reference import Fused
from planish_accelgcn.settings import NAMED, Setting, fitted
from planish_graph import cusparse, driver, nvrtc
from planish_graph.dispatch import SPMM
from planish_graph.generate import from_degrees, histogram_degrees, lognormal_degrees
from planish_graph.graph import Graph
from planish_graph.spmm import spmm

BOUND = {torch.float32: 1e-5, torch.float16: 6e-4, torch.bfloat16: 5e-3}
COMMAND = "python benchmarks/gpu/accelgcn.py --data FOLDER --out FILE"
CHECKED = (
    Setting(chunk=2048, segment=128, blocks=1),
    Setting(line=256, chunk=4096, segment=64, threads=128, blocks=1, unroll=2),
    Setting(line=512, chunk=1024, threads=128, blocks=1, unroll=2, short=0),
)
ODD = (1, 7, 31, 32, 33, 64, 96, 128, 129, 159, 160, 191, 193, 255, 256, 257, 512)
Run = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data", type=Path, required=True, help="folder that holds graphs/degree_histograms.npz"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="graphs of 2 %% of their size")
    every = (f"{name}:{locality}" for locality in (0.0, 0.5) for name in (*LOGNORMAL, *HISTOGRAMS))
    parser.add_argument("--graphs", default=",".join(every), help="NAME:LOCALITY, commas between")
    parser.add_argument("--parts", default=",".join(PARTS), help="what else, commas between")
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument(
        "--deadline", type=float, default=1e9, help="seconds after which nothing new is begun"
    )
    parser.add_argument(
        "--earlier", type=Path, help="a result of the same kernels, for all that is not measured now"
    )
    options = parser.parse_args()
    began = time.perf_counter()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    record: dict[str, Any] = {"benchmark": "accelgcn", "versions": versions, "rows": [], "failed": []}
    late = lambda: time.perf_counter() - began > options.deadline  # noqa: E731

    def part(name: str, run: Callable[[], Any]) -> None:
        try:
            record[name] = run()
        except Exception:  # the other parts still run; the exit status tells
            record["failed"].append({"part": name, "text": traceback.format_exc()[-1500:]})
            print(name, traceback.format_exc()[-800:], flush=True)
        record["seconds"] = round(time.perf_counter() - began, 1)
        print(f"{name}: {record['seconds']} s", flush=True)
        options.out.write_text(json.dumps(record, indent=1))

    part("programs", lambda: compiled_ahead(wanted()))
    record["device"] = torch.cuda.get_device_name()
    for candidate in candidates.spmm():
        SPMM.register(candidate)
    if options.earlier:
        earlier = json.loads(options.earlier.read_text())
        record |= {name: earlier[name] for name in (*PARTS, "cells") if name in earlier}
    cells: list[dict[str, Any]] = record.setdefault("cells", [])
    for graph in options.graphs.split(",") if options.graphs else ():
        name, locality = graph.split(":")

        def cells_of(name: str = name, locality: float = float(locality)) -> None:
            scale = 0.02 if options.quick else 1.0
            for cell in measured(name, locality, options.data, scale, options.repeats):
                put(cells, cell)
                if late():
                    break

        if not late():
            part("graph", cells_of)
            torch.cuda.empty_cache()
    record.pop("graph", None)
    for name in options.parts.split(",") if options.parts else ():
        part(name, partial(PARTS[name], options.data))
        print(name, json.dumps(record.get(name), indent=1), flush=True)
    part("rows", lambda: [row.as_dict() for row in summary(record)])
    for row in record["rows"]:
        if "geometric" in row["metric"]:
            print(row["metric"], round(row["value"], 3), row["holds"], flush=True)
    bad = record.get("checks", {}).get("bad", []) + record.get("operators", {}).get("failed", [])
    bad += [way for cell in cells for way in cell.get("failed", ())]
    if record["failed"] or bad:
        sys.exit(f"{len(record['failed'])} parts and {len(bad)} checks failed; see {options.out}")
    print("OK", flush=True)


def put(cells: list[dict[str, Any]], cell: dict[str, Any]) -> None:
    """Add a cell, in the place of an earlier one of the same kind."""
    kind = lambda c: (c["graph"], c["locality"], c.get("type"), c.get("width"), "preprocessing ms" in c)  # noqa: E731
    cells[:] = [other for other in cells if kind(other) != kind(cell)] + [cell]


# ---- graphs, peers and clocks ---------------------------------------------------------------------------------------


def stand_in(name: str, locality: float, folder: Path, scale: float) -> Graph:
    if name in LOGNORMAL:
        nodes, entries, largest, sigma = LOGNORMAL[name]
        nodes, entries = int(nodes * scale), int(entries * scale)
        degrees = lognormal_degrees(nodes, entries, min(largest, nodes - 1), sigma)
    else:
        degrees = histogram_degrees(folder / "graphs" / "degree_histograms.npz", name)
        degrees = degrees[: max(100, int(len(degrees) * scale))]
    graph = from_degrees(degrees.cuda(), locality=locality)
    generator = torch.Generator("cuda").manual_seed(1)
    return graph.with_values(torch.rand(graph.num_edges, generator=generator, device="cuda") + 0.5)


class Reference:
    """A x in float64 on some rows, the longest, the shortest, the first and the last among them."""

    def __init__(self, graph: Graph, x: Tensor) -> None:
        rows = set(
            torch.randint(0, graph.num_rows, (200,), generator=torch.Generator().manual_seed(2)).tolist()
        )
        rows |= {0, graph.num_rows - 1, int(graph.degrees.argmax()), int(graph.degrees.argmin())}
        self.rows = torch.tensor(sorted(rows), device=x.device)
        bounds = zip(graph.indptr[self.rows].tolist(), graph.indptr[self.rows + 1].tolist(), strict=True)
        assert graph.value is not None
        value, indices = graph.value, graph.indices
        self.y = torch.stack(
            [(value[s:e, None].double() * x[indices[s:e].long()].double()).sum(0) for s, e in bounds]
        )

    def error(self, y: Tensor) -> float:
        error = float((y[self.rows].double() - self.y).norm() / self.y.norm())
        return error if bool(torch.isfinite(y).all()) else math.inf


def milliseconds(run: Run, repeats: int) -> float:
    """GPU time of a call: short ones many in a CUDA graph, long ones one by one."""
    rough = _between_events(run)
    rough = min(rough, _between_events(run))
    calls, how = 1, run
    if rough < 1.0:
        calls = 20
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(calls):
                run()
        how = graph.replay
        how()
    return statistics.median(_between_events(how) / calls for _ in range(repeats))


def _between_events(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def host_microseconds(run: Run) -> float:
    """Time until a call returns, with the GPU left behind."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(100):
        run()
    spent = time.perf_counter() - began
    torch.cuda.synchronize()
    return 1e4 * spent


# ---- products -------------------------------------------------------------------------------------------------------


def measured(
    name: str, locality: float, folder: Path, scale: float, repeats: int
) -> Iterator[dict[str, Any]]:
    graph = stand_in(name, locality, folder, scale)
    print(f"{name}, locality {locality}: {graph}, longest row {graph.longest_row}", flush=True)
    about = {"graph": name, "locality": locality, "nodes": graph.num_rows, "entries": graph.num_edges}
    for dtype, width in itertools.product(BARS, WIDTHS):
        x = torch.randn(graph.num_cols, width, device="cuda").to(dtype)
        cell = {**about, "type": str(dtype).removeprefix("torch."), "width": width}
        yield cell | product(graph.with_values(graph.value.to(dtype)), x, repeats)  # type: ignore[union-attr]
    yield {**about, "preprocessing ms": preprocessing(graph)}
    yield {**about, "width": 256, "training ms": training(graph)}


def product(graph: Graph, x: Tensor, repeats: int) -> dict[str, Any]:
    """Times of every way that is accurate, the others' errors, and what the dispatcher chooses."""
    reference = Reference(graph, x)
    ways: dict[str, Callable[[], Run | None]] = {
        f"cuSPARSE {a}": partial(cusparse.product, graph, x, a) for a in cusparse.ALGORITHMS
    }
    for candidate in candidates.spmm():
        ways[candidate.name] = partial(candidate.prepare, graph, x)
    runs: dict[str, Run] = {}
    taken, wrong, failed = {}, {}, {}
    for way, prepare in ways.items():
        try:
            run = prepare()
            error = None if run is None else reference.error(run())
        except PlanishError as problem:  # the other ways are measured all the same; the exit status tells
            failed[way] = str(problem)
            continue
        if run is None or error is None:
            continue
        if error <= BOUND[x.dtype]:
            runs[way], taken[way] = run, milliseconds(run, 1)
        else:
            wrong[way] = error
    for group in ("cuSPARSE", "accelgcn"):  # the median of many for all that may be the fastest of its group
        of = [way for way in taken if way.startswith(group)]
        limit = 1.05 * min(taken[way] for way in of)
        taken |= {way: milliseconds(runs[way], repeats) for way in of if taken[way] <= limit}
    choice = SPMM.choose(graph, x)
    peer = min((w for w in taken if w.startswith("cuSPARSE")), key=lambda w: taken[w])
    own = min((w for w in taken if w.startswith("accelgcn")), key=lambda w: taken[w])
    print(
        f"  {str(x.dtype)[6:]:9}{x.shape[1]:4} {peer:14}{taken[peer]:9.4f}  {own:40}{taken[own]:9.4f}"
        f"{taken[peer] / taken[own]:7.3f}  chosen {choice.name} {taken[peer] / taken.get(choice.name, math.nan):.3f}",
        flush=True,
    )
    return {
        "ms": taken,
        "inaccurate": wrong,
        "failed": failed,
        "peer": peer,
        "own": own,
        "chosen": choice.name,
    }


def preprocessing(graph: Graph) -> dict[str, Any]:
    """What each setting that fits fp32 of width 64 builds once for a graph, and the transposed structure that gradients
    need; on the device's clock, and on the host's from an idle device until it is idle again, beside a call."""
    x = torch.randn(graph.num_cols, 64, device="cuda")
    fits = {name: fitted(setting, graph, 64, 4) for name, setting in NAMED.items()}
    found: dict[str, Any] = {"device": {}, "host": {}}
    for name, fit in fits.items():
        if fit is None:
            continue
        build = lambda fresh, fit=fit: kernel.Product(fresh, x, 4, 1, Fused(), fit)  # noqa: E731
        fresh = [Graph(graph.indptr, graph.indices) for _ in range(12)]
        build(fresh.pop())
        found["device"][name] = statistics.median(until_last_kernel(build, fresh.pop()) for _ in range(5))
        found["host"][name] = statistics.median(until_idle(build, fresh.pop()) for _ in range(6))
    SPMM(graph, x)
    found["call"] = statistics.median(until_idle(SPMM, graph, x) for _ in range(21))
    fresh = [Graph(graph.indptr, graph.indices) for _ in range(4)]
    found["transpose"] = statistics.median(_between_events(g.transposed) for g in fresh[1:])
    return found


def until_idle(run: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds on the host's clock."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    run(*arguments)
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - began)


def until_last_kernel(run: Callable[..., Any], *arguments: Any) -> float:
    """Milliseconds on the device's clock, up to the last kernel of ours; the device is busy while they are queued."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    original = driver.Kernel.__call__

    def noted(self: driver.Kernel, *args: Any, **options: Any) -> None:
        original(self, *args, **options)
        end.record()

    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000)
    start.record()
    end.record()
    driver.Kernel.__call__ = noted  # type: ignore[method-assign]
    try:
        run(*arguments)
    finally:
        driver.Kernel.__call__ = original  # type: ignore[method-assign]
    end.synchronize()
    return float(start.elapsed_time(end))


def training(graph: Graph) -> dict[str, float]:
    """Forward and backward in x, fp32, width 256."""
    x = torch.randn(graph.num_cols, 256, device="cuda", requires_grad=True)
    grad = torch.randn(graph.num_rows, 256, device="cuda")
    size = (graph.num_rows, graph.num_cols)
    csr = torch.sparse_csr_tensor(graph.indptr, graph.indices, graph.value, size, check_invariants=False)
    ways = {"planish_graph.spmm": lambda: spmm(graph, x), "torch.sparse.mm": lambda: torch.sparse.mm(csr, x)}
    gradients, found = [], {}
    for way, forward in ways.items():

        def step(forward: Run = forward) -> Tensor:
            x.grad = None
            forward().backward(grad)
            assert x.grad is not None
            return x.grad

        gradients.append(step())
        step()
        found[way] = statistics.median(_between_events(step) for _ in range(5))
    found["difference"] = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    return found


def summary(record: dict[str, Any]) -> Iterator[Row]:
    at = {"device": record["device"], "command": COMMAND}
    cells = record["cells"]
    products = [cell for cell in cells if "ms" in cell]
    for (dtype, bars), locality in itertools.product(BARS.items(), (0.0, 0.5)):
        kind = str(dtype).removeprefix("torch.")
        of = [c for c in products if c["type"] == kind and c["locality"] == locality]
        own = [c["ms"][c["peer"]] / c["ms"][c["own"]] for c in of]
        chosen = [c["ms"][c["peer"]] / c["ms"][c["chosen"]] for c in of]
        dense = [factor for factor, c in zip(own, of, strict=True) if c["graph"] != "arxiv"]
        groups = {
            "kernels alone": own,
            "the dispatcher's choice, cuSPARSE among them": chosen,
            "kernels alone, without arxiv": dense,
        }
        for what, found in groups.items():
            if found:
                mean = math.exp(statistics.fmean(map(math.log, found)))
                metric = f"SpMM {kind}, locality {locality:g}, {what}: geometric mean of {len(found)} factors"
                yield Row(metric, mean, "x", "best accurate cuSPARSE", 1.0, (">=", bars[locality]), **at)
        place = lambda c: (c["graph"], c["locality"], c["width"])  # noqa: E731
        single = {place(c): c["ms"][c["peer"]] for c in products if c["type"] == "float32"}
        gains = [single[place(c)] / c["ms"][c["own"]] for c in of if place(c) in single]
        if dtype != torch.float32 and gains:
            mean = math.exp(statistics.fmean(map(math.log, gains)))
            metric = f"SpMM {kind} beside fp32, locality {locality:g}: geometric mean of {len(gains)} factors"
            yield Row(metric, mean, "x", "best cuSPARSE in fp32", 1.0, (">=", 1.9), **at)
    for c in products:
        what = f"SpMM {c['graph']}, {c['type']}, width {c['width']}, locality {c['locality']:g} ({c['own']})"
        what += c.get("remark", "")
        yield Row(what, c["ms"][c["own"]], "ms", c["peer"], c["ms"][c["peer"]], ("<=", 1.0), **at)
    for c in cells:
        where = f"{c['graph']}, locality {c['locality']:g}"
        if "preprocessing ms" in c:
            once = next(p for p in products if p["graph"] == c["graph"] and p["locality"] == c["locality"])
            name, built = once["own"].removeprefix("accelgcn "), c["preprocessing ms"]
            yield Row(f"preprocessing, {where} ({name}), GPU time", built["device"][name], "ms",
                      "one product, fp32, width 64", once["ms"][once["own"]], ("<=", 10.0), **at)  # fmt: skip
            yield Row(f"preprocessing, {where} ({name}), until the GPU is idle", built["host"][name], "ms",
                      "one call, fp32, width 64, likewise", built["call"], ("<=", 10.0), **at)  # fmt: skip
        if "training ms" in c:
            ours, theirs = c["training ms"]["planish_graph.spmm"], c["training ms"]["torch.sparse.mm"]
            yield Row(f"forward and backward, fp32, width 256, {where}", ours, "ms", "torch.sparse.mm", theirs,
                      ("<=", 1.0), **at)  # fmt: skip
    for call in record.get("calls", ()):
        *ours, theirs = call["host us"]
        for way in ours:
            what = f"{way}, host time of a call, {call['graph']}, width {call['width']}"
            yield Row(what, call["host us"][way], "us", theirs, call["host us"][theirs], None, **at)
    if "compiled" in record:
        what = "step of a two-layer GCN under torch.compile, 3000 nodes, bound by the host"
        yield Row(
            what,
            record["compiled"]["compiled, ms"],
            "ms",
            "eager",
            record["compiled"]["eager, ms"],
            None,
            **at,
        )


# ---- correctness ----------------------------------------------------------------------------------------------------


def awkward() -> Graph:
    """Empty rows, one of 20,000 entries, some that are cut, duplicates."""
    degrees = torch.randint(0, 40, (3000,), generator=torch.Generator().manual_seed(0))
    degrees[[5, 2999, 70]] = torch.tensor([0, 0, 20000])
    degrees[100:120] = 900
    graph = from_degrees(degrees.cuda())
    return graph.with_values(torch.rand(graph.num_edges, device="cuda") + 0.5)


def checks() -> dict[str, Any]:
    """Widths, types, epilogues and gradients of values, against dense float64."""
    graph, number, bad = awkward(), 0, []
    dense = graph.to_dense()

    def holds(about: str, y: Tensor, expected: Tensor, bound: float) -> None:
        nonlocal number
        number += 1
        error = float((y.double() - expected).norm() / expected.norm())
        if not error <= bound:
            bad.append([about, error])

    for dtype, width, setting in itertools.product(BOUND, ODD, CHECKED):
        x = torch.randn(graph.num_cols, width, device="cuda").to(dtype)
        y = kernel.program(graph, x, graph.value, Fused(), setting)()
        holds(f"{dtype} {width} {setting}", y, dense @ x.double(), BOUND[dtype])
    plain = graph.with_values(None)
    left, right, bias = (torch.rand(n, device="cuda") for n in (3000, 3000, 64))
    x = torch.randn(graph.num_cols, 64, device="cuda")
    for rows, columns, relu in itertools.product(("sum", "scale", "mean"), (False, True), (False, True)):
        of = Fused(left if rows == "scale" else None, right if columns else None, bias, rows == "mean", relu)
        y = kernel.program(plain, x, None, of, CHECKED[0])()
        expected = plain.to_dense() @ (x.double() * (right.double()[:, None] if columns else 1))
        divisor = graph.degrees.clamp_min(1)[:, None] if rows == "mean" else 1
        expected = expected * (left.double()[:, None] if rows == "scale" else 1) / divisor + bias.double()
        holds(f"{rows} {columns} {relu}", y, expected.relu() if relu else expected, 1e-5)
    for dtype, width in itertools.product(BOUND, (1, 33, 64, 256, 300)):
        x, grad = (torch.randn(3000, width, device="cuda").to(dtype) for _ in range(2))
        exact = (grad.double()[graph.rows.long()] * x.double()[graph.indices.long()]).sum(1)
        holds(f"edge gradient {dtype} {width}", kernel.edge_gradient(graph, None, None, grad, x), exact, 1e-5)
    long = graph.to(index=torch.int64)
    y = kernel.program(long, x.float(), long.value, Fused(), CHECKED[0])()
    holds("int64", y, dense @ x.double(), 1e-5)
    return {"number": number, "bad": bad}


def operators() -> dict[str, Any]:
    """The public operators with gradients: eager, compiled, deterministic, under autocast."""
    graph, found = awkward(), {}
    left, right, bias = (torch.rand(n, device="cuda") for n in (3000, 3000, 96))
    how = {"row_scale": left, "column_scale": right, "act": "relu"}
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [(torch.rand(graph.num_edges, device="cuda") + 0.5),
                  torch.randn(3000, 96, device="cuda").to(dtype), bias.clone()]  # fmt: skip
        exact = [t.detach().double().requires_grad_() for t in leaves]
        leaves = [t.requires_grad_() for t in leaves]
        dense = torch.zeros(3000, 3000, dtype=torch.float64, device="cuda")
        dense = dense.index_put((graph.rows.long(), graph.indices.long()), exact[0], accumulate=True)
        wanted = (left.double()[:, None] * (dense @ (exact[1] * right.double()[:, None])) + exact[2]).relu()
        weights = torch.rand(3000, 96, device="cuda").to(dtype)
        (wanted * weights.double()).sum().backward()
        eager = lambda v, x, b: fused(graph.with_values(v), x, bias=b, **how)  # noqa: E731
        ways = {
            "eager": eager,
            "compiled": torch.compile(eager, backend="aot_eager", fullgraph=True),
            "deterministic": lambda v, x, b: fused(
                graph.with_values(v), x, bias=b, deterministic=True, **how
            ),
        }
        for name, way in ways.items():
            try:
                y = way(*leaves)
            except Exception:  # the other parts still run; the exit status tells
                found.setdefault("failed", []).append(f"{dtype} {name}: {traceback.format_exc()[-600:]}")
                continue
            grads = torch.autograd.grad((y * weights).sum(), leaves)
            pairs = zip((y, *grads), (wanted, *(t.grad for t in exact)), strict=True)
            found[f"{dtype} {name}: errors of y and gradients"] = [
                float((a.double() - b).norm().detach() / b.norm().detach()) for a, b in pairs
            ]
        x = leaves[1].detach()
        choice = SPMM.choose(graph, x)
        found[f"{dtype} choice"] = [choice.name, choice.rejected]
        repeats = lambda c, x=x: torch.equal(c.prepare(graph, x)(), c.prepare(graph, x)())  # noqa: E731
        found[f"{dtype} repeats"] = {c.name: repeats(c) for c in SPMM.candidates if c.name in choice.seconds}
        found[f"{dtype} host us"] = {"spmm": host_microseconds(lambda x=x: spmm(graph, x))}
    with torch.autocast("cuda", torch.bfloat16):
        found["autocast"] = str(spmm(graph, leaves[1].float()).dtype)
    torch.use_deterministic_algorithms(True)
    found["strict choice"] = SPMM.choose(graph, x).name
    torch.use_deterministic_algorithms(False)
    return found


def compiled() -> dict[str, Any]:
    """A two-layer GCN, forward and backward, by torch.compile's own backend against eager; one graph, no break."""
    graph = awkward().with_values(None)
    graph.plan()
    scale = graph.row_sum().clamp_min(1).rsqrt()
    torch.manual_seed(0)
    x, first, second, weights = (
        torch.randn(s, device="cuda") for s in ((3000, 64), (64, 128), (128, 64), (3000, 64))
    )
    leaves = [first.requires_grad_(), second.requires_grad_()]

    def net(first: Tensor, second: Tensor) -> Tensor:
        how = {"row_scale": scale, "column_scale": scale}
        return fused(graph, fused(graph, x @ first, act="relu", **how) @ second, **how)

    def step(forward: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = forward(*leaves)
        return y, *torch.autograd.grad((y * weights).sum(), leaves)

    ways = {"eager": net, "compiled": torch.compile(net, fullgraph=True)}
    results = {name: step(way) for name, way in ways.items()}
    found: dict[str, Any] = {
        "differences of y and gradients": [
            float((a - b).norm().detach() / b.norm().detach())
            for a, b in zip(results["compiled"], results["eager"], strict=True)
        ]
    }
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            found[f"autocast {dtype}"] = [str(ways[name](*leaves).dtype) for name in ways]
    for name, way in ways.items():
        found[f"{name}, ms"] = statistics.median(
            _between_events(lambda way=way: step(way)) for _ in range(20)
        )
    return found


def calls(folder: Path) -> list[dict[str, Any]]:
    """What a public call costs on the host, where it is longer than the product; beside torch's."""
    found = []
    for name in ("pubmed", "arxiv"):
        graph = stand_in(name, 0.0, folder, 1.0)
        x = torch.randn(graph.num_cols, 64, device="cuda")
        size = (graph.num_rows, graph.num_cols)
        csr = torch.sparse_csr_tensor(graph.indptr, graph.indices, graph.value, size, check_invariants=False)
        ways: dict[str, Run] = {
            "planish_graph.spmm": lambda g=graph, x=x: spmm(g, x),
            "planish_accelgcn.ops.spmm": lambda g=graph, x=x: fused(g, x),
            "torch.sparse.mm": lambda a=csr, x=x: torch.sparse.mm(a, x),
        }
        for way in ways.values():
            way()
        taken = {way: min(host_microseconds(run) for _ in range(3)) for way, run in ways.items()}
        found.append({"graph": name, "width": 64, "host us": taken})
    return found


# ---- compilation on all cores ---------------------------------------------------------------------------------------


def wanted() -> list[dict[str, int]]:
    """What the checks and the products compile the kernel with."""
    found = []
    for dtype, width, setting in itertools.product(BOUND, ODD, CHECKED):
        vec = kernel._vec(width, dtype.itemsize, 0)
        found.append(kernel.defines(setting, dtype, vec, values=1, wide=False, width=width, fused=Fused()))
    for dtype, width, setting in itertools.product(BARS, WIDTHS, NAMED.values()):
        values = 1 if dtype == torch.float32 else 2
        for wide in (False, True):
            found.append(
                kernel.defines(setting, dtype, 16 // dtype.itemsize, values=values, wide=wide, width=width,
                               fused=Fused())
            )  # fmt: skip
    return found


def compiled_ahead(programs: list[dict[str, int]]) -> int:
    """Compile on all cores, and let `nvrtc.build` find the results."""
    source, original = sources.source("spmm"), nvrtc.build
    keyed = {tuple(sorted(program.items())): program for program in programs}
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        done = dict(zip(keyed, pool.map(_build, keyed.values()), strict=True))

    def build(text: str, *, defines: Any = None, arch: int = 90, options: Any = ()) -> bytes:
        found = done.get(tuple(sorted((defines or {}).items()))) if (text, arch) == (source, 90) else None
        return found or original(text, defines=defines, arch=arch, options=options)

    nvrtc.build = build
    return len(keyed)


def _build(program: dict[str, int]) -> bytes:
    return nvrtc.build(sources.source("spmm"), defines=program, arch=90)


PARTS: dict[str, Callable[[Path], Any]] = {
    "checks": lambda data: checks(),
    "operators": lambda data: operators(),
    "compiled": lambda data: compiled(),
    "calls": calls,
}

if __name__ == "__main__":
    main()
