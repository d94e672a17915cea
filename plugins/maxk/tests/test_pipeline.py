"""`planish run` with a graph network: rewritten, trained, measured on both sides, reopened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import planish
from planish.artifact import Artifact
from planish.errors import ArtifactError, ConfigError, PlanishError
from planish_graph.generate import planted_communities
from planish_maxk.config import MaxKConfig
from planish_maxk.nets import GraphNet

DATA = planted_communities(200, 4, features=12)


def task(**changes: Any) -> planish.NodeClassification:
    values = {
        "x": DATA.x,
        "edge_index": torch.stack([DATA.graph.indices, DATA.graph.rows]),
        "y": DATA.y,
        "train_mask": DATA.train,
        "val_mask": DATA.validation,
        "test_mask": DATA.test,
    }
    return planish.NodeClassification(data=planish.Tensors(values={**values, **changes}))


def net() -> nn.Module:
    torch.manual_seed(0)
    return GraphNet(12, 4, kind="gcn", width=16, blocks=2).eval()


@pytest.mark.model
def test_a_network_in_memory(tmp_path: Path) -> None:
    """Facts in the record were measured, the artifact reopens with the module given, another k follows."""
    pipeline = planish.Pipeline(task=task()).then("maxk", k=4, epochs=30, timing_rounds=3)
    result = pipeline.run(net(), tmp_path / "run", device="cpu")
    facts = result.records[0].facts
    assert facts["activations"] == {"blocks_0_activation": 16, "blocks_1_activation": 16}
    assert facts["difference with ReLU kept"] < 1e-5
    assert facts["accuracy after training"] > facts["accuracy before"] + 20, "an untrained network learns"
    assert facts["saved activations after, bytes"] < facts["saved activations before, bytes"]
    # That both were measured, not how long they took: a clock that was never read leaves 0.
    assert facts["epoch before, seconds"] > 0
    assert facts["epoch after, seconds"] > 0
    measured = next(m for m in result.rows[-1].quality if m.name == "accuracy")
    assert measured.value == facts["accuracy after training"]
    assert "Training epoch, ms" in result.report.read_text()

    manifest = json.loads((result.stages[0] / "artifact.json").read_text())
    assert manifest["architecture"]["base"] == "module"
    assert manifest["architecture"]["k"] == 4
    reopened = Artifact.open(result.stages[0]).load(given=net())
    batch = task().example(reopened)
    with pytest.raises(ArtifactError, match="give the module again"):
        Artifact.open(result.stages[0]).load()

    again = planish.Pipeline(task=task()).then("maxk", k=4, epochs=30, timing_rounds=0)
    again = again.then("maxk", k=16, epochs=0, timing_rounds=0)
    second = again.run(net(), tmp_path / "second", device="cpu", measure="none")
    wide = second.artifact.load(given=net())
    assert wide.module.k == 16
    assert not torch.equal(wide(batch), reopened(batch))


@pytest.mark.model
def test_real_graph(graphs: Path, tmp_path: Path) -> None:
    """Cora from its file, through the command line's own recipe."""
    from planish_graph.files import read_labelled

    cora = read_labelled(graphs / "cora.npz")
    edges = np.stack([cora.graph.indices.numpy(), cora.graph.rows.numpy()])
    masks = {"train_mask": cora.train, "val_mask": cora.validation, "test_mask": cora.test}
    np.savez(tmp_path / "cora.npz", x=cora.x, edge_index=edges, y=cora.y, **masks)
    torch.manual_seed(0)
    module = GraphNet(1433, 7, kind="sage", width=16, blocks=1)
    data = planish.NodeClassification.model_validate({"data": {"path": tmp_path / "cora.npz"}})
    result = (
        planish.Pipeline(task=data)
        .then("maxk", k=4, epochs=20, timing_rounds=0)
        .run(module, tmp_path / "run", device="cpu")
    )
    assert result.records[0].facts["accuracy after training"] > 55, "seven classes, 140 labels"


def look(module: nn.Module, data: planish.NodeClassification | None = None, **options: Any) -> str:
    (problem,) = planish.Pipeline(task=data or task()).then("maxk", **options).check(module)
    assert "\n" not in problem
    return problem


def test_preflight_tells_what_is_wrong(tmp_path: Path) -> None:
    assert "no ReLU stands directly before" in look(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    assert "k = 0: input should be greater than or equal to 1" in look(net(), k=0)
    assert "unknown field 'kk'" in look(net(), kk=3)

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input, self.output = nn.Linear(12, 16), nn.Linear(16, 4)

        def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
            return torch.sparse.mm(edge_index, self.output(self.input(x).relu()))

    assert "k = 17: the activation at 'relu' is 16 wide; valid: 1 to 16" in look(Between(), k=17)
    with pytest.raises(ConfigError, match="needs training data"):
        planish.Pipeline().then("maxk").run(net(), tmp_path / "none", device="cpu")


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    def run(module: nn.Module, data: planish.NodeClassification, **options: Any) -> str:
        with pytest.raises(PlanishError) as caught:
            planish.Pipeline(task=data).then("maxk", **{"epochs": 3, "timing_rounds": 0, **options}).run(
                module, tmp_path / str(len(list(tmp_path.iterdir()))), device="cpu", measure="none"
            )
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "k = 17: the activation at 'blocks_0_activation' is 16 wide" in run(net(), task(), k=17)
    broken = net()
    with torch.no_grad():
        broken.output.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
    assert "weight 'output.weight' holds NaN or infinity" in run(broken, task())
    outside = torch.stack([DATA.graph.indices, DATA.graph.rows])
    outside[0, 0] = 200
    assert "source index 200" in run(net(), task(edge_index=outside))
    assert "source index -1" in run(net(), task(edge_index=torch.where(outside == 200, -1, outside)))
    nobody = torch.zeros(200, dtype=torch.bool)
    assert "train_mask picks no node" in run(net(), task(train_mask=nobody))
    assert "val_mask picks no node with a label, which keep = 'best' needs" in run(
        net(), task(val_mask=nobody)
    )
    assert "y holds the label 4; valid: below 4" in run(net(), task(y=DATA.y + 1))
    assert "y holds fractions" in run(net(), task(y=DATA.y + 0.5))
    assert "train_mask has the shape [100]; valid: [200]" in run(net(), task(train_mask=DATA.train[:100]))
    assert "x holds NaN" in run(net(), task(x=DATA.x * float("nan")))
    assert "GraphNet: it does not take x and edge_index (mat1" in run(net(), task(x=torch.ones(200, 13)))
    assert "no weight of the network requires a gradient" in run(net().requires_grad_(False), task())


def test_options_are_light_and_bounded() -> None:
    assert MaxKConfig().k == 16
    assert MaxKConfig.model_json_schema()["properties"]["k"]["maximum"] == 65536
