"""CUDA kernels on a CPU: their source is compiled as C++ with stand-ins for what only a GPU has."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch

from planish_accelgcn import kernel, settings
from planish_graph import nvrtc

HERE = Path(__file__).parent


class _Kernel:
    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, grid: tuple[int, int, int] | int, block: int, *args: Any, shared: int = 0) -> None:
        x, y, _ = grid if isinstance(grid, tuple) else (grid, 1, 1)
        self._function(*map(ctypes.c_int, (x, y, block)), *map(_argument, args))


def _argument(value: Any) -> Any:
    if value is None or isinstance(value, torch.Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return (ctypes.c_int if isinstance(value, nvrtc.i32) else ctypes.c_longlong)(value)


class _Module:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def __getitem__(self, name: str) -> _Kernel:
        return _Kernel(getattr(self._library, f"run_{name}"))


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., _Module]:
    """What `planish_graph.nvrtc.compile` is exchanged with."""
    if shutil.which("g++") is None:
        pytest.skip("no g++, which compiles the kernels for the CPU")
    folder, built = tmp_path_factory.mktemp("kernels"), {}
    common = ["g++", "-std=c++20", "-O1", "-w", "-fPIC"]
    # Most of the time goes into the standard headers, which are compiled once.
    subprocess.run([*common, HERE / "emulated.h", "-o", folder / "emulated.h.gch"], check=True)
    intrinsics = resources.files("planish_accelgcn").joinpath("ptx.cu").read_text()

    def compiled(source: str, *, defines: Mapping[str, int], device: torch.device) -> _Module:
        key = (source, *sorted(defines.items()))
        if key not in built:
            text = f'#include "emulated.h"\n{source.replace(intrinsics, "")}\n#include "emulated.cpp"\n'
            (folder / f"{len(built)}.cpp").write_text(text)
            library = folder / f"{len(built)}.so"
            macros = [f"-D{name}={value}" for name, value in defines.items()]
            options = ["-shared", f"-I{folder}", f"-I{HERE}", *macros]
            subprocess.run([*common, *options, "-o", library, folder / f"{len(built)}.cpp"], check=True)
            built[key] = _Module(ctypes.CDLL(str(library)))
        return built[key]

    return compiled


@pytest.fixture
def emulated(emulator: Callable[..., _Module], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels run on the CPU, with the sizes of an H100, and memory that nobody wrote to holds NaN."""
    monkeypatch.setattr(nvrtc, "compile", emulator)
    monkeypatch.setattr(settings, "multiprocessors", lambda device: 132)
    monkeypatch.setattr(kernel, "shared_memory", lambda device, blocks: 202_240 // blocks)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
