"""An ONNX folder becomes int8: weights stored in 8 bits, activations quantised on the fly by ONNX Runtime.

Matrix products go through `onnxruntime.quantization.quantize_dynamic` (MatMulInteger, U8S8). Embedding tables are
quantised here, one scale a row, because ONNX Runtime's own Gather quantisation has a single scale for the table; a
table tied to the output head is stored once and read by both.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from planish.errors import PlanishError
from planish_onnx import files, graph
from planish_onnx.runtime import QuantType, quantize_dynamic

# How ONNX Runtime marks a graph that is ready for its quantiser (constants folded, shapes known to be inferable).
PREPROCESSED = {"onnx.quant.pre_process": "onnxruntime.quant"}


@dataclass(frozen=True, slots=True)
class Quantized:
    """What int8 quantisation reached.

    Attributes:
        matmuls: matrix products with a stored right-hand side that now run in int8.
        eligible: all matrix products with a stored right-hand side.
        embeddings: embedding tables now stored as int8.
        bytes_before: bytes on disk of the source folder's graph and weights.
        bytes_after: the same of the result.
    """

    matmuls: int
    eligible: int
    embeddings: int
    bytes_before: int
    bytes_after: int


def quantize(
    source: Path, out: Path, *, per_channel: bool = True, reduce_range: bool = False, embeddings: bool = True
) -> Quantized:
    """Write the float32 model of folder `source` to folder `out` with int8 weights.

    Args:
        per_channel: one scale for each output column of a matrix instead of one for the whole matrix.
        reduce_range: 7-bit weights. Needed for right results on x86 without VNNI (before about 2019), whose int8
            product saturates at 16 bits; elsewhere it only costs precision.
        embeddings: store embedding tables as int8 too. With False a table tied to the output head keeps both in
            float32, because an int8 copy for the head would add bytes.

    Raises:
        PlanishError: the weights are not float32, no matrix product could be quantised, or the result is not
            smaller; nothing is written then.
    """
    files.check(source)
    model = ir.load(source / files.GRAPH)
    eligible = [weight for node in model.graph if (weight := _stored_factor(node)) is not None]
    if not eligible:
        raise PlanishError(f"{source}: nothing to quantise, no matrix product has stored weights")
    for weight in eligible:
        if weight.dtype != ir.DataType.FLOAT:
            raise PlanishError(f"{source}: int8 needs float32 weights, {weight.name} is {weight.dtype}")
    heads = _untie(model) if embeddings else {}
    before = files.stored_bytes(source)
    with tempfile.TemporaryDirectory() as directory:
        scratch = Path(directory)
        _dynamic(model, scratch, per_channel, reduce_range)
        model = ir.load(scratch / "int8.onnx")
        done = sum(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in model.graph)
        if not done:
            raise PlanishError(f"{source}: none of {len(eligible)} matrix products could be quantised")
        tables = _quantize_embeddings(model, heads, reduce_range) if embeddings else 0
        graph.forget_origin(model)
        files.save(model, scratch / "out")
        after = files.stored_bytes(scratch / "out")
        if after >= before:
            raise PlanishError(f"{source}: int8 would not be smaller ({before} bytes before, {after} after)")
        files.save(model, out)
    return Quantized(done, len(eligible), tables, before, after)


def _stored_factor(node: ir.Node) -> ir.Value | None:
    """The stored matrix on the right-hand side of a MatMul or Gemm, or None."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    weight = node.inputs[1]
    producer = weight.producer() if weight is not None else None
    if producer is not None and producer.op_type == "Transpose":
        weight = producer.inputs[0]
    if weight is None or not weight.is_initializer() or weight.shape is None or len(weight.shape) != 2:
        return None
    return weight


def _untie(model: ir.Model) -> dict[str, str]:
    """Give each matrix that is read plain and transposed a stored transpose. Returns its name -> the table's name."""
    heads = {}
    for node in graph.transposed_weights(model):
        table = node.inputs[0]
        assert table is not None
        assert table.const_value is not None
        name = f"{table.name}.head"
        if name not in heads:
            heads[name] = str(table.name)
            _store(model, name, graph.transpose(table.const_value))
        graph.remove(node, model.graph.initializers[name])
    return heads


def _dynamic(model: ir.Model, scratch: Path, per_channel: bool, reduce_range: bool) -> None:
    """Run ONNX Runtime's quantiser; the result is scratch/int8.onnx."""
    model.metadata_props.update(PREPROCESSED)
    files.save(model, scratch / "float")
    path = scratch / "float" / files.GRAPH
    _forget_stored_shapes(path)
    with _quiet():
        quantize_dynamic(
            path,
            scratch / "int8.onnx",
            op_types_to_quantize=["MatMul"],  # the quantiser turns Gemm into MatMul first
            per_channel=per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )


