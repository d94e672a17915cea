"""The products' CUDA sources on a CPU: compiled as C++ with the emulator of planish-accelgcn's tests, against float64."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from planish_graph import nvrtc
from planish_graph.generate import from_degrees
from planish_graph.graph import Graph
from planish_maxk import cuda, product, topk
from planish_maxk.cuda import products, tiles

EMULATOR = Path(__file__).resolve().parents[2] / "accelgcn" / "tests" / "emulated.h"
WORDS = """
#define __align__(n) alignas(n)
static int __float_as_int(float x) { return as<int>(x); }
static float __int_as_float(int x) { return as<float>(x); }
static float atomicAdd(float* at, float value) { return std::exchange(*at, *at + value); }
template <typename T> static T __ldcs(const T* at) { return *at; }
static void __syncwarp() { fibres::exchanged(0, [](int) { return 0; }); }
"""
"""What the emulator lacks."""
MAKERS = (products._forward, products._backward, products._gather, tiles._tiles)


class Kernel:
    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, grid: int, block: int, *args: Any, shared: int = 0) -> None:
        self._function(ctypes.c_int(grid), ctypes.c_int(block), *map(argument, args))


def argument(value: Any) -> Any:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return (ctypes.c_int if isinstance(value, nvrtc.i32) else ctypes.c_longlong)(value)


def callable_from_c(source: str) -> str:
    """A function run_NAME(grid, block, ...) for every kernel of a source."""
    made = ""
    for name, given in re.findall(
        r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(([^)]*)\)', source
    ):
        names = ", ".join(re.findall(r"(\w+)(?:,|$)", given.replace("\n", " ")))
        made += f'extern "C" void run_{name}(int grid, int block, {given}) {{\n'
        made += f"    fibres::launch(grid, 1, block, [=] {{ {name}({names}); }});\n}}\n"
    return made


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kernels run on the CPU."""
    if shutil.which("g++") is None or not EMULATOR.is_file():
        pytest.skip("needs g++ and the emulator in plugins/accelgcn/tests")
    folder = tmp_path_factory.mktemp("kernels")
    common = ["g++", "-std=c++20", "-O1", "-w", "-fPIC"]
    subprocess.run([*common, EMULATOR, "-o", folder / "emulated.h.gch"], check=True)
    count = 0

    def compiled(source: str, *, defines: Mapping[str, Any], device: object) -> Any:
        nonlocal count
        count += 1
        source = re.sub(r"extern __shared__ __align__\(16\) (float \w+)\[\];", r"static \1[1 << 18];", source)
        text = f'#include "emulated.h"\n{WORDS}{source}{callable_from_c(source)}'
        (folder / f"{count}.cpp").write_text(text.replace("if (N ==", "if constexpr (N =="))
        macros = [f"-D{name}={value}" for name, value in defines.items()]
        library = folder / f"{count}.so"
        files = [
            "-shared",
            f"-I{folder}",
            f"-I{EMULATOR.parent}",
            *macros,
            "-o",
            library,
            folder / f"{count}.cpp",
        ]
        subprocess.run([*common, *files], check=True)
        loaded = ctypes.CDLL(str(library))
        return type(
            "Module", (), {"__getitem__": lambda self, name: Kernel(getattr(loaded, f"run_{name}"))}
        )()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "compile", compiled)
        patch.setattr(tiles, "LARGEST", 300)
        for maker in MAKERS:
            maker.cache_clear()
        yield
    for maker in MAKERS:
        maker.cache_clear()


def hub(index: torch.dtype) -> Graph:
    degrees = torch.ones(60, dtype=torch.int64)
    degrees[3], degrees[57], degrees[58], degrees[59] = 500, 0, 33, 200
    graph = from_degrees(degrees).to(index=index)
    return graph.with_values(torch.randn(graph.num_edges, generator=torch.Generator().manual_seed(0)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "k", "index", "weighted"),
    [(256, 16, torch.int32, True), (33, 5, torch.int64, True), (128, 12, torch.int32, False)],
)
def test_products_against_float64(
    emulated: None, width: int, k: int, index: torch.dtype, weighted: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    graph = hub(index) if weighted else hub(index).with_values(None)
    x = torch.randn(graph.num_cols, width, generator=generator)
    grad = torch.randn(graph.num_rows, width, generator=generator)
    values, positions = topk.top_k(x, k)
    plan, units = graph.plan(), cuda.divide(graph, longest=64)
    y = cuda.forward(plan, units, values, positions, width)
    close(y, product.entrywise(plan, values.double(), positions, width))
    exact = (
        product.entrywise_backward(plan, grad.double(), positions),
        product.entry_gradient(plan, grad.double(), values.double(), positions),
    )
    few = replace(tiles.tile_team(k, products.aligned(k, values, positions)), warps=4)
    passes: tuple[Callable[[], tuple[Tensor, Tensor]], ...] = (
        lambda: cuda.backward(plan, units, grad, values, positions, (True, True)),
        lambda: cuda.backward_tiles(
            plan, cuda.divide_tiles(graph, 20), grad, values, positions, (True, True), few, rows=20
        ),
    )
    for run in passes:
        for got, wanted in zip(run(), exact, strict=True):
            close(got, wanted)
    close(cuda.gathered(plan, grad, positions), exact[0])


def close(got: Tensor, exact: Tensor) -> None:
    assert bool(got.isfinite().all())
    assert (got.double() - exact).abs().max() <= 500 * 2**-24 * exact.abs().max(), (
        "at most 500 terms, in fp32"
    )
