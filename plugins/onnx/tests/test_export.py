from __future__ import annotations

import logging
import re
import warnings
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from planish.errors import PlanishError
from planish_onnx import files
from planish_onnx.export import export, run_torch
from planish_onnx.session import OnnxModel
from planish_onnx.verify import verify

FAMILIES = ["llama", "llama23", "shrunk", "gpt2", "bert", "digits"]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_torch_at_sizes_not_exported(exported, name):
    case = exported(name)
    result = verify(case.model, case.folder, case.inputs, tolerance=1e-5)
    assert all(result.shapes[key] != tuple(value.shape) for key, value in case.inputs.items())
    assert result.top1 == 1.0
    assert result.largest_logit > 0.05


@pytest.mark.parametrize("name", ["llama", "shrunk", "gpt2", "bert"])
def test_every_weight_is_stored_once_and_zeros_survive(exported, name):
    case = exported(name)
    counts = OnnxModel(case.folder).counts()
    parameters = list(case.model.parameters())  # tied ones are listed once
    unused = {"bert.embeddings.token_type_embeddings.weight"}  # row 0 alone is read without token_type_ids
    names = {t.name for t in onnx.load(case.folder / files.GRAPH, load_external_data=False).graph.initializer}
    stored = [p for n, p in case.model.named_parameters() if n in names]
    assert counts.parameters >= sum(p.numel() for p in stored)
    if name != "bert":
        assert len(stored) == len(parameters)
        assert counts.parameters == sum(p.numel() for p in parameters)
        assert counts.nonzeros == sum(int(p.count_nonzero()) for p in parameters)
    else:
        assert {n for n, _ in case.model.named_parameters()} - names <= unused
    if name == "shrunk":
        assert counts.nonzeros < 0.75 * counts.parameters


def test_small_network_counts(exported):
    case = exported("digits")
    model = case.model
    matrices = [model.conv.weight, model.hidden.weight, model.out.weight]
    counts = OnnxModel(case.folder).counts()
    assert counts.parameters >= sum(p.numel() for p in matrices)
    assert counts.parameters <= sum(t.numel() for t in model.state_dict().values())


def test_same_model_same_bytes(exported, build, tokens, tmp_path):
    case = exported("llama")
    export(build["llama"](), {"input_ids": tokens(1, 11)}, tmp_path)
    for name in (files.GRAPH, files.DATA):
        assert (tmp_path / name).read_bytes() == (case.folder / name).read_bytes()


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_tells_nothing_about_the_machine(exported, name):
    data = (exported(name).folder / files.GRAPH).read_bytes()
    here = Path(__file__).resolve()
    for word in (b".py", b"site-packages", b"stack_trace", b"Traceback", b"named_parameters", b"fx_node"):
        assert word not in data
    for folder in (here.parent, Path(torch.__file__).parent, Path.home(), Path.cwd()):
        assert str(folder).encode() not in data or len(folder.parts) < 2
    assert not re.search(rb"/[a-z]+/[a-z]+/", data)
    model = onnx.load(exported(name).folder / files.GRAPH, load_external_data=False)
    assert not model.metadata_props
    assert not model.doc_string
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_dimensions_are_named(exported):
    graph = onnx.load(exported("bert").folder / files.GRAPH, load_external_data=False).graph

    def dims(value):
        return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]

    assert {value.name: dims(value) for value in graph.input} == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
    }
    assert dims(graph.output[0]) == ["batch", 3]


def test_the_model_is_left_alone_and_nothing_is_said(build, tokens, tmp_path, capfd, caplog):
    model = build["llama"](num_hidden_layers=1).half().train()
    model.model.layers[0].mlp.eval()
    model.config.use_cache = True
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        export(model, {"input_ids": tokens(2, 8)}, tmp_path)
    assert [str(w.message) for w in caught] == []
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert model.config.use_cache is True
    assert model.dtype == torch.float16
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert verify(model, tmp_path, {"input_ids": tokens(2, 8)}).relative_error < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.GRAPH, files.DATA]


class TwoHalves(nn.Module):
    """An ordinary module: two float inputs, one of fixed size, tuple output, parameters of extreme size."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 24, bias=False)
        with torch.no_grad():
            self.mix.weight.mul_(1e-35)
        self.gain = nn.Parameter(torch.tensor(1e35))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        joined = self.mix(torch.cat([left, right.expand(len(left), -1)], dim=1))
        return joined * self.gain, left


def test_plain_module_with_a_fixed_input_and_tiny_weights(tmp_path):
    model = TwoHalves()
    inputs = {"left": torch.randn(1, 2), "right": torch.randn(1, 4)}
    dynamic = {"left": {0: "batch"}}
    export(model, inputs, tmp_path, dynamic=dynamic)
    assert verify(model, tmp_path, inputs, dynamic=dynamic).relative_error < 1e-6
    assert run_torch(model, inputs).abs().max() > 0.01


def test_half_precision_can_be_kept(tmp_path):
    model = nn.Sequential(nn.Linear(16, 64)).half()
    wrapped = _Named(model)
    export(wrapped, {"x": torch.randn(3, 16)}, tmp_path, dtype="keep")
    graph = onnx.load(tmp_path / files.GRAPH, load_external_data=False).graph
    assert {t.data_type for t in graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert verify(wrapped, tmp_path, {"x": torch.randn(3, 16)}, tolerance=5e-3).top1 > 0.5


class _Named(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class _Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x  # a branch on data has no graph


@pytest.mark.parametrize(
    ("model", "inputs", "options", "words"),
    [
        (_Broken(), {"x": torch.ones(2, 3)}, {}, "export of _Broken failed"),
        (_Broken(), {}, {}, "inputs"),
        (_Broken(), {"x": torch.ones(0, 3)}, {}, "empty"),
        (_Broken(), {"x": torch.ones(2, 3)}, {"dynamic": {"y": {0: "batch"}}}, "dynamic: y"),
        (_Broken(), {"x": torch.ones(2, 3)}, {"dynamic": {"x": {5: "batch"}}}, "dynamic: x"),
        (nn.Linear(2, 2, device="meta"), {"input": torch.ones(2, 2)}, {}, "meta device"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(model, inputs, options, words, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(PlanishError, match=words) as error:
        export(model, inputs, out, **options)
    assert "\n" not in str(error.value)
    assert not out.exists()
