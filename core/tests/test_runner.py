"""Runs in one process: folders, reuse, refusal, figures, and stages that fail."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from planish import Artifact, Classification, Pipeline, PlanishError, Result, Tensors
from planish.errors import ArtifactError, DataError, RunError
from planish.events import Event, read
from planish.record import Record
from planish.result import read_rows

pytestmark = pytest.mark.usefixtures("few_rounds")
TWO = Pipeline(seed=1).then("zero", sparsity=0.5).then("jitter", scale=0.1)


def folders(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir() if p.is_dir())


def heard(out: Path) -> list[tuple[str, str]]:
    return [(e.type, e.stage) for e in read(out) if e.type != "stage_progress"]


@pytest.fixture
def result(fake_source: str, tmp_path: Path) -> Result:
    return TWO.run(fake_source, tmp_path / "run")


def other_task(**options: Any) -> Classification:
    from planish_fake.models import data

    return Classification(data=Tensors(values=data(seed=5)), batch=16, **options)


class TestAFinishedRun:
    def test_folders_and_artifacts(self, result: Result, fake_model: Path) -> None:
        assert folders(result.folder) == [p.name for p in result.stages]
        assert [p.name[:3] for p in result.stages] == ["01-", "02-"]
        one, two = (Artifact.open(p) for p in result.stages)
        assert one.parent == Artifact.open(fake_model).digest
        assert two.parent == one.digest
        assert two == result.artifact
        assert not list(result.folder.rglob("*.tmp"))
        assert not list(result.folder.rglob("*.part"))
        assert not list(result.folder.rglob("units"))

    def test_the_method_did_what_it_was_asked(self, result: Result) -> None:
        layers = Artifact.open(result.stages[0]).count().layers
        assert {name: zeros for name, (size, nonzeros) in layers.items() for zeros in [size - nonzeros]} == {
            "layers.0.weight": 48,
            "layers.1.weight": 96,
            "layers.2.weight": 18,
        }

    def test_records(self, result: Result) -> None:
        record = result.records[0]
        assert (record.method, record.distribution, record.version, record.seed) == (
            "zero",
            "planish-fake",
            "1.2",
            1,
        )
        assert record.config["sparsity"] == 0.5
        assert record.config["layers"] == "all"
        assert record.facts == {"zeros": 162}
        assert record.key in result.stages[0].name
        assert record.parent == result.start.digest
        assert record.data == result.pipeline.task or record.data
        assert record.peak_memory > 1 << 20
        assert record.resumed_units == 0
        assert {"python", "planish", "torch", "safetensors"} <= record.libraries.keys()
        assert Record.read(result.stages[0]) == record

    def test_rows(self, result: Result) -> None:
        source, final = result.rows
        assert (source.label, final.label) == ("source", "result")
        assert source.digest == result.start.digest
        assert source.verdict == "reference"
        assert source.speedup is None
        assert final.speedup is not None
        assert final.latency is not None
        assert final.latency.value > 0
        assert final.size == result.artifact.bytes
        assert final.quality[0].name == "accuracy"
        assert final.quality[0].repeats == 40
        lines = result.table().splitlines()
        assert len(lines) == 4
        assert "accuracy" in lines[0]
        assert f"{source.quality[0].value:.2f}" in lines[2]

    def test_run_json(self, result: Result) -> None:
        data = json.loads((result.folder / "run.json").read_text())
        assert data["source"] == "fake:mlp"
        assert data["digest"] == result.start.digest
        assert [next(iter(s)) for s in data["stages"]] == ["zero", "jitter"]
        assert data["seed"] == 1

    def test_events(self, result: Result) -> None:
        assert heard(result.folder) == [
            ("stage_started", "01 zero"),
            ("stage_finished", "01 zero"),
            ("stage_started", "02 jitter"),
            ("stage_finished", "02 jitter"),
            ("stage_started", "measure"),
            ("stage_finished", "measure"),
        ]
        progress = [e for e in read(result.folder) if (e.type, e.stage) == ("stage_progress", "01 zero")]
        assert [(e.done, e.total, e.text) for e in progress] == [(n, 3, f"layer {n - 1}") for n in (1, 2, 3)]

    def test_as_dict_and_load(self, result: Result) -> None:
        data = json.loads(json.dumps(result.as_dict()))
        assert data["digest"] == result.artifact.digest
        assert [row["label"] for row in data["rows"]] == ["source", "result"]
        assert Path(data["report"]).is_file()
        assert result.load()({"x": torch.zeros(2, 6)}).shape == (2, 3)


class TestRepeating:
    def test_everything_is_reused(self, result: Result, fake_source: str) -> None:
        before = {p: p.stat().st_mtime_ns for p in result.folder.rglob("*.safetensors")}
        again = TWO.run(fake_source, result.folder)
        assert again.rows == result.rows
        assert again.artifact == result.artifact
        assert {p: p.stat().st_mtime_ns for p in result.folder.rglob("*.safetensors")} == before
        assert heard(result.folder)[6:] == [("stage_reused", "01 zero"), ("stage_reused", "02 jitter")]

    def test_a_changed_stage_runs_with_all_that_follow(self, result: Result, fake_source: str) -> None:
        changed = Pipeline(seed=1).then("zero", sparsity=0.5).then("jitter", scale=0.2)
        other = changed.run(fake_source, result.folder, measure="none")
        assert other.stages[0] == result.stages[0]
        assert other.stages[1] != result.stages[1]
        assert heard(result.folder)[6][0] == "stage_reused"
        first = Pipeline(seed=1).then("zero", sparsity=0.25).then("jitter", scale=0.1)
        third = first.run(fake_source, result.folder, measure="none")
        assert not set(third.stages) & set(result.stages)

    def test_figures_of_another_pipeline_are_not_shown(self, result: Result, fake_source: str) -> None:
        assert read_rows(result.folder) == result.rows
        TWO.run(fake_source, result.folder, measure="none")
        assert read_rows(result.folder) == result.rows
        Pipeline(seed=1).then("zero", sparsity=0.25).run(fake_source, result.folder, measure="none")
        assert read_rows(result.folder) == []

    def test_figures_of_another_machine_are_not_reused(
        self, result: Result, fake_source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from planish import measure

        monkeypatch.setattr(measure, "device_name", lambda device="cpu": "another processor")
        TWO.run(fake_source, result.folder)
        assert heard(result.folder)[8:] == [("stage_started", "measure"), ("stage_finished", "measure")]

    def test_defaults_spelt_out_are_the_same_stage(self, result: Result, fake_source: str) -> None:
        spelt = Pipeline(seed=1).then("planish-fake:zero", sparsity=0.5, layers="all", label=None)
        assert spelt.run(fake_source, result.folder, measure="none").stages == result.stages[:1]

    def test_another_seed_is_another_run(self, result: Result, fake_source: str) -> None:
        other = Pipeline(2, None, TWO.stages).run(fake_source, result.folder, measure="none")
        assert not set(other.stages) & set(result.stages)
        assert other.artifact.digest != result.artifact.digest

    def test_another_version_of_the_plugin_runs_again(
        self, result: Result, fake_source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from planish.registry import host

        for plugin in host().plugins:
            plugin.version = "9.9"
        assert not set(TWO.run(fake_source, result.folder, measure="none").stages) & set(result.stages)

    def test_same_seed_same_digest_elsewhere(self, result: Result, fake_source: str, tmp_path: Path) -> None:
        again = TWO.run(fake_source, tmp_path / "other", measure="none")
        assert again.artifact.digest == result.artifact.digest
        assert [p.name for p in again.stages] == [p.name for p in result.stages]

    def test_other_data_is_refused(self, result: Result, fake_source: str) -> None:
        before = (result.folder / "run.json").read_text()
        with pytest.raises(RunError, match="belongs to a run on other data"):
            Pipeline(1, other_task(), TWO.stages).run(fake_source, result.folder)
        assert (result.folder / "run.json").read_text() == before

    def test_another_model_is_refused(
        self, result: Result, fake_source: str, tmp_path: Path, monkeypatch: Any
    ) -> None:
        from planish_fake.models import write

        write(tmp_path / "other", seed=3)
        monkeypatch.setenv("FAKE_MODEL", str(tmp_path / "other"))
        with pytest.raises(RunError, match=r"belongs to a run from another model \(fake:mlp\)"):
            TWO.run(fake_source, result.folder)

    @pytest.mark.parametrize("name", ["run.json", "measurements.json"])
    @pytest.mark.parametrize("content", ["", "{", "[]", "{}", "5"])
    def test_damaged_notes_are_named(self, name: str, content: str, result: Result, fake_source: str) -> None:
        (result.folder / name).write_text(content)
        with pytest.raises(RunError, match=f"{name}: damaged"):
            TWO.run(fake_source, result.folder)

    def test_an_altered_stage_is_noticed(self, result: Result, fake_source: str) -> None:
        path = result.stages[0] / "model/model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        with pytest.raises(ArtifactError, match="altered since it was written"):
            TWO.run(fake_source, result.folder)

    def test_an_altered_source_is_noticed(self, fake_source: str, fake_model: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(fake_model, tmp_path / "copy"))
        artifact = Artifact.open(copy)
        path = copy / "model/model.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\x01")
        with pytest.raises(ArtifactError, match="altered since it was written"):
            Pipeline().then("zero").run(artifact, tmp_path / "run")

    def test_what_a_killed_stage_left_of_its_model_is_not_kept(
        self, fake_source: str, tmp_path: Path
    ) -> None:
        result = TWO.run(fake_source, tmp_path / "a", measure="none")
        left = tmp_path / "b" / f"{result.stages[0].name}.tmp" / "model"
        left.mkdir(parents=True)
        (left / "half.bin").write_bytes(b"half")
        again = TWO.run(fake_source, tmp_path / "b", measure="none")
        assert again.artifact.digest == result.artifact.digest
        assert not list((tmp_path / "b").rglob("half.bin"))


class TestMeasuring:
    def test_none(self, fake_source: str, tmp_path: Path) -> None:
        result = TWO.run(fake_source, tmp_path / "run", measure="none")
        assert result.rows == []
        assert result.table() == "not measured"
        assert not (tmp_path / "run/measurements.json").exists()
        assert "not measured" in result.report.read_text()

    def test_stages_of_one_method_keep_their_own_figures(self, fake_source: str, tmp_path: Path) -> None:
        pipeline = Pipeline()
        for sparsity in (0.25, 0.5, 0.75):
            pipeline = pipeline.then("zero", sparsity=sparsity)
        rows = pipeline.run(fake_source, tmp_path / "run", measure="stages").rows
        assert [row.label for row in rows] == ["source", "after 01 zero", "after 02 zero", "result"]
        zeros = [row.counts.parameters - row.counts.nonzeros for row in rows]
        assert zeros == [0, 81, 162, 243]
        assert len({row.digest for row in rows}) == 4

    def test_measured_once(self, result: Result, fake_source: str, monkeypatch: pytest.MonkeyPatch) -> None:
        import planish.runner

        monkeypatch.setattr(planish.runner, "compare", lambda *_, **__: pytest.fail("measured again"))
        assert TWO.run(fake_source, result.folder).rows == result.rows

    def test_other_entries_are_measured_again(self, result: Result, fake_source: str) -> None:
        assert len(TWO.run(fake_source, result.folder, measure="stages").rows) == 3

    def test_without_a_task_only_sizes_are_measured(self, fake_model: Path, tmp_path: Path) -> None:
        result = Pipeline().then("zero").run(fake_model, tmp_path / "run")
        for row in result.rows:
            assert (row.quality, row.latency, row.speedup, row.verdict) == ([], None, None, "not measured")
        assert result.table().count("not measured") == 6
        assert result.rows[1].counts.sparsity > 0.4

    def test_a_backend_is_compared_within_its_engine(self, fake_source: str, tmp_path: Path) -> None:
        result = Pipeline().then("zero").then("pack").run(fake_source, tmp_path / "run")
        assert [row.label for row in result.rows] == ["source", "source, same backend", "result"]
        assert [row.verdict == "reference" for row in result.rows] == [False, True, False]
        assert [row.runtime for row in result.rows[1:]] == ["fake engine"] * 2
        assert result.rows[1].speedup is None
        assert result.rows[1].counts.sparsity == 0
        assert result.artifact.kind == "packed"
        assert len(folders(result.folder)) == 3
        assert len(result.stages) == 2

    def test_a_backend_alone_or_without_reference(self, fake_source: str, tmp_path: Path) -> None:
        alone = Pipeline().then("pack").run(fake_source, tmp_path / "a")
        assert [row.label for row in alone.rows] == ["source", "result"]
        without = Pipeline().then("zero").then("pack").run(fake_source, tmp_path / "b", reference=False)
        assert [row.label for row in without.rows] == ["source", "result"]
        assert without.rows[0].verdict == "reference"


class TestAModuleInMemory:
    def test_it_runs_and_is_left_alone(self, classifier: nn.Module, tmp_path: Path) -> None:
        from planish_fake.models import data

        before = {name: t.clone() for name, t in classifier.state_dict().items()}
        task = Classification(data=Tensors(values=data()))
        result = Pipeline(0, task).then("zero").then("jitter").run(classifier, tmp_path / "run")
        assert folders(result.folder)[0].startswith("00-")
        assert result.source == "Own"
        assert len(result.rows) == 2
        assert classifier.training
        for name, tensor in classifier.state_dict().items():
            assert tensor.equal(before[name])
        with pytest.raises(ArtifactError, match="give the module again"):
            result.load()
        assert result.load(module=classifier)({"x": torch.zeros(2, 6)}).shape == (2, 3)
        again = Pipeline(0, task).then("zero").then("jitter").run(classifier, tmp_path / "run")
        assert again.rows == result.rows
        assert not list(result.folder.glob("*.tmp"))

    def test_live_and_reloaded_stages_agree(self, classifier: nn.Module, tmp_path: Path) -> None:
        """A method may leave the module in training mode; the next stage must not notice (normalisation would)."""
        from planish_fake.models import data

        pipeline = Pipeline(0, Classification(data=Tensors(values=data()))).then("jitter").then("zero")
        modes: list[bool] = []
        from planish_fake import methods

        original = methods.zero

        def zero(model: Any, config: Any, context: Any) -> Any:
            modes.append(model.module.training)
            return original(model, config, context)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(methods, "zero", zero)
            one = pipeline.run(classifier, tmp_path / "a", measure="none")
            shutil.rmtree(one.stages[1])
            two = pipeline.run(classifier, tmp_path / "a", measure="none")
        assert modes == [False, False]
        assert one.artifact.digest == two.artifact.digest

    def test_another_module_is_refused(self, classifier: nn.Module, tmp_path: Path) -> None:
        Pipeline().then("zero").run(classifier, tmp_path / "run", measure="none")
        classifier.layers[0].weight.data[0, 0] += 1  # type: ignore[index,union-attr,operator]
        with pytest.raises(RunError, match="another model"):
            Pipeline().then("zero").run(classifier, tmp_path / "run", measure="none")


@pytest.mark.model
def test_a_transformers_module_in_memory(make_llama: Any, tokenizer: Any, text: str, tmp_path: Path) -> None:
    from planish import LanguageModelling, Text

    task = LanguageModelling(evaluation=Text(text=text), window=32, windows=4, length=16)
    module = make_llama()
    result = Pipeline(0, task).then("reads").run(module, tmp_path / "run", tokenizer=tokenizer)
    assert result.artifact.builder == "transformers"
    assert [m.name for m in result.rows[0].quality] == ["perplexity", "bits per byte"]
    assert result.rows[0].quality[0].value == result.rows[1].quality[0].value
    ids = torch.arange(8).view(1, 8)
    torch.testing.assert_close(result.load()({"input_ids": ids}), module(ids).logits, rtol=1e-5, atol=1e-5)
    plain = type(module).from_pretrained(result.artifact.root)
    torch.testing.assert_close(plain(ids).logits, module(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.model
def test_a_model_without_tokenizer_fails_clearly_at_evaluation(
    llama_folder: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planish import LanguageModelling, Text

    monkeypatch.setenv("FAKE_FAIL", "no")
    (llama_folder / "tokenizer.json").unlink()
    task = LanguageModelling(evaluation=Text(text=text), window=32)
    with pytest.raises(DataError, match="the model has no tokenizer"):
        Pipeline(0, task).then("fail").run(llama_folder, tmp_path / "run")


class TestAStageThatFails:
    def test_it_is_told_and_the_run_can_go_on(
        self, fake_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline = Pipeline().then("zero").then("fail")
        with pytest.raises(ZeroDivisionError, match="half-way"):
            pipeline.run(fake_source, tmp_path)
        assert heard(tmp_path)[-1] == ("stage_failed", "02 fail")
        assert list(read(tmp_path))[-1].text == "ZeroDivisionError: half-way"
        assert [name[-4:] == ".tmp" for name in folders(tmp_path)] == [False, True]
        monkeypatch.setenv("FAKE_FAIL", "no")
        result = pipeline.run(fake_source, tmp_path, measure="none")
        assert ("stage_reused", "01 zero") in heard(tmp_path)
        assert result.records[1].resumed_units == 1
        assert not list(tmp_path.glob("*.tmp"))

    def test_a_missing_task_is_the_user_s_mistake(self, fake_model: Path, tmp_path: Path) -> None:
        from planish.context import Context

        with pytest.raises(DataError, match="needs a task"):
            Context(None, 0, "cpu", tmp_path).need_task()

    def test_interruption_is_told_too(self, fake_source: str, tmp_path: Path) -> None:
        def stop(event: Event) -> None:
            if event.type == "stage_progress":
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            TWO.run(fake_source, tmp_path, listeners=(stop,))
        assert heard(tmp_path)[-1] == ("stage_failed", "01 zero")
        result = TWO.run(fake_source, tmp_path, measure="none")
        assert result.records[0].resumed_units == 1


def test_observers_and_listeners_that_fail_do_not_stop_a_run(
    fake_source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def listen(event: Event) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("FAKE_OBSERVER", "raises")
    with caplog.at_level(logging.WARNING, logger="planish"):
        result = TWO.run(fake_source, tmp_path, measure="none", listeners=(listen,))
    assert len(result.stages) == 2
    assert {str(r.exc_info[1]) for r in caplog.records if r.exc_info} == {
        "observer's own trouble",
        "[Errno 28] No space left on device",
    }


class TestEventsFile:
    def test_a_line_cut_by_a_kill_does_not_spoil_the_next(self, result: Result, fake_source: str) -> None:
        path = result.folder / "events.jsonl"
        whole = path.read_text()
        path.write_text(whole + '{"type": "stage_sta')
        assert len(list(read(result.folder))) == len(whole.splitlines())
        TWO.run(fake_source, result.folder)
        assert [e.type for e in read(result.folder)][-2:] == ["stage_reused", "stage_reused"]
        assert path.read_text().startswith(whole)

    def test_times_rise(self, result: Result) -> None:
        times = [e.time for e in read(result.folder)]
        assert times == sorted(times)


class TestTheLock:
    def test_a_second_process_is_refused(self, fake_source: str, tmp_path: Path) -> None:
        code = (
            "import fcntl, os, sys\n"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDWR | os.O_CREAT), fcntl.LOCK_EX)\n"
            "print('held', flush=True)\nsys.stdin.read()\n"
        )
        holder = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / ".lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert holder.stdout
        assert holder.stdin
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(RunError, match="another process is working in this run folder"):
                TWO.run(fake_source, tmp_path)
            assert [p.name for p in tmp_path.iterdir()] == [".lock"]
        finally:
            holder.kill()
            holder.communicate()
        assert len(TWO.run(fake_source, tmp_path, measure="none").stages) == 2

    def test_it_is_held_during_and_free_after(self, fake_source: str, tmp_path: Path) -> None:
        held: list[bool] = []

        def try_lock(event: Event | None = None) -> None:
            descriptor = os.open(tmp_path / ".lock", os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(False)
            except BlockingIOError:
                held.append(True)
            finally:
                os.close(descriptor)

        TWO.run(fake_source, tmp_path, measure="none", listeners=(try_lock,))
        assert set(held) == {True}
        try_lock()
        assert held[-1] is False


class TestUnits:
    def context(self, folder: Path) -> Any:
        from planish import Context

        return Context(None, 7, "cpu", folder)

    def test_saved_units_are_found_and_counted_once(self, tmp_path: Path) -> None:
        first = self.context(tmp_path)
        unit = first.unit("model.layers.0")
        assert (unit.done, unit.load(), unit.facts) == (False, None, {})
        unit.save({"w": torch.ones(2)}, error=0.5)
        assert first.unit("model.layers.0").load()["w"].equal(torch.ones(2))
        assert first.resumed_units == 0
        second = self.context(tmp_path)
        assert second.unit("model.layers.0").facts == {"error": 0.5}
        assert second.unit("model.layers.0").done
        assert not second.unit("model.layers.1").done
        assert second.resumed_units == 1

    def test_names_that_look_alike_are_different_units(self, tmp_path: Path) -> None:
        context = self.context(tmp_path)
        names = ["a/b", "a-b", "a b", "../../a", "x" * 500, "x" * 501, "é", ""]
        for number, name in enumerate(names):
            context.unit(name).save({"n": torch.tensor(number)})
        assert [int(context.unit(name).load()["n"]) for name in names] == list(range(len(names)))
        assert {p.parent for p in tmp_path.rglob("*.safetensors")} == {tmp_path / "units"}

    def test_generators_depend_on_seed_and_name_alone(self, tmp_path: Path) -> None:
        context, other = self.context(tmp_path), self.context(tmp_path)
        other.generator("b")
        one = torch.rand(3, generator=context.generator("a"))
        assert one.equal(torch.rand(3, generator=other.generator("a")))
        assert not one.equal(torch.rand(3, generator=context.generator("b")))
        other.seed = 8
        assert not one.equal(torch.rand(3, generator=other.generator("a")))

    def test_a_damaged_unit_is_named(self, tmp_path: Path) -> None:
        unit = self.context(tmp_path).unit("a")
        unit.save({"w": torch.ones(2)})
        path = next(tmp_path.rglob("*.safetensors"))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(PlanishError, match="truncated"):
            unit.load()


def test_seeding() -> None:
    import random

    import numpy

    from planish.runner import seed_everything

    def draw() -> tuple[Any, ...]:
        return random.random(), float(numpy.random.rand()), float(torch.rand(1))

    seed_everything(2**40)
    one = draw()
    seed_everything(2**40)
    assert draw() == one
    seed_everything(1)
    assert draw() != one
    seed_everything(2**63 - 1)
