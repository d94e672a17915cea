"""From CUDA C++ beside this file to a kernel: built by NVRTC for one case, kept for the process."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from planish_graph import nvrtc
from planish_graph.driver import Module

NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""How features are stored, as the sources number it."""


def usable(values: Tensor) -> bool:
    """Whether the kernels run on such numbers [M, k] or [N, D]: a CUDA device of compute capability 8.0 or above,
    NVRTC, and not float64."""
    return values.is_cuda and values.dtype in NUMBERS and _device_fits(values.device.index)


def _device_fits(device: int) -> bool:
    """Found out on first use; `torch.compile`, which cannot trace that, takes what is known, as it does with graphs."""
    if device not in _known and not torch.compiler.is_compiling():
        _known[device] = nvrtc.available() and torch.cuda.get_device_capability(device) >= (8, 0)
    return _known.get(device, False)


_known: dict[int, bool] = {}


@cache
def source(name: str) -> str:
    """The text of one kernel, with what all share before it."""
    folder = resources.files("planish_maxk.cuda")
    return "".join((folder / file).read_text(encoding="utf-8") for file in ("common.cuh", f"{name}.cu"))


def module(
    name: str, dtype: torch.dtype, position: int, node: int, width: int, k: int, device: int, macros: dict[str, Any]
) -> Module:  # fmt: skip
    """The kernels of one source for features ``dtype``, positions and node numbers of so many bytes, and the sizes."""
    shared = {"NUMBER": NUMBERS[dtype], "POSITION": position, "INDEX": node, "D": width, "K": k}
    return nvrtc.compile(source(name), defines={**shared, **macros}, device=torch.device("cuda", device))


@cache
def processors(device: int) -> int:
    """Streaming multiprocessors."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def power(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def warps_for(width: int, most: int) -> int:
    """Warps of a block that each hold a row of fp32 on chip: at most 96 KB, which every device from 8.0 on has."""
    return min(most, 1 << ((96 << 10) // (4 * row_floats(width))).bit_length() - 1)


def row_floats(width: int) -> int:
    """Floats of an accumulator: the width, in whole rounds over the 32 banks."""
    return -(-width // 32) * 32
