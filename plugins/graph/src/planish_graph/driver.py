"""Compiled kernels on the device, through CUDA's driver API and in torch's own context and stream."""

from __future__ import annotations

import ctypes
import struct
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from planish.errors import MissingRequirement, PlanishError
from planish_graph import libraries

INVALID_CONTEXT = 201
DYNAMIC_SHARED = 8
"""CUDA_ERROR_INVALID_CONTEXT and CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""


class i32(int):
    """An argument of type ``int``; a plain Python int is passed as ``long long``."""


class Module:
    """Machine code on one device; ``module["name"]`` is a kernel."""

    def __init__(self, code: bytes, device: int) -> None:
        self.device = device
        self._kernels: dict[str, Kernel] = {}
        self._handle = ctypes.c_void_p()
        _enter(device)
        _check(_cuda().cuModuleLoadData(ctypes.byref(self._handle), code), "load a module")

    def __getitem__(self, name: str) -> Kernel:
        kernel = self._kernels.get(name)
        if kernel is None:
            function = ctypes.c_void_p()
            status = _cuda().cuModuleGetFunction(ctypes.byref(function), self._handle, name.encode())
            _check(status, f"find the kernel {name!r}")
            kernel = self._kernels[name] = Kernel(name, function, self)
        return kernel


class Kernel:
    """A function on one device. Calling it costs a few microseconds and does not wait for the result."""

    def __init__(self, name: str, function: ctypes.c_void_p, module: Module) -> None:
        self.name = name
        self.device = module.device
        self._function = function
        self._launch = _cuda().cuLaunchKernel
        self._module = module  # keeps the code loaded
        self._shared = 0  # asked for; without that 48 KB are allowed, less the kernel's own
        self._buffers = _Buffers()

    def __call__(self, grid: tuple[int, int, int] | int, block: int, *args: Any, shared: int = 0) -> None:
        """Launch on torch's current stream of the module's device.

        Args:
            grid: blocks; ``block``: threads a block; ``shared``: bytes of dynamic shared memory a block.
            args: tensors (their first element), None (a null pointer), int (``long long``), `i32` (``int``), float
                (``float``), in the order of the kernel's parameters. Nothing checks that they match.

        Raises:
            PlanishError: CUDA refuses the launch.
        """
        if torch.cuda.current_device() != self.device:
            with torch.cuda.device(self.device):
                return self(grid, block, *args, shared=shared)
        if shared > self._shared:
            self._allow(shared)
        x, y, z = (grid, 1, 1) if isinstance(grid, int) else grid
        if x and y and z:
            stream = _stream(self.device)
            launch = (self._function, x, y, z, block, 1, 1, shared, stream, None, self._packed(args))
            status = self._launch(*launch)
            if status == INVALID_CONTEXT:  # a thread that has not used the device yet, such as autograd's
                _enter(self.device)
                status = self._launch(*launch)
            if status:
                _check(status, f"launch {self.name} on {grid} blocks of {block} threads")
        return None

    def _allow(self, shared: int) -> None:
        _enter(self.device)
        status = _cuda().cuFuncSetAttribute(self._function, DYNAMIC_SHARED, shared)
        _check(status, f"{self.name} with {shared} bytes of shared memory")
        self._shared = shared

    def _packed(self, args: tuple[Any, ...]) -> Any:
        """The arguments in one buffer laid out as the kernel's parameters are. One buffer a thread, used again."""
        kinds = tuple(map(type, args))
        found = self._buffers.of.get(kinds)
        if found is None:
            found = self._buffers.of[kinds] = Buffer(kinds)
        # A list, and no `isinstance` an argument: this is a good part of what a launch costs.
        values = [a.data_ptr() if lies else a or 0 for a, lies in zip(args, found.tensors, strict=True)]
        found.layout.pack_into(found.bytes, 0, *values)
        return found.extra


class Buffer:
    """CU_LAUNCH_PARAM_BUFFER_POINTER (1), _SIZE (2), _END (0) around a buffer for arguments of the given types."""

    def __init__(self, kinds: tuple[type, ...]) -> None:
        letters = {i32: "i", float: "f", type(None): "P"}
        self.tensors = [issubclass(kind, Tensor) for kind in kinds]
        self.layout = struct.Struct(
            "@"
            + "".join(
                "P" if lies else letters.get(kind, "q")
                for kind, lies in zip(kinds, self.tensors, strict=True)
            )
        )
        self.bytes = ctypes.create_string_buffer(max(1, self.layout.size))
        self.size = ctypes.c_size_t(self.layout.size)
        self.extra = (ctypes.c_void_p * 5)(1, ctypes.addressof(self.bytes), 2, ctypes.addressof(self.size), 0)


class _Buffers(threading.local):
    """A thread's own, by the types of the arguments."""

    def __init__(self) -> None:
        self.of: dict[tuple[type, ...], Buffer] = {}


_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


def _stream(device: int) -> ctypes.c_void_p:
    if _raw_stream is None:  # torch's public way takes several times as long
        return ctypes.c_void_p(torch.cuda.current_stream(device).cuda_stream)
    return ctypes.c_void_p(_raw_stream(device))


def _enter(device: int) -> None:
    """Make torch's context of ``device`` the calling thread's."""
    torch.cuda.init()  # type: ignore[no-untyped-call]
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_cuda().cuDeviceGet(ctypes.byref(handle), device), f"device {device}")
    _check(_cuda().cuDevicePrimaryCtxRetain(ctypes.byref(context), handle), "context")
    _check(_cuda().cuCtxSetCurrent(context), "context")


@cache
def _cuda() -> ctypes.CDLL:
    library = libraries.load("cuda")
    if library is None:
        raise MissingRequirement("libcuda is not installed; NVIDIA's driver brings it")
    return library


def _check(status: int, what: str) -> None:
    if status:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorString(status, ctypes.byref(text))
        raise PlanishError(f"CUDA, {what}: {(text.value or b'unknown error').decode()} ({status})")
