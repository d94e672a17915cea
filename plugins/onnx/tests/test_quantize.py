from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from planish.errors import PlanishError
from planish_onnx import files
from planish_onnx.export import export
from planish_onnx.quantize import _forget_stored_shapes, quantize, quantize_rows
from planish_onnx.saturation import saturates
from planish_onnx.session import OnnxModel
from planish_onnx.verify import verify

PRODUCTS = {"llama": 15, "llama23": 15, "shrunk": 15, "gpt2": 9, "bert": 14, "digits": 2}


@pytest.mark.parametrize("name", ["llama", "llama23", "shrunk", "gpt2", "bert", "digits"])
def test_every_product_is_quantised_smaller_on_disk_and_close(exported, quantized, name):
    case = exported(name)
    folder, result = quantized(name, reduce_range=saturates())
    assert result.matmuls == result.eligible == PRODUCTS[name]
    assert result.bytes_before == sum(path.stat().st_size for path in case.folder.iterdir())
    assert result.bytes_after == sum(path.stat().st_size for path in folder.iterdir()) < result.bytes_before
    error = verify(case.model, folder, case.inputs, int8=True)
    assert 0 < error.rms_error < 0.1
    weights = {
        value.const_value.dtype
        for value in ir.load(folder / files.GRAPH).graph.initializers.values()
        if len(value.const_value.shape) == 2
    }
    assert ir.DataType.INT8 in weights
    assert ir.DataType.FLOAT not in weights


def test_a_tied_table_is_stored_once_in_int8(exported, quantized):
    folder, result = quantized("llama")
    counts, before = OnnxModel(folder).counts(), OnnxModel(exported("llama").folder).counts()
    assert result.embeddings == 1
    assert counts.parameters == before.parameters
    shapes = [t.dims for t in onnx.load(folder / files.GRAPH, load_external_data=False).graph.initializer]
    assert shapes.count([96, 32]) == 1
    assert shapes.count([32, 96]) == 0


@pytest.mark.parametrize("options", [{"per_channel": False}, {"reduce_range": True}])
def test_options_keep_the_graph_right(exported, quantized, options):
    case = exported("llama")
    options = {"reduce_range": saturates(), **options}
    folder, result = quantized("llama", **options)
    assert result.matmuls == result.eligible
    assert verify(case.model, folder, case.inputs, int8=True).rms_error < 0.1
    largest = max(
        np.abs(value.const_value.numpy().astype(int)).max()
        for name, value in ir.load(folder / files.GRAPH).graph.initializers.items()
        if name.endswith("_quantized")
    )
    assert largest <= (64 if options["reduce_range"] else 127)
    assert largest > (60 if options["reduce_range"] else 120)


def test_eight_bit_weights_use_all_their_bits(quantized):
    graph = ir.load(quantized("llama")[0] / files.GRAPH).graph
    weights = [v.const_value.numpy() for n, v in graph.initializers.items() if n.endswith("_quantized")]
    assert max(np.abs(values.astype(int)).max() for values in weights) == 127


def test_the_saturation_probe_agrees_with_a_model(exported, quantized):
    """Where products saturate, 8-bit weights lose more than 7-bit ones; elsewhere they lose less."""
    case = exported("llama")
    error = {
        reduced: verify(
            case.model, quantized("llama", reduce_range=reduced)[0], case.inputs, int8=True
        ).rms_error
        for reduced in (False, True)
    }
    assert (error[False] > error[True]) == saturates()


def test_without_embeddings_the_tied_table_stays_float(exported, quantized):
    case = exported("llama")
    folder, result = quantized("llama", embeddings=False, reduce_range=saturates())
    assert (result.matmuls, result.eligible, result.embeddings) == (14, 15, 0)
    assert result.bytes_after > quantized("llama", reduce_range=saturates())[1].bytes_after
    assert verify(case.model, folder, case.inputs, int8=True).rms_error < 0.1


def test_zeros_of_a_pruned_model_stay_zeros(exported, quantized):
    before = OnnxModel(exported("shrunk").folder).counts()
    after = OnnxModel(quantized("shrunk")[0]).counts()
    assert after.parameters == before.parameters
    # Small weights may round to 0; no zero is lost.
    assert 0.9 * before.nonzeros < after.nonzeros <= before.nonzeros
    assert files.stored_bytes(quantized("shrunk")[0]) < files.stored_bytes(exported("shrunk").folder)


def test_zeros_are_counted_relative_to_the_zero_point(quantized, tmp_path):
    model = ir.load(quantized("digits", per_channel=False)[0] / files.GRAPH)
    name = next(name for name in model.graph.initializers if name.endswith("_quantized"))
    weight = model.graph.initializers[name]
    point = model.graph.initializers[name.replace("_quantized", "_zero_point")]
    values = np.full(tuple(weight.const_value.shape), 5, dtype=np.int8)
    values[0, :3] = 0
    weight.const_value = ir.Tensor(values, name=name)
    files.save(model, tmp_path / "zero")
    point.const_value = ir.Tensor(
        np.array(5, dtype=np.int8).reshape(point.const_value.shape), name=point.name
    )
    files.save(model, tmp_path / "five")
    zero, five = (OnnxModel(tmp_path / folder).counts() for folder in ("zero", "five"))
    assert zero.parameters == five.parameters
    assert zero.nonzeros - five.nonzeros == (values.size - 3) - 3


def test_same_folder_same_bytes(exported, quantized, tmp_path):
    quantize(exported("gpt2").folder, tmp_path)
    for name in (files.GRAPH, files.DATA):
        assert (tmp_path / name).read_bytes() == (quantized("gpt2")[0] / name).read_bytes()
    assert b"/tmp" not in (tmp_path / files.GRAPH).read_bytes()


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.rand(300))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 32).half()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("model", "width", "dtype", "words"),
    [
        (Gate(), 300, "float32", "nothing to quantise"),
        (Half(), 32, "keep", "needs float32 weights"),
        (Small(), 4, "float32", "would not be smaller"),
    ],
)
def test_what_cannot_be_quantised_is_refused_and_nothing_is_written(model, width, dtype, words, tmp_path):
    export(model, {"x": torch.randn(2, width)}, tmp_path / "float", dtype=dtype)
    with pytest.raises(PlanishError, match=words):
        quantize(tmp_path / "float", tmp_path / "int8")
    assert not (tmp_path / "int8").exists()


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 9)),
        elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
    ),
    st.sampled_from([7, 8]),
)
def test_rows_round_to_the_nearest_step(table, bits):
    values, scale = quantize_rows(table, bits)
    assert values.dtype == np.int8
    assert scale.shape == (len(table),)
    assert np.abs(values.astype(int)).max() <= 2 ** (bits - 1) - 1
    assert (values[table == 0] == 0).all()
    error = np.abs(values * scale[:, None].astype(np.float64) - table)
    assert (error <= 0.5001 * scale[:, None]).all()


def test_shapes_of_stored_tensors_are_said_once(exported, tmp_path):
    """A second note would be wrong after a quantiser has transposed the tensor."""
    path = tmp_path / files.GRAPH
    path.write_bytes((exported("digits").folder / files.GRAPH).read_bytes())
    before = onnx.load(path, load_external_data=False).graph
    _forget_stored_shapes(path)
    after = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in after.initializer}
    noted = {value.name for value in before.value_info}
    assert stored & noted
    assert {value.name for value in after.value_info} == noted - stored