def _forget_stored_shapes(path: Path) -> None:
    """Take what is noted of the stored tensors' shapes out of the graph, where it is said twice.

    Earlier quantisers (ONNX Runtime 1.23, for one) transpose the weight of a Gemm in place, and then stumble over its old shape.
    """
    proto = onnx.load(path, load_external_data=False)
    stored = {tensor.name for tensor in proto.graph.initializer}
    noted = [value for value in proto.graph.value_info if value.name not in stored]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(noted)
    path.write_bytes(proto.SerializeToString())


def _quantize_embeddings(model: ir.Model, heads: dict[str, str], reduce_range: bool) -> int:
    """Store the tables that Gather reads as int8 rows with a scale each. Returns how many tables."""
    head_of = {table: head for head, table in heads.items()}
    done: dict[str, tuple[ir.Value, ir.Value]] = {}
    for node in list(model.graph):
        table = node.inputs[0] if node.inputs else None
        if table is None or not _is_table(node, table):
            continue
        name = str(table.name)
        if name not in done and name in head_of:
            done[name] = _tied(model, name, head_of[name])
        elif name not in done:
            done[name] = _rows(model, table, reduce_range)
        _gather_rows(node, *done[name])
        if not table.uses():
            del model.graph.initializers[name]
    return len(done)


def _is_table(node: ir.Node, table: ir.Value) -> bool:
    """Whether `node` picks rows of a stored float32 matrix."""
    if node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 0 or not table.is_initializer():
        return False
    tensor = table.const_value
    return tensor is not None and tensor.dtype == ir.DataType.FLOAT and len(tensor.shape) == 2


def _tied(model: ir.Model, table: str, head: str) -> tuple[ir.Value, ir.Value]:
    """The head's int8 matrix (width, rows) turned to (rows, width), for the table and the head to share.

    The scale of the head is one a column, which is one a row of the table.
    """
    columns = model.graph.initializers.pop(f"{head}_quantized")
    assert columns.const_value is not None
    rows = _store(model, f"{table}_quantized", ir.Tensor(columns.const_value.numpy().T.copy()))
    turn = ir.node("Transpose", [rows], {"perm": [1, 0]})
    first = next(user for user, _ in columns.uses())
    columns.replace_all_uses_with(turn.outputs[0])
    model.graph.insert_before(first, turn)
    scale = model.graph.initializers[f"{head}_scale"]
    assert scale.const_value is not None
    if scale.const_value.size == 1:  # one scale for the matrix: each row has it
        each = np.full(
            columns.const_value.shape.numpy()[1], scale.const_value.numpy().item(), dtype=np.float32
        )
        scale = _store(model, f"{table}_scale", ir.Tensor(each))
    return rows, scale


def _rows(model: ir.Model, table: ir.Value, reduce_range: bool) -> tuple[ir.Value, ir.Value]:
    assert table.const_value is not None
    values, scale = quantize_rows(table.const_value.numpy(), bits=7 if reduce_range else 8)
    rows = _store(model, f"{table.name}_quantized", ir.Tensor(values))
    return rows, _store(model, f"{table.name}_scale", ir.Tensor(scale))


def quantize_rows(table: np.ndarray, bits: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one scale a row: table ~ values * scale[:, None].

    Args:
        table: float32, shape (rows, width).
        bits: 8 uses -127..127, 7 uses -63..63.

    Returns:
        int8 values (rows, width) and float32 scales (rows,). A zero stays zero; the error is at most half a scale.
    """
    limit = 2 ** (bits - 1) - 1
    largest = np.abs(table).max(axis=1).astype(np.float32)
    scale = np.where(largest > 0, largest / np.float32(limit), np.float32(1)).astype(np.float32)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    values = np.rint(table / scale[:, None]).clip(-limit, limit).astype(np.int8)
    return values, scale


def _gather_rows(node: ir.Node, rows: ir.Value, scale: ir.Value) -> None:
    """Gather(table, ids) becomes Cast(Gather(rows, ids)) * Unsqueeze(Gather(scale, ids), -1)."""
    owner, ids = node.graph, node.inputs[1]
    assert owner is not None
    values = ir.node("Gather", [rows, ids])
    floats = ir.node("Cast", [values.outputs[0]], {"to": ir.DataType.FLOAT})
    scales = ir.node("Gather", [scale, ids])
    last = ir.node("Constant", [], {"value": ir.tensor(np.array([-1], dtype=np.int64))})
    column = ir.node("Unsqueeze", [scales.outputs[0], last.outputs[0]])
    product = ir.node("Mul", [floats.outputs[0], column.outputs[0]])
    owner.insert_before(node, [values, floats, scales, last, column, product])
    graph.remove(node, product.outputs[0])


def _store(model: ir.Model, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    tensor.name = name
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.initializers.add(value)
    return value


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser logs through the root logger."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
