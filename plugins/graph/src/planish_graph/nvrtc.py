"""CUDA C++ on the user's machine without a compiler: NVRTC builds a kernel for the device that is there.

    module = nvrtc.compile(SOURCE, defines={"WIDTH": 64})
    module["kernel"](blocks, 256, x, y, nvrtc.i32(len(x)), 0.5)

Sources need no headers; kernels are declared ``extern "C" __global__``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from functools import cache

import torch

from planish.errors import MissingRequirement, PlanishError
from planish_graph import libraries
from planish_graph.driver import Module, i32

__all__ = ["available", "build", "compile", "i32"]

OPTIONS = ("--std=c++17", "--device-as-default-execution-space")


@cache
def available() -> bool:
    """Whether kernels can be compiled and run here: a CUDA device and libnvrtc."""
    return torch.cuda.is_available() and torch.version.hip is None and libraries.load("nvrtc") is not None


def compile(  # noqa: A001 - called as nvrtc.compile
    source: str,
    *,
    defines: Mapping[str, int | str] | None = None,
    device: torch.device | None = None,
) -> Module:
    """The kernels of ``source``, ready on ``device`` (by default torch's current one). Compiled once a process.

    Raises:
        MissingRequirement: no CUDA device or no NVRTC.
        PlanishError: the source does not compile; NVRTC's log.
    """
    if not available():
        raise MissingRequirement("CUDA kernels need a CUDA device and NVRTC, which torch's CUDA wheels bring")
    index = None if device is None else device.index
    pairs = tuple(sorted((defines or {}).items()))
    return _compiled(source, pairs, torch.cuda.current_device() if index is None else index)


@cache
def _compiled(source: str, defines: tuple[tuple[str, int | str], ...], device: int) -> Module:
    major, minor = torch.cuda.get_device_capability(device)
    return Module(build(source, defines=dict(defines), arch=10 * major + minor), device)


def build(
    source: str,
    *,
    defines: Mapping[str, int | str] | None = None,
    arch: int = 90,
    options: tuple[str, ...] = (),
) -> bytes:
    """Machine code (cubin) for compute capability ``arch``, e.g. 90; PTX where this NVRTC is older than the device.
    Needs no device.

    Raises:
        MissingRequirement: no NVRTC.
        PlanishError: the source does not compile; NVRTC's log.
    """
    return _program(source, dict(defines or {}), arch, options)[0]


def log(
    source: str,
    *,
    defines: Mapping[str, int | str] | None = None,
    arch: int = 90,
    options: tuple[str, ...] = ("--ptxas-options=-v",),
) -> str:
    """What NVRTC says while it compiles; with the default options registers, spills and shared memory."""
    return _program(source, dict(defines or {}), arch, options)[1]


def _program(
    source: str, defines: Mapping[str, int | str], arch: int, options: tuple[str, ...]
) -> tuple[bytes, str]:
    library = _nvrtc()
    known = _architectures()
    if arch < min(known):
        raise PlanishError(
            f"NVRTC: compute capability {arch / 10} is too old for it; valid: {min(known) / 10} on"
        )
    target = f"sm_{arch}" if arch in known else f"compute_{max(a for a in known if a <= arch)}"
    arguments = [
        f"--gpu-architecture={target}",
        *OPTIONS,
        *options,
        *(f"--define-macro={name}={value}" for name, value in defines.items()),
    ]
    program = ctypes.c_void_p()
    _check(
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"planish.cu", 0, None, None),
        "create a program",
    )
    try:
        encoded = (ctypes.c_char_p * len(arguments))(*(argument.encode() for argument in arguments))
        status = library.nvrtcCompileProgram(program, len(arguments), encoded)
        text = _text(program, "ProgramLog").decode(errors="replace").strip("\0\n ")
        if status:
            raise PlanishError(f"NVRTC {target}: the kernel does not compile\n{text}")
        return _text(program, "CUBIN" if target.startswith("sm") else "PTX"), text
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(getattr(_nvrtc(), f"nvrtcGet{what}Size")(program, ctypes.byref(size)), what)
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(_nvrtc(), f"nvrtcGet{what}")(program, text), what)
    return text.raw


@cache
def _architectures() -> list[int]:
    number = ctypes.c_int()
    _check(_nvrtc().nvrtcGetNumSupportedArchs(ctypes.byref(number)), "architectures")
    found = (ctypes.c_int * number.value)()
    _check(_nvrtc().nvrtcGetSupportedArchs(found), "architectures")
    return list(found)


@cache
def _nvrtc() -> ctypes.CDLL:
    library = libraries.load("nvrtc")
    if library is None:
        raise MissingRequirement(
            "NVRTC is not installed; torch's CUDA wheels bring it: pip install nvidia-cuda-nvrtc"
        )
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(status: int, what: str) -> None:
    if status:
        raise PlanishError(f"NVRTC, {what}: {_nvrtc().nvrtcGetErrorString(status).decode()}")
