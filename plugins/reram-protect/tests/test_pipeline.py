"""The stage in pipelines: with the simulator behind it, a pruner before it, and its folders reopened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import planish
from planish.artifact import Artifact
from planish.errors import ArtifactError, PlanishError
from planish.source import Source
from planish_reram.mapping import mapped_layers, matrix
from planish_reram_protect.model import SETTINGS, ProtectedModel, kept_mask
from planish_sdk.testing import material

pytestmark = pytest.mark.model

QUICK = {"gate_epochs": 3, "tune_epochs": 1, "epoch_steps": 6}
LM = {**QUICK, "window": 16, "batch": 4, "skip": ["*lm_head"]}


def task(seed: int = 0) -> planish.Classification:
    x = torch.randn(400, 24, generator=torch.Generator().manual_seed(seed))
    y = x[:, :4].argmax(1)
    values = {"train_x": x[:300], "train_y": y[:300], "test_x": x[300:], "test_y": y[300:]}
    return planish.Classification(data=planish.Tensors(values=values), input="input")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def test_protection_reaches_the_simulator_and_costs_no_crossbar(tmp_path: Path) -> None:
    net = network()
    pipeline = planish.Pipeline(task=task()).then("reram-protect", **QUICK).then("reram", chips=2)
    result = pipeline.run(net, tmp_path / "run")
    first, second = (json.loads((folder / "record.json").read_text())["facts"] for folder in result.stages)
    assert first["extra crossbars"] == 0
    assert 0 < first["cells used by copies"] <= first["cells freed"]
    assert first["target reached by"] in ("the search", "rounding after the last epoch")
    assert second["cells of copies"] == first["cells used by copies"]
    reopened = Artifact.open(result.stages[0]).load(given=net)
    assert isinstance(reopened, ProtectedModel)
    for name, layer in mapped_layers(reopened.module).items():
        inside = kept_mask(reopened.protection[name], tuple(matrix(layer).shape))
        assert not bool(matrix(layer)[~inside].any())
        assert bool((reopened.protection[name].slices >= 1).all())
    assert len(reopened.protection["4"].kept_rows) == 4, "output rows of the last layer are never gated"


def test_a_pruner_before_it_keeps_its_zeros(tmp_path: Path) -> None:
    """`ace`, then `reram-protect`, then `reram`, on a decoder with grouped-query attention."""
    pytest.importorskip("planish_ace")
    source = material.tiny_model("llama")
    pipeline = (
        planish.Pipeline(task=material.tiny_task())
        .then("ace", sparsity=0.5, seqlen=16, nsamples=8)
        .then("reram-protect", **LM)
        .then("reram", chips=2, faults="low", skip=["*lm_head"])
    )
    start = Source("tiny", module=source.module, tokenizer=source.tokenizer)
    result = pipeline.run(start, tmp_path / "run", measure="none")
    ace, protected = (Artifact.open(folder).load() for folder in result.stages[:2])
    before, after = (
        {name: matrix(layer) for name, layer in mapped_layers(m.module).items() if "layers." in name}
        for m in (ace, protected)
    )
    for name, weight in before.items():
        assert not bool(after[name][weight == 0].any()), f"{name}: what ace pruned was filled again"
    assert result.load().kind == "reram"


def test_lsb_needs_no_training_and_changes_no_weight(tmp_path: Path) -> None:
    net = network()
    pipeline = planish.Pipeline(task=task()).then("reram-protect", embed="lsb").then("reram", chips=2)
    result = pipeline.run(net, tmp_path / "run", measure="none")
    protected = Artifact.open(result.stages[0]).load(given=net)
    assert all(
        torch.equal(a, b) for a, b in zip(net.parameters(), protected.module.parameters(), strict=True)
    )
    assert protected.protection["0"].embed == "lsb"
    assert protected.protection["0"].kept_rows is None


def test_other_cells_than_planned_are_refused_by_the_backend(tmp_path: Path) -> None:
    pipeline = (
        planish.Pipeline(task=task()).then("reram-protect", **QUICK).then("reram", chips=2, cell_bits=4)
    )
    with pytest.raises(PlanishError, match="cell_bits") as caught:
        pipeline.run(network(), tmp_path / "run", measure="none")
    assert "\n" not in str(caught.value)


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    net = network()
    result = (
        planish.Pipeline(task=task())
        .then("reram-protect", **QUICK)
        .run(net, tmp_path / "run", measure="none")
    )
    artifact = Artifact.open(result.stages[0])
    settings = artifact.root / SETTINGS
    settings.write_text(settings.read_text().replace('"0"', '"encoder.9"'))
    with pytest.raises(ArtifactError, match=r"protection\.json: damaged"):
        artifact.load(given=net)
    settings.write_text("{")
    with pytest.raises(ArtifactError, match=r"protection\.json: damaged"):
        artifact.load(given=net)


@pytest.mark.parametrize(
    ("net", "options", "text"),
    [
        (nn.Sequential(nn.Linear(24, 4)), {"multiple": 8}, "0 is 4 x 24, too small for multiple = 8"),
        (nn.Sequential(nn.LayerNorm(24)), {}, "no linear or convolution layer"),
        (nn.Sequential(nn.Linear(24, 4)), {"skip": ("nowhere",)}, "skip = 'nowhere' matches no layer"),
    ],
)
def test_found_before_any_compute(net: nn.Module, options: dict[str, object], text: str) -> None:
    problems = planish.Pipeline(task=task()).then("reram-protect", **options).check(net)
    assert any(text in line for line in problems), problems


def test_a_task_it_cannot_train_on_is_one_clear_line(tmp_path: Path) -> None:
    values = {
        "x": torch.randn(20, 6),
        "edge_index": torch.zeros(2, 4, dtype=torch.long),
        "y": torch.zeros(20, dtype=torch.long),
        **{f"{part}_mask": torch.ones(20, dtype=torch.bool) for part in ("train", "val", "test")},
    }
    graph = planish.NodeClassification(data=planish.Tensors(values=values))
    with pytest.raises(PlanishError, match="node-classification: reram-protect trains its gates on"):
        planish.Pipeline(task=graph).then("reram-protect").run(
            nn.Sequential(nn.Linear(6, 2)), tmp_path / "run", measure="none"
        )
