"""What the checks of one suite share: sources on disk, one call a model, and runs in new processes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from planish import recipe as recipes
from planish import registry, weights
from planish.artifact import Artifact
from planish.errors import MissingRequirement
from planish.method import Method, demand
from planish.pipeline import Pipeline, Stage
from planish.registry import Owned
from planish_sdk.testing.calling import Called, call, save
from planish_sdk.testing.processes import Ended, processes

if TYPE_CHECKING:
    from torch import Tensor

    from planish.tasks import Task
    from planish_sdk.testing.jobs import Point
    from planish_sdk.testing.suite import MethodSuite


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call of the method on one model, in this process.

    Attributes:
        source: the model as given.
        before: the model loaded and saved again with nothing done, so that only the method can make a difference.
        called: the live result, its artifact, its context.
        tokenizer: whether the source has one.
        inputs: a batch of the task.
        logits: of the source and of the live result for the batch; None where the result does not run.
    """

    source: Artifact
    before: Artifact
    called: Called
    tokenizer: bool
    inputs: dict[str, Tensor]
    logits: tuple[Tensor, Tensor] | None


class Workbench:
    """Everything is made once, below ``folder``, when a check first asks for it."""

    def __init__(self, suite: MethodSuite, folder: Path) -> None:
        self.suite = suite
        self.folder = folder

    @functools.cached_property
    def owned(self) -> Owned:
        return registry.host().method(self.suite.method)

    @property
    def record(self) -> Method:
        method: Method = self.owned.record
        return method

    @functools.cached_property
    def stage(self) -> Stage:
        return Stage(self.owned.address, self.suite.options)

    def require(self) -> None:
        """Skip the check when this machine lacks what the method says it needs."""
        try:
            demand(f"method {self.record.name!r}", self.record.requires)
        except MissingRequirement as missing:
            pytest.skip(str(missing))
        if "cuda" in self.record.needs:
            import torch

            if not torch.cuda.is_available():
                pytest.skip(f"method {self.record.name!r} needs a CUDA device, and there is none")

    @functools.cache
    def task(self, name: str) -> Task | None:
        folder = self.folder / f"data-{name}"
        folder.mkdir(exist_ok=True)
        return self.suite.task(name, folder)

    @functools.cache
    def source(self, name: str) -> Path:
        """Folder of the model's artifact."""
        folder = self.folder / f"source-{name}"
        save(self.suite.model(name), folder)
        return folder

    def save(self, model: Any, name: str) -> Artifact:
        """Another source."""
        return save(model, self.folder / name)

    def call(self, name: str, seed: int, folder: Path) -> Called:
        """The method applied in this process, with ``folder`` as its stage folder."""
        self.require()
        source = Artifact.open(self.source(name))
        return call(self.stage, source, self.task(name), seed, self.suite.device, folder)

    def pipeline(self, name: str, stages: int = 1) -> Pipeline:
        return Pipeline(self.suite.seed, self.task(name), (self.stage,) * stages)

    def recipe(self, name: str, stages: int = 1) -> Path:
        """A recipe file that runs the method so many times on the model."""
        path = self.folder / f"{name}-{stages}.yaml"
        path.write_text(recipes.dump(self.pipeline(name, stages), str(self.source(name))))
        return path

    @functools.cache
    def outcome(self, name: str) -> Outcome:
        """The method applied to the model in this process."""
        self.require()
        suite = self.suite
        source = Artifact.open(self.source(name))
        untouched = source.load(suite.device)
        tokenizer = getattr(untouched, "tokenizer", None) is not None
        inputs = suite.inputs(name, untouched, self.task(name))
        runs = suite.trait("runs", self.record.kind)
        given = untouched(inputs).cpu() if runs else None
        before = save(untouched, self.folder / f"untouched-{name}")
        called = self.call(name, suite.seed, self.folder / f"called-{name}")
        logits = None if given is None else (given, called.model(inputs).cpu())
        return Outcome(source, before, called, tokenizer, inputs, logits)

    def run(self, name: str, out: Path, *, stages: int = 1, kill: Point = "") -> Ended:
        """Run the recipe in a new process."""
        self.require()
        recipe = self.recipe(name, stages)
        return processes().run(
            "run", self.folder, recipe=recipe, out=out, device=self.suite.device, kill=kill
        )

    @functools.cache
    def finished(self, name: str, stages: int) -> dict[str, Any]:
        """An uninterrupted run in a new process: what it left, and where."""
        out = self.folder / f"run-{name}-{stages}"
        report: dict[str, Any] = self.run(name, out, stages=stages).value()
        return report | {"out": out}

    def reloaded(self, name: str) -> tuple[Tensor, bool]:
        """Logits of the saved result, opened in a new process, and whether it has a tokenizer there."""
        outcome = self.outcome(name)
        inputs, output = (
            self.folder / f"{name}-inputs.safetensors",
            self.folder / f"{name}-logits.safetensors",
        )
        weights.write(inputs, outcome.inputs)
        arguments = {"inputs": inputs, "output": output, "device": self.suite.device}
        job = processes().run("forward", self.folder, folder=self.folder / f"called-{name}", **arguments)
        tokenizer = bool(job.value())
        return weights.read(output)["logits"], tokenizer
