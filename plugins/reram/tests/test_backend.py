"""The backend in pipelines: torch and ONNX models in, measured chips out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from planish.artifact import Artifact
from planish.config import validate
from planish.data import Tensors
from planish.errors import ArtifactError, ConfigError, PlanishError
from planish.model import TorchModel
from planish.pipeline import Pipeline
from planish.source import Source
from planish.tasks import Classification
from planish_reram.config import ReramConfig
from planish_reram.evaluation import over_chips
from planish_reram.faults import LRS
from planish_reram.mapfile import read_maps, write_maps
from planish_reram.model import ReramModel, chip_seeds
from planish_reram.network import crossbars
from planish_reram.protection import LayerProtection

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def source() -> Source:
    """A small trained classifier of 8 x 8 digits, and its data."""
    from sklearn.datasets import load_digits

    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:1300]), y[:1300]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    values = {"train_x": x[:1300], "train_y": y[:1300], "test_x": x[1300:], "test_y": y[1300:]}
    task = Classification(data=Tensors(values=values), input="input", batch=497)
    return Source("digits", module=net.eval(), task=task)


def run(source: Source, out: Path, **options: Any) -> Any:
    options = {"chips": 3, "faults": "low"} | options
    return Pipeline().then("reram", **options).run(source, out, device="cpu")


def metrics(result: Any) -> dict[str, Any]:
    return {m.name: m for m in result.rows[-1].quality}


def test_a_run_measures_every_chip_and_names_the_constants(source: Source, tmp_path: Path) -> None:
    result = run(source, tmp_path / "run", chips=4)
    found = metrics(result)
    mean, worst = found["accuracy, mean of chips"], found["accuracy, worst chip"]
    assert (mean.repeats, worst.repeats) == (4, 4)
    assert worst.value <= found["accuracy"].value
    assert worst.value <= mean.value
    assert mean.spread is not None
    assert "simulator (no hardware)" in result.rows[-1].runtime
    facts = result.records[-1].facts
    assert facts["energy an inference, constants isaac (nJ)"] > 0
    assert not [key for key in facts if ("nJ" in key or "mm2" in key or "us)" in key) and "isaac" not in key]
    assert "constants: isaac" in result.report.read_text()
    model = result.load(module=source.module)
    seen = [float(m.value) for _ in model.chips() for m in _accuracy(model, source.task)]
    assert mean.value == pytest.approx(sum(seen) / 4)
    assert found["accuracy"].value == seen[0]


def _accuracy(model: Any, task: Any) -> Any:
    from planish.evaluators import accuracy

    return accuracy(model, task)


def test_without_faults_nothing_is_lost_and_with_many_everything_is(source: Source, tmp_path: Path) -> None:
    perfect = run(source, tmp_path / "perfect", faults="none")
    assert metrics(perfect)["accuracy"].value > 88
    assert metrics(perfect)["accuracy, mean of chips"].spread == 0
    broken = run(source, tmp_path / "broken", faults="march_test")
    assert metrics(broken)["accuracy, mean of chips"].value < 60
    mended = run(source, tmp_path / "mended", faults="march_test", bias_correction="expected")
    gained = (
        metrics(mended)["accuracy, mean of chips"].value - metrics(broken)["accuracy, mean of chips"].value
    )
    assert gained > 3


def test_a_saved_chip_keeps_its_map_and_ranges(source: Source, tmp_path: Path) -> None:
    result = run(source, tmp_path / "run", adc_bits=8, dac_range="calibrated", chips=1)
    assert result.records[-1].facts["path"] == "tile by tile, slice by slice"
    model = result.load(module=source.module)
    batch = source.task.example(model)  # type: ignore[union-attr]
    before = model(batch)
    maps = read_maps(result.artifact.root / "chip-0.safetensors")
    assert set(maps) == {"0", "2"}
    assert maps["0"][0].shape == (1, 1, 4, 96, 64)
    for layers in maps.values():
        layers[0].fill_(LRS)
    broken = ReramModel(_torch(source), model.config, model.seeds, maps)
    weights = [layer.effective_weight() for layer in crossbars(broken.module).values()]
    assert all(bool((w == w.max()).all()) for w in weights)
    assert torch.equal(result.load(module=source.module)(batch), before)


def _torch(source: Source) -> TorchModel:
    import copy

    return TorchModel(copy.deepcopy(source.module), "module")  # type: ignore[arg-type]


def test_a_measured_map_is_chip_zero(source: Source, tmp_path: Path) -> None:
    maps = {
        "0/0": torch.zeros(1, 4, 96, 64, dtype=torch.int8),
        "2/0": torch.zeros(1, 4, 10, 96, dtype=torch.int8),
    }
    save_file(maps, tmp_path / "map.safetensors")
    result = run(source, tmp_path / "run", faults="march_test", fault_map=str(tmp_path / "map.safetensors"))
    found = metrics(result)
    assert found["accuracy"].value > 88  # the map says that chip 0 is perfect
    assert found["accuracy, mean of chips"].value < found["accuracy"].value - 10
    save_file({name: torch.full_like(part, 1) for name, part in maps.items()}, tmp_path / "map.safetensors")
    again = run(source, tmp_path / "run", faults="march_test", fault_map=str(tmp_path / "map.safetensors"))
    assert metrics(again)["accuracy"].value < 40, "the file's new content is another chip"
    for bad, text in (
        ({"0": torch.zeros(1)}, "not named LAYER/COPY"),
        ({"0/0": torch.full((1, 4, 96, 64), 3, dtype=torch.int8)}, "states are 0"),
        ({"0/0": torch.zeros(4)}, "must be int8"),
        ({"0/1": torch.zeros(1, 4, 96, 64, dtype=torch.int8)}, "copy 0 is missing"),
    ):
        save_file(bad, tmp_path / "bad.safetensors")
        with pytest.raises(ArtifactError, match=text):
            read_maps(tmp_path / "bad.safetensors")
    for bad, text in (
        ({"7/0": torch.zeros(1, 4, 96, 64, dtype=torch.int8)}, "name the layer '7'"),
        (
            {"0/0": torch.zeros(1, 8, 96, 64, dtype=torch.int8)},
            r"is \[1, 8, 96, 64\], needed is \[1, 4, 96, 64\]",
        ),
    ):
        save_file(bad, tmp_path / "other.safetensors")
        with pytest.raises(ConfigError, match=text):
            run(source, tmp_path / "other", fault_map=str(tmp_path / "other.safetensors"))
    problems = Pipeline().then("reram", fault_map="nowhere").check(source)
    assert problems == ["reram: fault_map = 'nowhere': no such file"]


def test_maps_survive_their_file(tmp_path: Path) -> None:
    states = torch.randint(0, 3, (1, 2, 3, 5, 7), dtype=torch.int8)
    write_maps(tmp_path / "m.safetensors", {"a.b": [states, states[:, :, :1]]})
    found = read_maps(tmp_path / "m.safetensors")
    assert torch.equal(found["a.b"][0], states)
    assert torch.equal(found["a.b"][1], states[:, :, :1])
    assert (tmp_path / "m.safetensors").stat().st_size < 600
    many = {"a": [states + 0 * copy for copy in range(12)]}  # by number: "10" is not before "2"
    write_maps(tmp_path / "many.safetensors", many)
    assert len(read_maps(tmp_path / "many.safetensors")["a"]) == 12


def test_chips_of_two_runs_are_different_chips() -> None:
    assert not set(chip_seeds(0, 1000)) & set(chip_seeds(1, 1000))


def test_protection_that_a_model_carries_is_used(source: Source) -> None:
    inner = _torch(source)
    inner.protection = {"0": LayerProtection(slices=torch.full((96,), 4, dtype=torch.uint8), copies=3)}  # type: ignore[attr-defined]
    config = ReramConfig(faults="march_test", chips=1)
    wrong = {}
    for name, model in (("plain", _torch(source)), ("protected", inner)):
        layer = crossbars(ReramModel(model, config, [0]).module)["0"]
        wrong[name] = float((layer.effective_weight()[0] != layer.quantised.dequantised()).float().mean())
    assert wrong["protected"] < 0.5 * wrong["plain"]
    other = _torch(source)
    other.protection, other.protection_layout = inner.protection, {"cell_bits": 4}  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="protected for cell_bits = 4"):
        ReramModel(other, config, [0])


def test_other_models_have_no_chips(source: Source) -> None:
    assert over_chips(_torch(source), source.task) == []  # type: ignore[arg-type]


# ---- ONNX -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_onnx_model_goes_in_and_simulated_accuracy_comes_out(source: Source, tmp_path: Path) -> None:
    pytest.importorskip("planish_onnx")
    exported = Pipeline().then("onnx").run(source, tmp_path / "onnx", device="cpu", measure="none")
    graph = Source("graph", Artifact.open(exported.stages[-1]), task=source.task)
    result = run(graph, tmp_path / "run", faults="march_test")
    torch_side = run(source, tmp_path / "torch", faults="march_test", dac_bits="ideal")
    assert "ONNX Runtime" in result.rows[-1].runtime
    for name in ("accuracy", "accuracy, mean of chips", "accuracy, worst chip"):
        assert metrics(result)[name].value == pytest.approx(metrics(torch_side)[name].value, abs=0.3)
    reopened = result.load()
    batch = source.task.example(reopened)  # type: ignore[union-attr]
    assert torch.allclose(reopened(batch), torch_side.load(module=source.module)(batch), atol=1e-3)
    assert result.records[-1].facts["weights left digital"] == 0
    partly = run(graph, tmp_path / "partly", skip=["2"], chips=1).records[-1].facts
    assert (partly["weights on crossbars"], partly["weights left digital"]) == (64 * 96, 96 * 10)
    save_file({"7/0": torch.zeros(1, 4, 96, 64, dtype=torch.int8)}, tmp_path / "map.safetensors")
    for options, text in (
        ({"adc_bits": 8}, "adc_bits = 'ideal'"),
        ({"skip": ["head"]}, "skip = 'head' matches no layer"),
        ({"fault_map": str(tmp_path / "map.safetensors")}, "name the layer '7'"),
    ):
        with pytest.raises(ConfigError, match=text):
            run(graph, tmp_path / "bad", **options)
    one = tmp_path / "one"
    chained = Pipeline().then("onnx").then("reram", chips=2, faults="low").run(source, one, device="cpu")
    assert chained.artifact.kind == "reram"


# ---- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"p_lrs": 1.5}, "p_lrs = 1.5"),
        ({"p_hrs": 0.7, "p_lrs": 0.7}, "must not exceed 1"),
        ({"cell_bits": 3}, "does not divide"),
        ({"weight_bits": 9}, "weight_bits = 9"),
        ({"tile_cols": 2}, "a word line must hold"),
        ({"faults": "SA0"}, "faults = 'SA0'"),
        ({"adc_bits": 0}, "adc_bits"),
        ({"dac_bits": "ideal", "dac_serial": True}, "dac_serial"),
        ({"drift": 0.05}, "device = 'custom'"),
        ({"chips": 0}, "chips = 0"),
    ],
)
def test_bad_options_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        validate(ReramConfig, options, "reram")
    assert "\n" not in str(caught.value)


def test_ideal_has_two_spellings() -> None:
    for spelling in ("ideal", None):
        assert ReramConfig(dac_bits=spelling, adc_bits=spelling).converters.dac_bits is None


@pytest.mark.parametrize(
    ("module", "options", "text"),
    [
        (nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)), {}, "groups = 4"),
        (nn.Sequential(nn.Linear(8, 8)), {"small_layers": "refuse"}, r"layer '0' \(8 x 8, 4 cells a weight\) is too small"),
        (nn.Sequential(nn.Linear(8, 8)), {"small_layers": "digital"}, "no linear layer"),
        (nn.Sequential(nn.Linear(8, 8)), {"skip": ["head"]}, "skip = 'head' matches no layer"),
        (nn.Sequential(nn.Linear(8, 8)), {"constants": "mine"}, "constants = 'mine'"),
        (nn.Sequential(nn.Linear(8, 8)), {"adc_bits": 8}, "needs calibration data"),
    ],
)  # fmt: skip
def test_preflight_finds_what_cannot_work(
    module: nn.Module, options: dict[str, Any], text: str, tmp_path: Path
) -> None:
    source = Source("in memory", module=module)
    pipeline = Pipeline().then("reram", **options)
    problems = pipeline.check(source)
    assert any(re.search(text, line) for line in problems), problems
    with pytest.raises(PlanishError):
        pipeline.run(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
