"""`MethodSuite`: what every method of every plugin has to hold. An author subclasses it in about five lines."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from planish import recipe as recipes
from planish import registry
from planish.artifact import Artifact
from planish.config import MethodConfig, method_config
from planish.errors import ConfigError, PlanishError
from planish.method import KINDS, Kind, resolve
from planish.pipeline import Pipeline
from planish.source import Source
from planish_sdk.testing import fields, files, material
from planish_sdk.testing.kernels import Kernel, compare
from planish_sdk.testing.processes import processes
from planish_sdk.testing.traits import USUAL
from planish_sdk.testing.workbench import Workbench

if TYPE_CHECKING:
    from torch import Tensor, nn

    from planish.tasks import Task
    from planish.weights import Counts

NEEDS = {"calibration", "training", "tokenizer", "cuda"}


class MethodSuite:
    """Subclass it as ``class TestNAME(MethodSuite)`` and set at least `method`.

    Attributes:
        method: name of the method, or ``distribution:name``; its distribution must be installed.
        options: options for all checks; choose ones that are fast on tiny models.
        models: names passed to `model`. By default two of `planish_sdk.fixtures.tiny`: grouped-query attention, and
            the same with tied embeddings. Checks that start processes take the first.
        seed, device: of all runs.
        expected: what `amount` must return, within `amount_tolerance`; None skips that check.
        kernels: (kernel, reference, hypothesis strategy of the tuple of arguments); see `testing.tensors`.
        kernel_examples: generated arguments a kernel.
        tolerance: largest difference between the live and the reopened model, relative to the largest logit.
        no_paper: why the method has no paper.
        expected_failures: check -> reason, as ``{"test_nan_is_refused": "…"}`` or, for one model,
            ``{"test_reload_in_new_process[llama-tied]": "…"}``. A check that passes all the same is a failure.

    What the method can do; None takes what is usual for its kind (`testing.traits`):

    Attributes:
        units: it saves units (``context.unit``).
        selects: it picks layers, and its preflight refuses a model without any.
        runs: what it returns can be called with a batch.
        repeats: it can be applied to its own result. By default where it accepts the kind it yields.
        equivalent: how close the result's logits must be to the source's, relative to the largest logit; 0 skips.
        weights: it reads the model's weights.
        seeded: True: another seed must give another digest, False: the same, None: either.
    """

    method: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    models: ClassVar[tuple[str, ...]] = ("llama", "llama-tied")
    seed: ClassVar[int] = 0
    device: ClassVar[str] = "cpu"
    expected: ClassVar[float | None] = None
    amount_tolerance: ClassVar[float] = 0.01
    kernels: ClassVar[Sequence[Kernel]] = ()
    kernel_examples: ClassVar[int] = 25
    tolerance: ClassVar[float] = 1e-5
    no_paper: ClassVar[str] = ""
    expected_failures: ClassVar[Mapping[str, str]] = {}

    units: ClassVar[bool | None] = None
    selects: ClassVar[bool | None] = None
    runs: ClassVar[bool | None] = None
    repeats: ClassVar[bool | None] = None
    equivalent: ClassVar[float | None] = None
    weights: ClassVar[bool] = True
    seeded: ClassVar[bool | None] = None

    _workbench: ClassVar[Workbench]

    # ---- what an author may override ----------------------------------------------------------------------------

    def model(self, name: str) -> Any:
        """The `planish.model.Model` of that name. Its builder must be able to reopen it in another process."""
        return material.tiny_model(name)

    def task(self, name: str, folder: Path) -> Task | None:
        """The task for that model. Data in tensors goes into a file below ``folder``, so that a recipe can name it."""
        return material.tiny_task()

    def inputs(self, name: str, model: Any, task: Task | None) -> dict[str, Tensor]:
        """A batch for the model."""
        if task is None:
            pytest.fail(f"{type(self).__name__}.inputs must be overridden where there is no task")
        return task.example(model, 2)

    def amount(self, before: Counts, after: Counts) -> float:
        """How much the method changed: by default the share of non-zeros that are gone from prunable matrices."""
        held = sum(n for name, (_, n) in before.layers.items() if self.prunable(name))
        left = sum(n for name, (_, n) in after.layers.items() if self.prunable(name))
        return 1.0 - left / held if held else 0.0

    def change(self, before: Artifact, after: Artifact) -> float:
        """`amount`, from artifacts: override it where stored counts do not tell."""
        return self.amount(before.count(), after.count())

    def prunable(self, weight: str) -> bool:
        """Whether a stored weight counts in `amount`: by default, matrices inside numbered blocks."""
        return re.search(r"\.\d+\.", weight) is not None

    def unmatched(self) -> nn.Module:
        """A network in which the method finds no layer to work on."""
        return material.without_layers()

    def poison(self, model: Any) -> None:
        """Put one NaN where the method reads: by default into the middle one of the prunable matrices."""
        import torch

        named = [(n, p) for n, p in model.module.named_parameters() if p.ndim >= 2 and p.is_floating_point()]
        chosen = [p for n, p in named if self.prunable(n)] or [p for _, p in named]
        with torch.no_grad():
            weight = chosen[len(chosen) // 2]
            weight[(weight.shape[0] // 2, *(0 for _ in weight.shape[1:]))] = float("nan")

    # ---- machinery ----------------------------------------------------------------------------------------------

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for check, reason in cls.expected_failures.items():
            if not callable(getattr(cls, check.partition("[")[0], None)):
                raise PlanishError(f"{cls.__name__}.expected_failures: there is no check {check!r}")
            if not isinstance(reason, str) or not reason.strip():
                raise PlanishError(f"{cls.__name__}.expected_failures: {check!r} needs a written reason")

    def trait(self, name: str, kind: Kind) -> Any:
        """A capability as declared, or what is usual for the kind."""
        declared = getattr(self, name)
        return getattr(USUAL[kind], name) if declared is None else declared

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", type(self).models)

    @pytest.fixture
    def bench(self, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
        """What the checks share, made by the first."""
        cls = type(self)
        if "_workbench" not in vars(cls):
            cls._workbench = Workbench(self, tmp_path_factory.mktemp(cls.__name__))
        return cls._workbench

    @pytest.fixture(autouse=True)
    def _expect_failure(self, request: pytest.FixtureRequest) -> None:
        node = request.node
        for check in (node.name, node.name.partition("[")[0]):
            if check in self.expected_failures:
                reason = self.expected_failures[check]
                node.add_marker(pytest.mark.xfail(reason=reason, strict=True))
                return

    # ---- the record and the options -----------------------------------------------------------------------------

    def test_entry_module_is_light(self, bench: Workbench) -> None:
        """Importing the entry module and the config module, in a fresh process, brings in no numerical library."""
        entry = _entry(bench)
        command = [sys.executable, "-m", "planish_sdk.testing.light"]
        command += [bench.owned.distribution, entry, bench.record.config]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"importing {entry!r} by itself fails:\n{done.stderr[-2000:]}"
        report = json.loads(done.stdout.splitlines()[-1])
        assert not report["before"], (
            f"this Python imports {report['before']} at its start; the check cannot tell"
        )
        assert not report["entry"], f"importing {entry!r} imports {', '.join(report['entry'])}"
        assert not report["broken"], f"loaded alone, the plugin is broken: {'; '.join(report['broken'])}"
        assert not report["hooks"], f"calling the hooks of {entry!r} imports {', '.join(report['hooks'])}"
        brought = ", ".join(report["config"])
        assert not brought, f"importing the options, {bench.record.config!r}, imports {brought}"

    def test_record_is_complete(self, bench: Workbench) -> None:
        """Everything the record names resolves, and everything a listing shows is there."""
        record = bench.record
        assert re.fullmatch(r"[a-z][a-z0-9-]*", record.name), (
            f"name {record.name!r} is not lower-case-with-dashes"
        )
        assert record.kind in KINDS, f"kind {record.kind!r} is not one of {', '.join(KINDS)}"
        assert record.summary.strip(), "summary is empty"
        assert "\n" not in record.summary, "summary is longer than one line"
        assert callable(resolve(record.target)), f"target {record.target!r} is no function"
        config = resolve(record.config)
        assert isinstance(config, type), f"config {record.config!r} is no class"
        assert issubclass(config, MethodConfig), f"config {record.config!r} does not derive from MethodConfig"
        assert not record.check or callable(resolve(record.check)), f"check {record.check!r} is no function"
        assert record.accepts, "accepts is empty: the method can start from nothing"
        unknown = set(record.needs) - NEEDS
        assert not unknown, f"needs {sorted(unknown)}, which is not among {sorted(NEEDS)}"
        for requirement in record.requires:
            assert requirement.hint.strip(), f"requirement {requirement.name!r} has no installation hint"
        assert record.paper.strip() or self.no_paper.strip(), "names no paper; give the reason in no_paper"

    def test_config_fields_are_described(self, bench: Workbench) -> None:
        """Every option has a description, and every number bounds or choices."""
        problems = fields.problems(resolve(bench.record.config))
        assert not problems, "; ".join(problems)

    def test_config_round_trip(self, bench: Workbench) -> None:
        """Options survive JSON and a recipe file unchanged."""
        config = method_config(bench.record, self.options)
        again = method_config(bench.record, json.loads(json.dumps(config.model_dump(mode="json"))))
        assert again == config, f"through JSON {config!r} becomes {again!r}"
        pipeline = Pipeline(0, None, (bench.stage,))
        read, _ = recipes.parse(recipes.dump(pipeline))
        back = read.stages[0].config()
        assert back == config, f"through a recipe {config!r} becomes {back!r}"

    def test_unknown_option_is_refused(self, bench: Workbench) -> None:
        """A misspelt option is an error in one line that names it."""
        with pytest.raises(ConfigError) as caught:
            method_config(bench.record, {**self.options, "no_such_option": 1})
        text = str(caught.value)
        assert "no_such_option" in text, f"the error does not name the field: {text}"
        assert "\n" not in text, f"the error is longer than one line: {text}"

    # ---- the result ---------------------------------------------------------------------------------------------

    def test_preflight_accepts(self, bench: Workbench, name: str) -> None:
        """The check before any compute finds nothing wrong with a model the method is meant for."""
        bench.require()
        problems = bench.pipeline(name).check(Artifact.open(bench.source(name)))
        assert not problems, f"preflight refuses {name}: {'; '.join(problems)}"

    def test_something_changed(self, bench: Workbench, name: str) -> None:
        """What is stored afterwards is not what was stored before."""
        outcome = bench.outcome(name)
        after = outcome.called.artifact
        assert after.files, "the result has no files"
        assert after.digest != outcome.before.digest, (
            f"a silent no-op: with {dict(self.options)} the stored {name} is byte for byte the one before"
        )
        wanted = bench.record.yields or outcome.source.kind
        assert after.kind == wanted, f"the record promises kind {wanted!r}, the result is {after.kind!r}"
        runtime = getattr(outcome.called.model, "runtime", None)
        assert isinstance(runtime, str), f"the result does not say what runs it: runtime = {runtime!r}"
        assert runtime.strip(), "the result does not say what runs it: runtime is empty"

    def test_leaves_the_process_as_it_was(self, bench: Workbench, name: str) -> None:
        """Working directory, torch's switches and threads are what they were: other stages follow in this process."""
        altered = bench.outcome(name).called.altered
        assert not altered, f"left altered: {'; '.join(altered)}"

    def test_amount_is_as_asked(self, bench: Workbench, name: str) -> None:
        """The method changed as much as its options say, counted from the stored files."""
        if self.expected is None:
            pytest.skip("the suite declares no amount (attribute `expected`)")
        outcome = bench.outcome(name)
        amount = self.change(outcome.before, outcome.called.artifact)
        assert abs(amount - self.expected) <= self.amount_tolerance, (
            f"asked for {self.expected}, measured {amount:.4f} on {name} (tolerance {self.amount_tolerance})"
        )

    def test_tied_weights_stay_tied(self, bench: Workbench, name: str) -> None:
        """A parameter that two layers share is still shared in the result, live and reopened."""
        outcome = bench.outcome(name)
        source = outcome.source.load()
        if not hasattr(outcome.called.model, "module") or not hasattr(source, "module"):
            pytest.skip("source or result is not a torch module")
        shared = _shared(source.module)
        if not shared:
            pytest.skip(f"{name} shares no parameters")
        for state, model in (("live", outcome.called.model), ("reopened", outcome.called.artifact.load())):
            lost = shared - _shared(model.module)
            assert not lost, f"the {state} result no longer shares {', '.join(sorted(map(str, lost)))}"

    def test_result_is_finite(self, bench: Workbench, name: str) -> None:
        """The result runs, and its logits hold neither NaN nor infinity."""
        _, after = _logits(bench, name)
        assert bool(after.isfinite().all()), f"logits of the result on {name} hold NaN or infinity"

    def test_result_agrees_with_source(self, bench: Workbench, name: str) -> None:
        """A backend computes what the source computed; a rewriter may promise the same."""
        bound = self.trait("equivalent", bench.record.kind)
        if not bound:
            pytest.skip("the method does not promise equal logits (attribute `equivalent`)")
        before, after = _logits(bench, name)
        assert before.shape == after.shape, f"logits {list(after.shape)} instead of {list(before.shape)}"
        difference = _difference(before, after)
        assert difference <= bound, (
            f"logits of {name} differ by {difference:.2e} of the largest (bound {bound:.0e})"
        )

    def test_reload_in_new_process(self, bench: Workbench, name: str) -> None:
        """What was saved, opened in a new process, computes what the live model computes."""
        if not self.trait("runs", bench.record.kind):
            bench.outcome(name)
            job = processes().run(
                "load", bench.folder, folder=bench.folder / f"called-{name}", device=self.device
            )
            assert job.value() == bench.outcome(name).called.artifact.digest
            return
        _, live = _logits(bench, name)
        reopened, tokenizer = bench.reloaded(name)
        assert live.shape == reopened.shape, f"logits {list(reopened.shape)}, live {list(live.shape)}"
        difference = _difference(live, reopened)
        assert difference <= self.tolerance, (
            f"reopened, {name} differs from the live model by {difference:.2e} of the largest logit"
        )
        lost = bench.outcome(name).tokenizer and not tokenizer
        assert not lost, f"the tokenizer of {name} is lost: the result cannot be measured on text"

    # ---- determinism and interruption ---------------------------------------------------------------------------

    def test_same_seed_same_digest(self, bench: Workbench) -> None:
        """A call in this process and a run in another give the same bytes."""
        first = self.models[0]
        here = bench.outcome(first).called.artifact.digest
        there = bench.finished(first, 1)["digests"][0]
        assert here == there, (
            f"seed {self.seed} gave digest {here[:12]} here and {there[:12]} in a new process"
        )

    def test_seed(self, bench: Workbench) -> None:
        """Another seed gives another result, or the same, as the author says."""
        if self.seeded is None:
            pytest.skip("the suite does not say what the seed decides (attribute `seeded`)")
        first = self.models[0]
        here = bench.outcome(first).called.artifact.digest
        seed = self.seed + 1
        other = bench.call(first, seed, bench.folder / "other-seed").artifact.digest
        verb = "must" if self.seeded else "must not"
        assert (other != here) == self.seeded, f"seed {seed} {verb} give another digest than seed {self.seed}"

    def test_killed_inside_stage(self, bench: Workbench) -> None:
        """Killed after its first unit, then before its record, the run that is started again gives the digest of an unbroken run."""
        first = self.models[0]
        whole = bench.finished(first, 1)
        out = bench.folder / "killed-inside"
        units = bool(self.trait("units", bench.record.kind))
        if units:
            ended = bench.run(first, out, kill="unit")
            assert ended.code == -9, (
                f"no unit was saved (use context.unit, or declare units = False)\n{ended.log}"
            )
        ended = bench.run(first, out, kill="record")
        assert ended.code == -9, f"the run was not killed before its record:\n{ended.log[-2000:]}"
        last = bench.run(first, out).value()
        assert last["digests"] == whole["digests"], "a killed and repeated run gives another digest"
        if units:
            assert last["resumed"][0] > 0, "the repeated run used none of the saved units"

    def test_killed_between_stages(self, bench: Workbench) -> None:
        """Killed after the first stage, the repeated run keeps it and ends as an unbroken run does."""
        first = self.models[0]
        yields = bench.record.yields or bench.record.accepts[0]
        repeats = yields in bench.record.accepts if self.repeats is None else self.repeats
        stages = 2 if repeats else 1
        out = bench.folder / "killed-between"
        killed = bench.run(first, out, stages=stages, kill="stage")
        assert killed.code == -9, f"the run was not killed after its first stage:\n{killed.log[-2000:]}"
        last = bench.run(first, out, stages=stages).value()
        assert len(last["reused"]) == 1, (
            f"the repeated run should reuse one stage, it reused {last['reused']}"
        )
        whole = bench.finished(first, stages)
        assert last["digests"] == whole["digests"], (
            "the second stage gives another digest from the saved model than from the live one"
        )

    # ---- behaviour towards the machine --------------------------------------------------------------------------

    def test_writes_only_its_folder(self, bench: Workbench) -> None:
        """The method writes below ``context.folder`` and nowhere else, and leaves nothing in TMPDIR."""
        bench.require()
        server = processes()
        here = bench.folder / "watched"
        here.mkdir()
        source = bench.source(self.models[0])
        job = server.run(
            "watched",
            here,
            recipe=bench.recipe(self.models[0]),
            folder=here / "stage",
            device=self.device,
            roots=[str(here), str(source), str(server.home), str(server.temporary)],
            temporary=str(server.temporary),
        )
        outside = job.value()
        assert not outside, "outside its folder: " + "; ".join(outside)

    def test_no_pickle(self, bench: Workbench) -> None:
        """No file of a finished run is a pickle, whatever it is called."""
        found = files.pickles(bench.finished(self.models[0], 1)["out"])
        assert not found, f"pickled: {', '.join(found)}"

    def test_no_matching_layer_is_refused(self, bench: Workbench) -> None:
        """A model without a layer for the method is refused before any compute, in one line."""
        if not self.trait("selects", bench.record.kind):
            pytest.skip("the method does not pick layers (attribute `selects`)")
        bench.require()
        assert bench.record.check, (
            "the record has no check: that no layer fits is found in the middle of a run"
        )
        first = self.models[0]
        tokenizer = getattr(self.model(first), "tokenizer", None)
        source = Source("in memory", module=self.unmatched(), tokenizer=tokenizer)
        problems = bench.pipeline(first).check(source)
        assert problems, "preflight finds nothing wrong with a model that has no layer for the method"
        assert all("\n" not in line for line in problems), f"more than one line: {problems}"

    def test_nan_is_refused(self, bench: Workbench) -> None:
        """Weights with a NaN end in one line, not in a result that carries it on."""
        if not self.weights:
            pytest.skip("the method does not read the model's weights (attribute `weights`)")
        bench.require()
        first = self.models[0]
        model = self.model(first)
        self.poison(model)
        source = bench.save(model, "poisoned")
        out = bench.folder / "run-poisoned"
        refused = ""
        try:
            bench.pipeline(first).run(source, out, device=self.device, measure="none")
        except PlanishError as error:
            refused = str(error)
        assert refused, "weights with a NaN went through without a word"
        assert "\n" not in refused, f"the error is longer than one line: {refused}"

    def test_kernels(self) -> None:
        """Each kernel equals its reference, values and gradients, over generated arguments."""
        if not self.kernels:
            pytest.skip("the suite declares no kernels (attribute `kernels`)")
        for kernel in self.kernels:
            compare(kernel, self.kernel_examples)


def _entry(bench: Workbench) -> str:
    """The entry point's module of the plugin that offers the method."""
    for plugin in registry.host().plugins:
        if plugin.distribution == bench.owned.distribution and bench.record in plugin.records:
            return plugin.module
    raise AssertionError(f"no plugin offers {bench.owned.address}")


def _logits(bench: Workbench, name: str) -> tuple[Tensor, Tensor]:
    logits = bench.outcome(name).logits
    if logits is None:
        pytest.skip("the result does not run (attribute `runs`)")
    return logits


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value of ``one``; infinite where only one side is finite."""
    import torch

    if not bool(torch.equal(one.isfinite(), other.isfinite())):
        return float("inf")
    scale = float(one.abs().max().clamp_min(torch.finfo(torch.float32).tiny))
    return float((one.float() - other.float()).abs().max()) / scale


def _shared(module: nn.Module) -> set[tuple[str, ...]]:
    """Names of each parameter that has more than one."""
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {tuple(sorted(group)) for group in names.values() if len(group) > 1}
