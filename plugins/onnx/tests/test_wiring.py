"""The backend as a stage: through a pipeline, reopened, and refused where it must be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import planish
from planish.context import Context
from planish.errors import ArtifactError, DataError, PlanishError
from planish.model import TorchModel
from planish_onnx import files
from planish_onnx.config import OnnxConfig
from planish_onnx.wiring import apply

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[planish.Result, torch.nn.Module, planish.Task]:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3)).eval()
    x = torch.randn(40, 8)
    y = module(x).argmax(dim=1)
    data = planish.Tensors(values={"train_x": x, "train_y": y, "test_x": x, "test_y": y})
    task = planish.Classification(data=data, input="input", batch=16)
    out = tmp_path_factory.mktemp("run")
    result = planish.Pipeline(task=task).then("onnx", quantize="int8").run(module, out / "run", device="cpu")
    return result, module, task


def test_module_in_memory_becomes_an_int8_graph(
    run: tuple[planish.Result, torch.nn.Module, planish.Task],
) -> None:
    result, module, task = run
    source, final = result.rows
    assert (source.runtime, final.runtime) == (
        "torch eager, cpu, float32",
        "ONNX Runtime, cpu, int8",
    )
    assert source.quality[0].value == 100.0
    assert final.quality[0].value > 90.0
    assert final.counts.parameters == sum(p.numel() for p in module.parameters())
    reopened = planish.Artifact.open(result.stages[-1]).load()
    batch = task.example(reopened)
    assert torch.allclose(reopened(batch), module(batch["input"]), atol=0.2)


def test_record_holds_the_checks(run: tuple[planish.Result, torch.nn.Module, planish.Task]) -> None:
    facts = run[0].records[0].facts
    assert facts["float32 against torch"]["relative_error"] < 1e-4
    assert facts["int8"]["matmuls"] == facts["int8"]["eligible"] == 2
    assert 0 < facts["int8 against torch"]["rms_error"] < 0.5


def test_a_lost_data_file_is_noticed(
    run: tuple[planish.Result, torch.nn.Module, planish.Task], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run[0].stages[-1], copy)
    (copy / "model" / files.DATA).unlink()
    with pytest.raises(ArtifactError, match=r"model\.onnx\.data: missing"):
        planish.Artifact.open(copy)


def test_needs_a_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs a task"):
        planish.Pipeline().then("onnx").run(torch.nn.Linear(2, 2), tmp_path / "run")


def test_half_precision_is_kept_and_named(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Linear(8, 64).to(dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.to(self.head.weight.dtype))

    x, y = torch.randn(40, 8), torch.zeros(40, dtype=torch.int64)
    data = planish.Tensors(values={"train_x": x, "train_y": y, "test_x": x, "test_y": y})
    task = planish.Classification(data=data, input="x", batch=16)
    with pytest.raises(PlanishError, match=r"weights are bfloat16, .* choose 'float32'"):
        planish.Pipeline(task=task).then("onnx", dtype="keep").run(Net(torch.bfloat16), tmp_path / "brain")
    kept = planish.Pipeline(task=task).then("onnx", dtype="keep").run(Net(torch.float16), tmp_path / "half")
    assert kept.rows[-1].runtime == "ONNX Runtime, cpu, float16"
    assert 1e-6 < kept.records[0].facts["float32 against torch"]["relative_error"] < 1e-2


def test_lost_fault_protection_is_told(tmp_path: Path) -> None:
    class Protected(TorchModel):
        protection: ClassVar = {"0": object()}

    x = torch.randn(6, 4)
    task = planish.Classification(
        data=planish.Tensors(values={"test_x": x, "test_y": torch.zeros(6, dtype=torch.int64)}), input="input"
    )
    ctx = Context(task, 0, "cpu", tmp_path)
    with pytest.warns(UserWarning, match="its copies are not"):
        apply(Protected(torch.nn.Sequential(torch.nn.Linear(4, 2)), "module"), OnnxConfig(), ctx)
    assert "copies" in ctx.facts["fault protection"]


def test_the_runtime_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    subprocess.run([sys.executable, "-c", "import planish_onnx.session"], env=environment, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))
