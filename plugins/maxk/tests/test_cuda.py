"""The CUDA kernels: that they compile, how their work is divided, and, where there is a GPU, what they compute."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from planish_graph import libraries, nvrtc
from planish_graph.convert import from_edges
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph
from planish_maxk import cuda, topk
from planish_maxk.cbsr import aggregate, maxk
from planish_maxk.cuda import build, products, rows, tiles
from planish_maxk.ways import WAYS

GPU = torch.device("cuda", 0)
FLOATS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
MAKERS = [rows._top_k, rows._expand, products._forward, products._backward, products._gather, tiles._tiles]
"""What keeps a kernel once it is built."""


class Built(dict[str, bytes]):
    """Machine code in the place of a loaded module."""

    def __missing__(self, name: str) -> bytes:
        assert name.encode() in self["code"]
        return self["code"]


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Kernels are built for compute capability 9.0 and not loaded; what was built is counted in bytes."""
    if libraries.load("nvrtc") is None:
        pytest.skip("needs libnvrtc (pip install nvidia-cuda-nvrtc)")
    sizes: list[int] = []

    def made(source: str, *, defines: dict[str, Any], device: object) -> Built:
        code = nvrtc.build(source, defines=defines, arch=90)
        sizes.append(len(code))
        return Built(code=code)

    monkeypatch.setattr(nvrtc, "compile", made)
    makers = MAKERS
    for maker in makers:
        maker.cache_clear()
    yield sizes
    for maker in makers:
        maker.cache_clear()


@pytest.mark.slow
def test_every_source_compiles(builds: list[int]) -> None:
    full, half, brain = torch.float32, torch.float16, torch.bfloat16
    for dtype, width, k, vec in ((full, 256, 16, 4), (half, 1024, 700, 8), (brain, 33, 5, 1)):
        rows._top_k(dtype, width, k, vec, 0)
        rows._expand(dtype, 1 if width <= 256 else 2, width, k, 0)
    for dtype, position, node, width, k, vec in (
        (full, 1, 4, 256, 32, 4), (half, 2, 8, 1000, 70, 2), (brain, 1, 4, 33, 5, 1), (full, 2, 4, 8192, 300, 4),
    ):  # fmt: skip
        case = dtype, position, node, width, k, 0, node == 4
        products._forward(*case, (vec, 2 if k == 32 else 0, False))
        span = min(k, 32)
        for values, weights in ((True, False), (True, True), (False, True)):
            products._backward(*case, span, values, weights, (vec, 0))
            team = tiles.tile_team(k, vec)
            tiles._tiles(*case, min(k, team.lanes * vec), values, weights, team)
        products._gather(*case)
    assert len(builds) == 3 * 2 + 4 * 8
    assert min(builds) > 1000


def signature(source: str, name: str) -> list[str]:
    """Kinds of a kernel's parameters: pointer, int, long long."""
    found = re.search(rf'extern "C" __global__ void [^;{{]*?\b{name}\(([^)]*)\)', source)
    assert found, name
    return ["*" if "*" in p else "long long" if "long long" in p else "int" for p in found[1].split(",")]


