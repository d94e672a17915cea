"""The CUDA sources of this distribution, put together from their parts."""

from __future__ import annotations

from functools import cache
from importlib import resources

PARTS = {
    "spmm": ("ptx.cu", "items.cu", "spmm.cu"),
    "sddmm": ("ptx.cu", "items.cu", "sddmm.cu"),
    "work": ("work.cu",),
}


@cache
def source(name: str) -> str:
    """One of `PARTS`."""
    files = resources.files("planish_accelgcn")
    return "".join(files.joinpath(part).read_text() for part in PARTS[name])
