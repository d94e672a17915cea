"""The CUDA source, run on the CPU, against dense float64; and compiled by NVRTC for GPUs, where that is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from planish_accelgcn import kernel, settings
from planish_accelgcn.reference import Fused
from planish_accelgcn.settings import FIXED, NAMED, Setting, fitted
from planish_accelgcn.sources import source
from planish_accelgcn.work import work
from planish_graph import libraries, nvrtc
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph

ONE = torch.ones(1)
STORAGE = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}
SETTINGS = {
    "narrow": Setting(line=128, chunk=512, segment=64, threads=128, short=8),
    "narrower": Setting(line=64, chunk=512, segment=32, threads=64, short=4, unroll=2),
    "wide": Setting(line=512, chunk=1024, segment=64, threads=64, unroll=2),
}


def awkward(longest: int = 1500) -> Graph:
    """Empty rows, a gigantic one, some that are cut, duplicates."""
    degrees = torch.randint(0, 12, (150,), generator=torch.Generator().manual_seed(0))
    degrees[[7, 70, 149]] = torch.tensor([0, longest, 0])
    degrees[100:103] = min(200, longest)
    graph = from_degrees(degrees)
    return graph.with_values(torch.rand(graph.num_edges, generator=torch.Generator().manual_seed(1)) + 0.5)


def error(result: Tensor, expected: Tensor) -> float:
    return float((result.double() - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize(
    ("name", "dtype", "width"),
    [
        ("narrow", torch.float32, 33),
        ("narrow", torch.bfloat16, 136),
        ("narrower", torch.float32, 260),
        ("narrower", torch.bfloat16, 64),
        ("wide", torch.float16, 7),
        ("wide", torch.float32, 256),
    ],
)
def test_equals_the_dense_product(emulated: None, name: str, dtype: torch.dtype, width: int) -> None:
    graph = awkward()
    x = torch.randn(graph.num_cols, width, generator=torch.Generator().manual_seed(2)).to(dtype)
    result = kernel.program(graph, x, graph.value, Fused(), SETTINGS[name])()
    assert result.dtype == dtype
    assert error(result, graph.to_dense() @ x.double()) <= STORAGE[dtype]
    assert (result[graph.degrees == 0] == 0).all()


def test_rows_without_work_lists(emulated: None) -> None:
    graph = awkward(longest=40)
    for line, width in ((256, 64), (128, 20)):
        setting = Setting(line=line, threads=64, flat=True)
        x = torch.randn(graph.num_cols, width, generator=torch.Generator().manual_seed(2))
        result = kernel.program(graph, x, graph.value, Fused(), setting)()
        assert error(result, graph.to_dense() @ x.double()) <= 1e-6


@pytest.mark.parametrize(
    ("rows", "setting"),
    [
        ("sum", SETTINGS["narrow"]),
        ("scale", SETTINGS["narrow"]),
        ("mean", SETTINGS["narrow"]),
        ("scale", Setting(threads=64, flat=True)),
    ],
)
def test_epilogue_is_fused(emulated: None, rows: str, setting: Setting) -> None:
    graph = awkward(longest=40 if setting.flat else 1500).with_values(None)
    g = torch.Generator().manual_seed(3)
    x, bias = torch.randn(graph.num_cols, 32, generator=g), torch.randn(32, generator=g)
    left, right = torch.rand(graph.num_rows, generator=g), torch.rand(graph.num_cols, generator=g)
    fused = Fused(left if rows == "scale" else None, right, bias, rows == "mean", relu=True)
    result = kernel.program(graph, x, None, fused, setting)()
    expected = graph.to_dense() @ (x.double() * right.double()[:, None])
    if rows == "scale":
        expected *= left.double()[:, None]
    if rows == "mean":
        expected /= graph.degrees.clamp_min(1)[:, None]
    assert error(result, (expected + bias.double()).relu()) <= 1e-6


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 68), (torch.float16, 5)])
def test_gradient_of_values(emulated: None, dtype: torch.dtype, width: int) -> None:
    graph = awkward(longest=200)
    g = torch.Generator().manual_seed(4)
    x, grad = (torch.randn(n, width, generator=g).to(dtype) for n in (graph.num_cols, graph.num_rows))
    left, right = torch.rand(graph.num_rows, generator=g), torch.rand(graph.num_cols, generator=g)
    rows, columns = graph.rows.long(), graph.indices.long()
    exact = (grad.double()[rows] * x.double()[columns]).sum(1)
    assert error(kernel.edge_gradient(graph, None, None, grad, x), exact) <= 1e-6
    scaled = kernel.edge_gradient(graph, left, right, grad, x)
    assert error(scaled, exact * left.double()[rows] * right.double()[columns]) <= 1e-6


def test_not_a_number_and_infinity_stay_in_their_rows(emulated: None) -> None:
    """Lanes without an entry must not multiply anything of x by zero."""
    graph = awkward()
    x = torch.ones(graph.num_cols, 32)
    x[0], x[1] = float("nan"), float("inf")
    result = kernel.program(graph, x, graph.value, Fused(), SETTINGS["narrow"])()
    reads = graph.to_dense()
    assert torch.equal(result.isnan().any(1), reads[:, 0] > 0)
    assert torch.equal(result.isinf().any(1), (reads[:, 1] > 0) & (reads[:, 0] == 0))


def test_results_repeat_bit_by_bit(emulated: None) -> None:
    """Whatever type torch makes by default."""
    graph = awkward()
    x = torch.randn(graph.num_cols, 32)
    run = kernel.program(graph, x, graph.value, Fused(), SETTINGS["narrow"])
    result = run()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(run(), result)
        assert (
            kernel.edge_gradient(graph, None, None, x[:, :4].contiguous(), x[:, :4].contiguous()).dtype
            == torch.float32
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_lists_fit_the_shared_memory_of_a_block(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large chunk in which every row is cut, as one wave takes on a graph that is large for the device."""
    monkeypatch.setattr(settings, "multiprocessors", lambda device: 1)
    graph = from_degrees(torch.full((220,), 280))
    setting, tile = fitted(NAMED["256 B, one wave"], graph, 128, 2), 128
    assert setting is not None
    space = kernel.shared_memory(graph.device, setting.blocks)
    often = work(graph, setting.chunk, setting.segment, setting.short)
    assert often.slots * tile * 4 > space, "otherwise nothing is tried here"
    assert kernel.lists_of(graph, setting, tile).slots * tile * 4 <= space


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(
    ("nodes", "entries"), [(20_000, 100_000), (200_000, 1_200_000), (700_000, 14_000_000)]
)
def test_settings_that_are_offered_are_worth_timing(
    monkeypatch: pytest.MonkeyPatch, name: str, nodes: int, entries: int
) -> None:
    monkeypatch.setattr(settings, "multiprocessors", lambda device: 132)
    graph = SimpleNamespace(num_rows=nodes, num_edges=entries, longest_row=5000, device=torch.device("cpu"))
    for width, size in ((64, 4), (256, 4), (64, 2), (256, 2)):
        if (fit := fitted(NAMED[name], graph, width, size)) is None:
            continue
        blocks = (entries + 4 * nodes) / fit.chunk * -(-width * size // fit.line)
        assert blocks <= 1.1 * 132 * fit.blocks if fit.one_wave else blocks >= 132 * fit.blocks
        assert fit.chunk % 64 == 0
        assert fit.chunk <= 64 * fit.threads
        assert fit.segment <= 2 * fit.chunk


def test_rows_are_cut_less_where_shared_memory_is_short(emulated: None) -> None:
    graph = awkward(longest=10_000)
    setting = Setting(chunk=8192, segment=32, threads=64, blocks=8, unroll=2)
    x = torch.randn(graph.num_cols, 32, generator=torch.Generator().manual_seed(2))
    product = kernel.Product(graph, x, 4, 1, Fused(), setting)
    assert 0 < product.shared <= 202_240 // 8
    assert work(graph, 8192, 32, setting.short).slots * 128 > 202_240 // 8, "otherwise nothing is tried here"
    assert error(product(x, graph.value, Fused()), graph.to_dense() @ x.double()) <= 1e-6


@pytest.mark.skipif(libraries.load("nvrtc") is None, reason="no NVRTC, which torch's CUDA wheels bring")
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("dtype", STORAGE)
def test_sources_compile_for_gpus(arch: int, dtype: torch.dtype) -> None:
    everything = Fused(ONE, ONE, ONE, relu=True)
    for setting, wide in (
        (FIXED, True),
        (NAMED["256 B, chunks of 32k"], False),
        (NAMED["512 B, flat"], False),
    ):
        vec = 16 // dtype.itemsize
        macros = kernel.defines(setting, dtype, vec, values=1, wide=wide, width=100, fused=everything)
        assert nvrtc.build(source("spmm"), defines=macros, arch=arch)
    assert nvrtc.build(source("sddmm"), defines=macros, arch=arch)
    lists = {"INDEX": "long long", "CHUNK": 4096, "SEGMENT": 256, "SHORT": 16, "ROW_COST": 4}
    assert nvrtc.build(source("work"), defines=lists, arch=arch)
