"""cuSPARSE's CSR products, called directly: algorithm, preprocessing, descriptors and buffers kept for each graph.

torch creates descriptors and a buffer at every call, takes ALG2 always, and cannot preprocess. Which of ALG2 and ALG3 is
faster depends on the graph and the width.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from planish.errors import PlanishError
from planish_graph import libraries
from planish_graph.graph import Graph

ALGORITHMS = {"ALG2": 6, "ALG3": 12}
PREPROCESSED = ("ALG3",)
TYPES = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14}
COMPUTE = 0
"""fp32, for all of them."""
INDEX = {torch.int32: 2, torch.int64: 3}
ROW_MAJOR = 2
KEEPS = ("cusparse plan", "cusparse ones", "cusparse values")
"""First words of the keys of what is kept on graphs."""

_lock = threading.RLock()


def available(device: torch.device) -> bool:
    return device.type == "cuda" and torch.version.hip is None and libraries.load("cusparse") is not None


def product(graph: Graph, x: Tensor, algorithm: str) -> Callable[[], Tensor] | None:
    """A program for y = A x [N, D] with x [M, D] contiguous, or None where cuSPARSE does not apply, which takes no matrix
    of more entries than places. Values are rounded to x's type, as it wants; sums are fp32.

    ALG3 is not offered where duplicates make a row longer than the matrix is wide: it then gives wrong results or reads
    outside of its memory, which ends the process' work on the GPU (seen with CUDA 13.0).
    """
    if (
        not available(x.device)
        or x.dtype not in TYPES
        or not (x.numel() and 0 < graph.num_edges <= graph.num_rows * graph.num_cols and x.is_contiguous())
    ):
        return None
    if algorithm in PREPROCESSED and graph.longest_row > graph.num_cols:
        return None
    value = _values(graph, x.dtype)
    plan = graph.kept((KEEPS[0], algorithm, x.shape[1], x.dtype), lambda: _Plan(graph, value, x, algorithm))
    return lambda: plan(value, x)


def _values(graph: Graph, dtype: torch.dtype) -> Tensor:
    if graph.value is None:
        return graph.kept(
            (KEEPS[1], dtype), lambda: torch.ones(graph.num_edges, dtype=dtype, device=graph.device)
        )
    if graph.value.dtype == dtype:
        return graph.value.detach()
    value = graph.value
    return graph.kept((KEEPS[2], dtype), lambda: value.to(dtype), values=True)


class _Plan:
    """The matrix's descriptor, preprocessed, and a buffer, for one graph, width and type."""

    def __init__(self, graph: Graph, value: Tensor, x: Tensor, algorithm: str) -> None:
        self._matrix = ctypes.c_void_p()
        self._graph = graph.indptr, graph.indices  # what the descriptor points to
        self._value, self._own = value, False
        self._rows, self._dtype, self._algorithm = graph.num_rows, TYPES[x.dtype], ALGORITHMS[algorithm]
        self._preprocess = algorithm in PREPROCESSED
        self._stream = torch.cuda.current_stream(x.device)
        self._handle = _handle(x.device.index or 0)
        self._one, self._zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        index = INDEX[graph.indptr.dtype]
        self._sizes = graph.num_rows, graph.num_cols, graph.num_edges, index
        self._describe(x)

    def _describe(self, x: Tensor) -> None:
        """Descriptor, buffer and preprocessing; they hold for one place of the values."""
        self.close()
        rows, cols, edges, index = self._sizes
        sizes = (ctypes.c_int64(n) for n in (rows, cols, edges))
        pointers = map(_pointer, (*self._graph, self._value))
        _call("CreateCsr", ctypes.byref(self._matrix), *sizes, *pointers, index, index, 0, self._dtype)
        size = ctypes.c_size_t()
        out = x.new_empty(rows, x.shape[1])
        with _lock, self._arguments(x, out) as arguments:
            _call("SpMM_bufferSize", *arguments, ctypes.byref(size))
            self._buffer = torch.empty(max(1, size.value), dtype=torch.uint8, device=x.device)
            if self._preprocess:
                _call("SpMM_preprocess", *arguments, _pointer(self._buffer))

    def __call__(self, value: Tensor, x: Tensor) -> Tensor:
        out = x.new_empty(self._rows, x.shape[1])
        with _lock:  # until the launch, so that no other thread puts its values there before
            self._follow(torch.cuda.current_stream(x.device))
            if value.data_ptr() != self._value.data_ptr():
                self._take(value, x)
            with self._arguments(x, out) as arguments:
                _call("SpMM", *arguments, _pointer(self._buffer))
        return out

    def _follow(self, stream: torch.cuda.Stream) -> None:
        """Buffer and values are one for all streams: a new one waits for the last."""
        if stream != self._stream and not torch.cuda.is_current_stream_capturing():
            stream.wait_stream(self._stream)
            self._stream = stream

    def _take(self, value: Tensor, x: Tensor) -> None:
        """Other values: into a place of the plan's own, so that what was prepared stays."""
        if self._own:
            self._value.copy_(value)
        else:
            self._value, self._own = value.clone(), True
            self._describe(x)

    @contextmanager
    def _arguments(self, x: Tensor, out: Tensor) -> Iterator[tuple[Any, ...]]:
        """What every call of the product takes, on torch's current stream."""
        stream = torch.cuda.current_stream(x.device)
        _call("SetStream", self._handle, ctypes.c_void_p(stream.cuda_stream))
        dense = [ctypes.c_void_p(), ctypes.c_void_p()]
        for descriptor, tensor in zip(dense, (x, out), strict=True):
            rows, width = (ctypes.c_int64(n) for n in tensor.shape)
            _call(
                "CreateDnMat",
                ctypes.byref(descriptor),
                rows,
                width,
                width,
                _pointer(tensor),
                self._dtype,
                ROW_MAJOR,
            )
        try:
            one, zero = ctypes.byref(self._one), ctypes.byref(self._zero)
            yield self._handle, 0, 0, one, self._matrix, dense[0], zero, dense[1], COMPUTE, self._algorithm
        finally:
            for descriptor in dense:
                _call("DestroyDnMat", descriptor)

    def close(self) -> None:
        if self._matrix:
            _call("DestroySpMat", self._matrix)
            self._matrix = ctypes.c_void_p()

    def __del__(self) -> None:
        self.close()


@cache
def _handle(device: int) -> ctypes.c_void_p:
    handle = ctypes.c_void_p()
    with torch.cuda.device(device):
        _call("Create", ctypes.byref(handle))
    return handle


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _call(name: str, *arguments: Any) -> None:
    status = getattr(libraries.load("cusparse"), f"cusparse{name}")(*arguments)
    if status:
        raise PlanishError(f"cuSPARSE {name}: status {status}")
