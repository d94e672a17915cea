from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from planish.errors import MissingRequirement, PlanishError
from planish_onnx import files
from planish_onnx.cached import export_cached, verify_cached
from planish_onnx.quantize import quantize
from planish_onnx.session import OnnxModel

OLD = int(importlib.metadata.version("transformers").split(".")[0]) < 5
needs_optimum = pytest.mark.skipif(
    not OLD or importlib.util.find_spec("optimum") is None,
    reason="optimum-onnx 0.1.0 is not installed beside transformers 4.57",
)


@needs_optimum
@pytest.mark.parametrize("name", ["llama", "shrunk", "gpt2"])
def test_cached_decoder_equals_torch(build, tokens, torch_greedy, name, tmp_path):
    model = build[name]()
    export_cached(model, tmp_path)
    result = verify_cached(model, tmp_path, tokens(3, 7), tolerance=1e-5)
    assert result.relative_error < 1e-5
    runtime = OnnxModel(tmp_path)
    assert runtime.has_cache
    assert "input_ids" in runtime.inputs
    ids = tokens(2, 4)
    assert torch.equal(runtime.generate(ids, 8), torch_greedy(model, ids, 8))
    assert runtime.counts().parameters <= sum(p.numel() for p in model.parameters())
    assert runtime.counts().parameters >= sum(p.numel() for p in model.parameters() if p.dim() == 2)
    assert b".py" not in (tmp_path / files.GRAPH).read_bytes()


@needs_optimum
def test_cached_decoder_in_int8(build, tokens, tmp_path):
    model = build["llama"]()
    export_cached(model, tmp_path / "float")
    done = quantize(tmp_path / "float", tmp_path / "int8")
    assert done.matmuls == done.eligible == 15
    assert done.embeddings == 1
    assert OnnxModel(tmp_path / "int8").generate(tokens(2, 8), 4).shape == (2, 12)
    before, after = (OnnxModel(tmp_path / name).counts() for name in ("float", "int8"))
    assert after.parameters == before.parameters


@needs_optimum
def test_a_tampered_cached_decoder_is_refused(build, tokens, tmp_path):
    model = build["llama"]()
    export_cached(model, tmp_path)
    data = np.fromfile(tmp_path / files.DATA, dtype=np.float32)
    data[len(data) // 2] += 1
    data.tofile(tmp_path / files.DATA)
    with pytest.raises(PlanishError, match="tolerance"):
        verify_cached(model, tmp_path, tokens(2, 8))


@pytest.mark.skipif(OLD, reason="transformers 4.57 is installed")
def test_new_transformers_get_one_clear_line(build, tmp_path):
    with pytest.raises(MissingRequirement, match=r"needs transformers 4[.]57") as error:
        export_cached(build["llama"](), tmp_path)
    assert "\n" not in str(error.value)


def test_too_new_transformers_are_refused_before_optimum_is_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "5.23.0")
    with pytest.raises(MissingRequirement, match=r"5[.]23[.]0 is installed"):
        export_cached(torch.nn.Linear(2, 2), tmp_path)


@needs_optimum
def test_other_modules_are_refused(tmp_path):
    with pytest.raises(PlanishError, match="no transformers model"):
        export_cached(torch.nn.Linear(2, 2), tmp_path)


def test_nothing_imports_optimum_or_anything_heavy_unasked():
    light = "import sys, planish_onnx, planish_onnx.config; assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)"
    unasked = (
        "import sys, planish_onnx.session, planish_onnx.quantize, planish_onnx.verify, planish_onnx.cached;"
        "assert not {'optimum', 'transformers'} & set(sys.modules)"
    )
    for program in (light, unasked):
        subprocess.run([sys.executable, "-c", program], check=True)
