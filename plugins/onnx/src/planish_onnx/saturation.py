"""Whether this processor's int8 products are exact: x86 without VNNI adds pairs of them in 16 bits, which saturate."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from planish_onnx.runtime import onnxruntime

DEPTH = 64


@functools.cache
def saturates() -> bool:
    """Multiply the largest uint8 by the largest int8 in ONNX Runtime, and look whether the sum is right."""
    a = ir.Value(name="a", shape=ir.Shape([1, DEPTH]), type=ir.TensorType(ir.DataType.UINT8))
    b = ir.Value(
        name="b",
        shape=ir.Shape([DEPTH, DEPTH]),
        type=ir.TensorType(ir.DataType.INT8),
        const_value=ir.tensor(np.full((DEPTH, DEPTH), 127, dtype=np.int8), name="b"),
    )
    product = ir.node("MatMulInteger", [a, b])
    product.outputs[0].name = "y"
    product.outputs[0].type = ir.TensorType(ir.DataType.INT32)
    graph = ir.Graph(
        [a], product.outputs, nodes=[product], initializers=[b], opset_imports={"": 20}, name="probe"
    )
    program = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(program, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"a": np.full((1, DEPTH), 255, dtype=np.uint8)})
    return bool((found != 255 * 127 * DEPTH).any())