def test_launches_match_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else checks arguments, which the driver takes as they come."""
    launched: set[str] = set()

    class Module(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            return lambda grid, block, *args, shared=0: launch(self["source"], name, grid, block, args)

    def launch(source: str, name: str, grid: int, block: int, args: tuple[Any, ...]) -> None:
        kinds = [
            "*"
            if a is None or isinstance(a, torch.Tensor)
            else "int"
            if isinstance(a, nvrtc.i32)
            else "long long"
            for a in args
        ]
        assert kinds == signature(source, name)
        assert grid > 0
        assert block % 32 == 0
        launched.add(name)

    monkeypatch.setattr(nvrtc, "compile", lambda source, *, defines, device: Module(source=source))
    monkeypatch.setattr(rows, "processors", lambda device: 132)
    makers = MAKERS
    for maker in makers:
        maker.cache_clear()
    try:
        graph = from_degrees(torch.tensor([0, 3, 41, 20, 1, 20]))
        graph = graph.with_values(torch.rand(graph.num_edges))
        x = torch.randn(6, 40)
        values, index = cuda.top_k(x, 8, torch.uint8)
        cuda.pick(cuda.expand(values, index, 40), index)
        work = cuda.divide(graph, longest=20)
        assert cuda.forward(graph.plan(), work, values, index, 40).shape == (6, 40)
        one, two = cuda.backward(graph.plan(), work, x, values, index, (True, True))
        assert (one.shape, two.shape) == ((6, 8), (graph.num_edges,))
        tiled = cuda.divide_tiles(graph, 4)
        one, two = cuda.backward_tiles(graph.plan(), tiled, x, values, index, (True, True), rows=4)
        assert (one.shape, two.shape) == ((6, 8), (graph.num_edges,))
        torch.use_deterministic_algorithms(True)
        cuda.backward(graph.plan(), work, x, values, index, (True, True))
        cuda.backward_tiles(graph.plan(), tiled, x, values, index, (True, True), rows=4)
    finally:
        torch.use_deterministic_algorithms(False)
        for maker in makers:
            maker.cache_clear()
    assert launched == {"top_k", "expand", "pick", "forward", "combine", "backward", "gather", "tiles"}


@pytest.mark.parametrize("window", [1, 4, 1000])
def test_units_cover_every_entry_once(window: int) -> None:
    graph = from_degrees(torch.tensor([0, 3, 41, 20, 1, 20, 21, 0, 100]))
    units, cuts = cuda.divide(graph, window, longest=20)
    seen = torch.zeros(graph.num_edges, dtype=torch.int64)
    for row, first, count, piece in units.tolist():
        assert count <= 20
        assert graph.indptr[row] <= first
        assert first + count <= graph.indptr[row + 1]
        assert (piece >= 0) == (graph.degrees[row] > 20)
        seen[first : first + count] += 1
    assert (seen == 1).all()
    assert set(units[:, 0].tolist()) == set(range(9)), "rows without entries have to be written too"
    places = {p: (row, first) for row, first, _, p in units.tolist() if p >= 0}
    assert sorted(places) == list(range(len(places)))
    for row, first, many in cuts.tolist():
        assert many == -(-int(graph.degrees[row]) // 20)
        pieces = [places[first + i] for i in range(many)]
        assert pieces == [(row, int(graph.indptr[row]) + 20 * i) for i in range(many)]
    lengths = units[:, 2] if window > 9 else units[units[:, 0] // window == units[0, 0] // window][:, 2]
    assert (lengths.diff() <= 0).all(), "long units first"
    assert cuda.divide(graph, window, longest=20)[0] is units


@pytest.mark.parametrize(("largest", "cut"), [(256, False), (257, True)])
def test_a_graph_of_short_rows_needs_no_second_launch(largest: int, cut: bool) -> None:
    graph = from_degrees(torch.tensor([largest, *[1] * largest]))
    units, cuts = cuda.divide(graph)
    assert (len(cuts) > 0) == cut
    assert int(units[:, 2].sum()) == graph.num_edges


@pytest.mark.parametrize("rows", [1, 4, 256])
def test_tiles_hold_every_entry_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "LARGEST", 30)
    graph = from_degrees(torch.tensor([0, 3, 41, 20, 1, 20, 21, 0, 100]))
    units, packed, order = cuda.divide_tiles(graph, rows)
    assert sorted(order.tolist()) == list(range(graph.num_edges))
    seen = torch.zeros(graph.num_edges, dtype=torch.int64)
    for first, many, start, count in units.tolist():
        assert 0 < count <= 30
        assert many <= rows
        part = slice(start, start + count)
        assert torch.equal(first + packed[part] % 256, graph.rows[order[part]])
        assert torch.equal(packed[part] // 256, graph.indices[order[part]])
        assert (graph.indices[order[part]].diff() >= 0).all(), "by source"
        seen[part] += 1
    assert (seen == 1).all()
    assert (units[:, 3].diff() <= 0).all(), "long units first"


def test_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is traced, with plain torch in the place of the kernels."""
    dense = WAYS["dense"]
    monkeypatch.setitem(build._known, 0, True)
    usable = lambda values, width: build._device_fits(0)  # noqa: E731
    way = replace(
        dense, usable=usable, divide=lambda graph, values, width: cuda.divide(graph), deterministic=True
    )
    monkeypatch.setitem(WAYS, "cuda", way)
    graph = from_degrees(torch.tensor([0, 3, 41, 20, 1, 20]))
    x = torch.randn(6, 8, requires_grad=True)
    expected = aggregate(graph, maxk(x, 2), "cuda")
    whole = torch.compile(lambda x: aggregate(graph, maxk(x, 2), "cuda"), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(whole(x), expected)
    whole(x).sum().backward()
    assert x.grad is not None


def test_spans_keep_what_is_added_to_in_the_cache() -> None:
    assert products.span_of(232_965, 64) == 32
    assert products.span_of(232_965, 32) == 32
    assert products.span_of(20_000, 64) == 64
    assert products.span_of(2_449_029, 64) == 64, "tiles of a large graph would not stay either"


@pytest.mark.parametrize("width", [1, 256, 2049, 6144, 6145, 8192])
def test_rows_fit_on_chip_of_every_device(width: int) -> None:
    """Those of compute capability 8.6, 8.9 and 12.0 allow 99 KB a block."""
    row = 4 * build.row_floats(width)
    teams = [products.backward_team(span, width, 4, 0) for span in (1, 32, 300)]
    sizes = [team.warps * row for team in teams] + [build.warps_for(width, 4) * row]
    for k in (1, 8, 16, 32, 300):
        for level in (-1, 0, 1, 2):
            team = products.forward_team(k, width, 4, level)
            teams.append(team)
            sizes.append(team.warps * team.groups * row)
    assert max(sizes) <= 99 << 10
    assert min(team.warps for team in teams) >= 1


# ---- on a GPU ---------------------------------------------------------------------------------------------------------


def graphs() -> Iterator[Graph]:
    generator = torch.Generator().manual_seed(0)
    degrees = torch.ones(60, dtype=torch.int64)
    degrees[3], degrees[57], degrees[58], degrees[59] = 3000, 0, 33, 200
    hub = from_degrees(degrees)
    yield hub.with_values(torch.randn(hub.num_edges, generator=generator))
    for size, edges in (((7, 90), 400), ((1, 1), 3), ((5, 4), 0)):
        pair = torch.stack([torch.randint(0, n, (edges,), generator=generator) for n in (size[1], size[0])])
        yield from_edges(pair, size, torch.randn(edges, generator=generator))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("how", ["cuda", "cuda-sorted", "cuda-tiles", "cuda-gather", "triton", "auto"])
def test_values_and_gradients_on_a_gpu(how: str, dtype: torch.dtype) -> None:
    if how == "triton":
        pytest.importorskip("triton")
    for graph in graphs():
        for width, k in ((256, 16), (33, 5), (300, 64), (1, 1)):
            on = graph.to(GPU)
            x = torch.randn(on.num_cols, width, device=GPU).to(dtype)
            grad = torch.randn(on.num_rows, width, device=GPU).to(dtype)
            results = []
            for way, leaf in ((how, x.clone()), ("entries", x.double())):
                leaf.requires_grad_()
                value = on.value.to(torch.promote_types(torch.float32, leaf.dtype)).requires_grad_()  # type: ignore[union-attr]
                y = aggregate(on.with_values(value), maxk(leaf, k), way)
                results.append([y.detach(), *torch.autograd.grad(y, (leaf, value), grad.to(leaf.dtype))])
            for got, exact in zip(*results, strict=True):
                assert bool(got.isfinite().all())
                error = (got.double() - exact).norm() / exact.norm().clamp_min(1e-30)
                assert exact.numel() == 0 or error <= 2 * FLOATS[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", FLOATS)
def test_top_k_on_a_gpu(dtype: torch.dtype) -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, 2.0], device=GPU)
    for width, k in ((256, 16), (33, 5), (1000, 300), (128, 127)):
        normal = torch.randn(200, width, device=GPU)
        for x in (normal, normal.relu(), special[torch.randint(0, 7, (200, width), device=GPU)]):
            values, index = cuda.top_k(x.to(dtype), k, topk.position_type(width))
            wanted, places = topk.top_k(x.to(dtype), k)
            assert torch.equal(index.long(), places.long())
            torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)
            dense = cuda.expand(values, index, width)
            assert torch.equal(dense.nan_to_num(), topk.expand(values, index, width).nan_to_num())
            assert torch.equal(cuda.pick(dense, index).nan_to_num(), values.nan_to_num())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_deterministic_algorithms_repeat_on_a_gpu() -> None:
    graph = next(graphs()).to(GPU)
    x = torch.randn(60, 256, device=GPU, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (torch.autograd.grad(aggregate(graph, maxk(x, 16)).sum(), x)[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first, second)
