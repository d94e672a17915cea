"""One model folder on disk: `model.onnx` and, beside it, `model.onnx.data` with the weights.

A graph without its data file is worthless, and a graph may name any file as its data. So folders are written
whole (a scratch folder, checked, then renamed into place) and checked before anything reads a weight.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

import onnx
import onnx_ir as ir

from planish.errors import ArtifactError

GRAPH = "model.onnx"
DATA = "model.onnx.data"
INLINE_BYTES = 256  # tensors up to this size stay inside the graph file: shapes, axes, scalars


def external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model that is stored outside the graph file, in subgraphs and functions too."""
    for tensor in _tensors(model.graph):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            yield tensor
    for function in model.functions:
        for tensor in _node_tensors(function.node):
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                yield tensor


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield sparse.values
                yield sparse.indices
            if attribute.HasField("g"):
                yield from _tensors(attribute.g)
            for graph in attribute.graphs:
                yield from _tensors(graph)


def check(folder: Path) -> onnx.ModelProto:
    """Read the graph of `folder` and check that all of its weights are there. No weight is read.

    Returns:
        The graph, weights left outside.

    Raises:
        ArtifactError: no readable `model.onnx`; a data file that is missing, too short, outside the folder or
            named by an absolute path; or an entry that does not fit its tensor's shape and type.
    """
    path = folder / GRAPH
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {GRAPH} in this folder")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's DecodeError, named differently by each protobuf implementation
        raise ArtifactError(f"{path}: not a readable ONNX graph ({first_line(error)})") from None
    if not model.graph.node:
        raise ArtifactError(f"{path}: not a readable ONNX graph (it holds no nodes)")
    sizes: dict[str, int] = {}
    for tensor in external_tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if location not in sizes:
            sizes[location] = _size(folder, location, tensor.name)
        needed = _bytes(tensor)
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
        except ValueError:
            raise ArtifactError(f"{path}: tensor {tensor.name!r}: offset or length is not a number") from None
        if offset < 0 or length != needed:
            raise ArtifactError(
                f"{path}: tensor {tensor.name!r} needs {needed} bytes, its entry says {length} at {offset}"
            )
        if offset + length > sizes[location]:
            raise ArtifactError(
                f"{folder / location}: truncated, tensor {tensor.name!r} ends at byte {offset + length} "
                f"but the file has {sizes[location]}"
            )
    return model


def _size(folder: Path, location: str, tensor: str) -> int:
    """Length of a data file in bytes, once its name is known to stay inside `folder`."""
    names = (PurePosixPath(location), PureWindowsPath(location))
    if not location or any(name.is_absolute() or name.drive or ".." in name.parts for name in names):
        raise ArtifactError(
            f"{folder / GRAPH}: tensor {tensor!r} names data outside the folder: {location!r}"
        )
    path = folder / location
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ArtifactError(
            f"{folder / GRAPH}: tensor {tensor!r} names data outside the folder: {location!r}"
        )
    if not path.is_file():
        raise ArtifactError(f"{folder}: the weights are missing, {GRAPH} needs {location} beside it")
    return path.stat().st_size


def _bytes(tensor: onnx.TensorProto) -> int:
    """Length of a tensor in bytes; 4-bit types share bytes."""
    try:
        itemsize = float(ir.DataType(tensor.data_type).itemsize)
    except (TypeError, ValueError):
        raise ArtifactError(f"tensor {tensor.name!r}: its type cannot be stored outside the graph") from None
    return math.ceil(itemsize * math.prod(map(int, tensor.dims)))


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def stored_bytes(folder: Path) -> int:
    """Bytes on disk of the graph and of every data file it names."""
    model = check(folder)
    locations = {e.value for t in external_tensors(model) for e in t.external_data if e.key == "location"}
    return sum((folder / name).stat().st_size for name in {GRAPH, *locations})


def save(model: ir.Model, folder: Path) -> None:
    """Write `model` as `folder`/model.onnx with its weights in model.onnx.data, all or nothing.

    Raises:
        ArtifactError: the written files fail :func:`check`.
    """

    def fill(scratch: Path) -> None:
        ir.save(model, scratch / GRAPH, external_data=DATA, size_threshold_bytes=INLINE_BYTES)

    write(folder, fill)


def write(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a model folder in a scratch folder, check it, and move its files into `folder`.

    Raises:
        ArtifactError: the folder cannot be made or written to, or the written files fail :func:`check`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".onnx-", dir=folder))
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        fill(scratch)
        check(scratch)
        # The graph goes last: a folder that holds the new graph holds its data.
        for path in sorted(scratch.iterdir(), key=lambda path: path.name == GRAPH):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
