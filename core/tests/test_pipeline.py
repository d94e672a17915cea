"""What can be found wrong before any compute."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish import Classification, LanguageModelling, Pipeline, Tensors, Text
from planish.errors import PlanishError, RunError
from planish.runner import resolve_device


def only(problems: list[str]) -> str:
    (problem,) = problems
    assert "\n" not in problem
    return problem


def test_ready(fake_source: str, tmp_path: Path) -> None:
    pipeline = Pipeline().then("zero", sparsity=0.25).then("jitter").then("pack")
    assert pipeline.check(fake_source, out=tmp_path / "not" / "yet") == []
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "the pipeline has no stage: add one with then(METHOD, ...)"),
        ([("zreo", {})], "unknown method 'zreo'; did you mean 'zero'?"),
        ([("zero", {"sparsty": 0.5})], "zero: unknown field 'sparsty'"),
        ([("zero", {"sparsity": 1.0})], "zero: sparsity = 1.0"),
        ([("absent", {})], "needs the module 'planish_no_such_module': pip install no-such-module"),
        ([("programme", {})], "needs the program 'planish-no-such-program'"),
        ([("pack", {}), ("zero", {})], "method 'zero' starts from torch, but is given 'packed'"),
        ([("zero", {"label": "bad"})], "zero: no layer matches label 'bad'"),
        ([("reads", {})], "method 'reads' needs a tokenizer, and the model has none"),
    ],
)
def test_problems(
    stages: list[tuple[str, dict[str, Any]]], message: str, fake_source: str, tmp_path: Path
) -> None:
    pipeline = Pipeline()
    for method, options in stages:
        pipeline = pipeline.then(method, **options)
    assert message in only(pipeline.check(fake_source))
    with pytest.raises(PlanishError) as error:
        pipeline.run(fake_source, tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("pipeline", "message"),
    [
        *(
            (Pipeline(seed=seed).then("zero"), f"seed = {seed!r} must be")
            for seed in (-1, 2**63, 1.5, "1", True)
        ),
        (Pipeline(task="lm").then("zero"), "task = 'lm' is no task"),  # type: ignore[arg-type]
        (Pipeline().then(3), "method = 3 must be the name of a method"),  # type: ignore[arg-type]
    ],
)
def test_wrong_types_from_python(pipeline: Pipeline, message: str, fake_source: str, tmp_path: Path) -> None:
    with pytest.raises(PlanishError) as error:
        pipeline.run(fake_source, tmp_path / "run")
    assert str(error.value).startswith(message)
    assert not (tmp_path / "run").exists()


def test_all_problems_of_one_kind_are_told(fake_source: str) -> None:
    problems = Pipeline().then("zreo").then("zero", layers="none").then("absent").check(fake_source)
    assert [p.split()[0] for p in problems] == ["unknown", "zero:", "method"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_needs_cuda(fake_source: str) -> None:
    assert "needs a CUDA device" in only(Pipeline().then("on-cuda").check(fake_source))


def test_needs_data(fake_model: Path) -> None:
    assert "needs calibration data, and the task has none" in only(
        Pipeline().then("jitter").check(fake_model)
    )
    task = LanguageModelling(evaluation=Text(text="a"))
    assert "needs calibration data" in only(Pipeline(task=task).then("jitter").check(fake_model))
    offering = Classification(data=Tensors(values={}))
    assert Pipeline(task=offering).then("jitter").check(fake_model) == []


@pytest.mark.model
def test_needs_a_tokenizer(llama_folder: Path, classifier: Any) -> None:
    pipeline = Pipeline().then("reads")
    assert pipeline.check(llama_folder) == []
    assert pipeline.check(classifier, tokenizer=object()) == []
    assert "needs a tokenizer" in only(pipeline.check(classifier))


def test_unknown_source(tmp_path: Path) -> None:
    assert "no such folder" in only(Pipeline().then("zero").check(str(tmp_path / "none")))


def test_a_module_in_memory_is_looked_at_without_its_weights(classifier: Any) -> None:
    assert Pipeline().then("zero").check(classifier) == []
    assert "no layer matches" in only(Pipeline().then("zero", label="bad").check(classifier))
    assert {p.device.type for p in classifier.parameters()} == {"cpu"}


def test_a_check_that_cannot_load_the_model(fake_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish_fake.models import LayersBuilder

    def refuse(*_: object) -> None:
        raise PlanishError("no such family")

    monkeypatch.setattr(LayersBuilder, "load", refuse)
    assert only(Pipeline().then("zero").check(fake_source)) == "no such family"


def test_a_check_that_raises_a_mistake(fake_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from planish_fake import methods

    def look(*_: object) -> None:
        raise PlanishError("cannot look")

    monkeypatch.setattr(methods, "look", look)
    assert only(Pipeline().then("zero").check(fake_source)) == "cannot look"


def test_too_little_disk(fake_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 40, 1 << 40, 100))
    problem = only(Pipeline().then("zero").check(fake_source, out=tmp_path / "deep" / "run"))
    assert "0.0 MB free on the disk, about 0.0 MB needed" in problem


@pytest.mark.parametrize("device", ["tpu9", "meta", "cuda:99", "", "mps:0", None, 0])
def test_device_names(device: Any, fake_source: str, tmp_path: Path) -> None:
    if str(device).startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(RunError, match="device = "):
        Pipeline().then("zero").run(fake_source, tmp_path / "run", device=device)
    assert not (tmp_path / "run").exists()


def test_a_numbered_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu:0") == "cpu"  # methods and builders ask for "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [resolve_device(name) for name in ("auto", "cuda", "cuda:1")] == ["cuda", "cuda", "cuda:1"]
    with pytest.raises(RunError, match="'cuda:2': torch sees 2 CUDA devices here"):
        resolve_device("cuda:2")


def test_what_to_measure(fake_source: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="measure = 'all' is not one of ends, stages, none"):
        Pipeline().then("zero").run(fake_source, tmp_path / "run", measure="all")


def test_then_makes_a_new_pipeline() -> None:
    one = Pipeline(seed=5)
    two = one.then("zero", sparsity=0.1)
    assert one.stages == ()
    assert (two.seed, len(two.stages)) == (5, 1)


def test_a_module_that_is_no_layers_still_has_a_skeleton() -> None:
    assert Pipeline().then("fail").check(nn.ReLU()) == []
