"""NVIDIA's shared libraries, found where torch's CUDA wheels put them or where the system's loader looks."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import cache
from pathlib import Path

import torch


@cache
def load(name: str) -> ctypes.CDLL | None:
    """The library ``lib<name>.so``, the one of torch's own CUDA version first; None where there is none."""
    for place in (*_in_wheels(name), *_in_system(name)):
        try:
            return ctypes.CDLL(place)
        except OSError:
            continue
    return None


def _in_wheels(name: str) -> list[str]:
    """site-packages/nvidia/*/lib; with several versions side by side, torch's first."""
    package = importlib.util.find_spec("nvidia")
    found: list[tuple[bool, str]] = []
    for root in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(root).glob(f"*/lib/lib{name}.so*")):
            if version := re.fullmatch(rf"lib{name}\.so\.(\d+)", path.name):
                found.append((version[1] != _cuda_major(), str(path)))
    return [path for _, path in sorted(found)]


def _in_system(name: str) -> list[str]:
    versions = dict.fromkeys([_cuda_major(), "13", "12", "1"])
    return [f"lib{name}.so.{version}" for version in versions if version] + [f"lib{name}.so"]


def _cuda_major() -> str:
    return (torch.version.cuda or "").partition(".")[0]
