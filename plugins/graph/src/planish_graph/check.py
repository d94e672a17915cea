"""What may be wrong with a graph or its features: one clear line each."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from planish.errors import DataError

INT32_MAX = 2**31 - 1
INDEX = (torch.int32, torch.int64)
FEATURES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def types(indptr: Tensor, indices: Tensor, value: Tensor | None) -> None:
    """Types, devices and shapes of the three tensors of a CSR matrix."""
    for name, tensor in (("indptr", indptr), ("indices", indices), ("values", value)):
        if not isinstance(tensor, Tensor) and not (tensor is None and name == "values"):
            raise DataError(f"graph: {name} of type {type(tensor).__name__}; valid: a torch tensor")
    for name, tensor in (("indptr", indptr), ("indices", indices)):
        if tensor.dtype not in INDEX:
            raise DataError(f"graph: {name} is {short(tensor.dtype)}; valid: int32, int64")
        if tensor.dim() != 1:
            raise DataError(f"graph: {name} has the shape {list(tensor.shape)}; valid: one dimension")
    if len(indptr) == 0:
        raise DataError("graph: indptr is empty; valid: one number a row, and one more")
    if indices.device != indptr.device:
        raise DataError(
            f"graph: indptr is on {indptr.device}, indices on {indices.device}; valid: one device"
        )
    if value is None:
        return
    if value.dtype not in FEATURES:
        raise DataError(f"graph: values are {short(value.dtype)}; valid: {_choices()}")
    if value.shape != indices.shape:
        raise DataError(
            f"graph: values have the shape {list(value.shape)}; valid: [{len(indices)}], one a stored entry"
        )
    if value.device != indptr.device:
        raise DataError(f"graph: values are on {value.device}, indices on {indptr.device}; valid: one device")


def fits(index: torch.dtype, rows: int, cols: int, edges: int) -> None:
    """Whether sizes fit the index type; int64 is the way beyond 2^31 - 1."""
    if rows < 0 or cols < 0:
        raise DataError(f"graph: {rows} x {cols} is no size; valid: 0 or more rows and columns")
    if index not in INDEX:
        raise DataError(f"graph: index type {short(index)}; valid: int32, int64")
    for name, size in (("rows", rows), ("columns", cols), ("entries", edges)):
        if index == torch.int32 and size > INT32_MAX:
            raise DataError(f"graph: {size} {name} are beyond int32 ({INT32_MAX}); give int64 indices")


def structure(indptr: Tensor, indices: Tensor, cols: int) -> int:
    """Read through row pointer and columns, and wait for the device once; the entries of the longest row when they are
    sound. Nothing is read on the device "meta"."""
    if indptr.device.type == "meta":
        return 0
    degrees = indptr.diff()
    read = [indptr[0], indptr[-1]]
    read += torch.aminmax(degrees) if len(degrees) else (torch.zeros_like(indptr[0]),) * 2
    read += torch.aminmax(indices) if len(indices) else ()
    first, last, shortest, longest, *columns = torch.stack(read).tolist()
    if first != 0 or last != len(indices):
        raise DataError(
            f"graph: indptr runs from {first} to {last}; valid: from 0 to {len(indices)}, "
            "the number of stored entries"
        )
    if shortest < 0:
        row = int((degrees < 0).nonzero()[0])
        raise DataError(f"graph: indptr falls after row {row}; valid: not falling")
    if columns and not (columns[0] >= 0 and columns[1] < cols):
        in_range("column", indices, cols)
    return int(longest)


def in_range(what: str, indices: Tensor, size: int) -> None:
    """Raise for the first index outside 0 .. size - 1."""
    if indices.numel() == 0 or indices.device.type == "meta":
        return
    wrong = (indices < 0) | (indices >= size)
    if bool(wrong.any()):
        place = int(wrong.flatten().nonzero()[0])
        found = int(indices.flatten()[place])
        raise DataError(f"graph: {what} index {found} at entry {place}; valid: 0 to {size - 1}")


def features(name: str, x: Tensor, rows: int, device: torch.device) -> None:
    """x [rows, D] of a floating-point type on the graph's device."""
    if not isinstance(x, Tensor):
        raise DataError(f"{name}: {type(x).__name__}; valid: a torch tensor [{rows}, D]")
    if x.layout != torch.strided:
        raise DataError(f"{name}: {short(x.layout)}; valid: a dense tensor [{rows}, D]")
    if x.dim() != 2:
        raise DataError(f"{name}: shape {list(x.shape)}; valid: two dimensions [{rows}, D]")
    if x.shape[0] != rows:
        raise DataError(f"{name}: {x.shape[0]} rows; valid: {rows}, the graph's number of source nodes")
    if x.dtype not in FEATURES:
        raise DataError(f"{name}: {short(x.dtype)}; valid: {_choices()}")
    if x.device != device:
        raise DataError(f"{name}: on {x.device}, the graph is on {device}; valid: one device")


def backward_only(*tensors: Tensor | None) -> None:
    """Raise where forward-mode derivatives are asked for: torch would take those of an operator as zero."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise DataError("forward-mode derivatives (jvp) of a sparse product are not offered; valid: backward")


def short(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")


def _choices() -> str:
    return ", ".join(short(dtype) for dtype in FEATURES)
