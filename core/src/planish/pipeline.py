"""A pipeline is data: stages, task and seed. Running it is the runner's business."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import registry
from planish.builders.transformers import TOKENIZER
from planish.config import MethodConfig, method_config
from planish.errors import ConfigError, PlanishError, RunError
from planish.method import demand, resolve
from planish.registry import Owned
from planish.source import Source, is_text, open_source

if TYPE_CHECKING:
    from planish.events import Listener
    from planish.result import Result
    from planish.tasks import Task


@dataclass(frozen=True, slots=True)
class Stage:
    """One step: a method's name (or ``distribution:method``) and its options as the user gave them."""

    method: str
    options: Mapping[str, Any]

    def owned(self) -> Owned:
        return registry.host().method(self.method)

    def config(self) -> MethodConfig:
        return method_config(self.owned().record, self.options)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Methods in order.

    ``planish.Pipeline(seed=0).then("ace", sparsity=0.5).then("onnx").run("testbed:lm", out="runs/first")``

    Attributes:
        seed: decides everything random.
        task: data, loss and metric; None takes the one the source comes with.
        stages: the steps, in order.
    """

    seed: int = 0
    task: Task | None = None
    stages: tuple[Stage, ...] = ()

    def then(self, method: str, /, **options: Any) -> Pipeline:
        """This pipeline with one more stage."""
        return Pipeline(self.seed, self.task, (*self.stages, Stage(method, options)))

    def check(self, source: Any, *, tokenizer: Any = None, out: str | Path | None = None) -> list[str]:
        """Everything that can be found wrong before any compute, one line each; an empty list means ready to run."""
        try:
            opened = open_source(source, tokenizer).with_task(self.task)
        except PlanishError as error:
            return [str(error)]
        return [str(problem) for problem in self.problems(opened, Path(out) if out else None)]

    def problems(self, source: Source, out: Path | None = None) -> Iterator[PlanishError]:
        """What `check` finds, as the errors that a run would raise."""
        if not self.stages:
            yield ConfigError("the pipeline has no stage: add one with then(METHOD, ...)")
            return
        if wrong := list(self._mistyped()):
            yield from wrong
            return
        usable: list[tuple[Owned, MethodConfig]] = []
        for stage in self.stages:
            try:
                owned = stage.owned()
                demand(f"method {stage.method!r}", owned.record.requires)
                usable.append((owned, stage.config()))
            except PlanishError as error:
                yield error
        if len(usable) < len(self.stages):
            return
        yield from _fit(usable, source)
        yield from _look(usable, source)
        yield from _space(source, out, len(self.stages))

    def _mistyped(self) -> Iterator[ConfigError]:
        """What Python lets through and a recipe does not."""
        from planish.tasks import Task

        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or not 0 <= self.seed < 2**63:
            yield ConfigError(f"seed = {self.seed!r} must be a whole number from 0 to 2**63 - 1")
        if self.task is not None and not isinstance(self.task, Task):
            yield ConfigError(f"task = {self.task!r} is no task, such as planish.LanguageModelling(...)")
        for stage in self.stages:
            if not isinstance(stage.method, str):
                yield ConfigError(f"method = {stage.method!r} must be the name of a method")

    def run(
        self,
        source: Any,
        out: str | Path,
        *,
        tokenizer: Any = None,
        device: str = "auto",
        measure: str = "ends",
        reference: bool = True,
        listeners: tuple[Listener, ...] = (),
    ) -> Result:
        """Run all stages and measure.

        Args:
            source: ``"testbed:lm"``, a folder, a hub id, an `Artifact`, or a torch module in memory.
            out: the run's folder. Repeating a call on the same folder reuses what is complete.
            tokenizer: tokenizer of a module in memory.
            device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, or ``"auto"``: CUDA where there is one.
            measure: ``"ends"`` measures source and result, ``"stages"`` also what lies between, ``"none"`` nothing.
            reference: when the pipeline ends in a backend, also run the unchanged source through the backend, so that
                speed is compared within one engine.
            listeners: called with every `planish.events.Event`.

        Raises:
            PlanishError: for a mistake in the pipeline, the source or the folder; found before any compute wherever
                possible.
        """
        from planish.runner import run

        opened = open_source(source, tokenizer).with_task(self.task)
        return run(self, opened, Path(out), device, measure, reference, listeners)


def _fit(usable: list[tuple[Owned, MethodConfig]], source: Source) -> Iterator[PlanishError]:
    """Kinds follow on each other, and the task offers what methods need."""
    kind = source.artifact.kind if source.artifact else "torch"
    for owned, config in usable:
        method = owned.record
        if kind not in method.accepts:
            yield ConfigError(
                f"method {method.name!r} starts from {' or '.join(method.accepts)}, but is given {kind!r}"
            )
        kind = method.yields or kind
        offers = source.task.offers if source.task else set()
        for need in getattr(config, "needs", method.needs):
            if need in ("calibration", "training") and need not in offers:
                yield ConfigError(f"method {method.name!r} needs {need} data, and the task has none")
            if need == "tokenizer" and not _has_tokenizer(source):
                yield ConfigError(f"method {method.name!r} needs a tokenizer, and the model has none")
            if need == "cuda" and not _cuda():
                yield ConfigError(f"method {method.name!r} needs a CUDA device, and there is none")


def _look(usable: list[tuple[Owned, MethodConfig]], source: Source) -> Iterator[PlanishError]:
    """Let each method look at the shapes, as long as the architecture is still the source's."""
    checks: list[tuple[Owned, MethodConfig, Callable[[Any, MethodConfig], Any]]] = []
    for owned, config in usable:
        if owned.record.check:
            checks.append((owned, config, resolve(owned.record.check)))
        if owned.record.yields:
            break
    if not checks or (source.artifact and source.artifact.kind != "torch"):
        return  # other kinds have no module whose shapes could be looked at
    try:
        model = _skeleton(source)
    except PlanishError as error:
        yield error
        return
    for owned, config, look in checks:
        try:
            for line in look(model, config):
                yield ConfigError(f"{owned.record.name}: {line}")
        except PlanishError as error:
            yield error


def _skeleton(source: Source) -> Any:
    """The source's model without weights."""
    from planish.model import TorchModel

    if source.artifact:
        return source.artifact.load("meta", source.module)
    assert source.module is not None
    import copy

    return TorchModel(copy.deepcopy(source.module).to("meta"), "module", source.tokenizer)


def _space(source: Source, out: Path | None, stages: int) -> Iterator[PlanishError]:
    """Each stage may write as much as the source holds in float32."""
    if out is None:
        return
    if not is_text(str(out)):
        yield RunError(f"out = {str(out)!r}: the name is not UTF-8, which safetensors files need")
        return
    size = source.artifact.bytes if source.artifact else 0
    needed = 2 * size * (stages + 1)
    existing = out
    try:
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
    except OSError as error:
        yield RunError(f"{out}: cannot be written ({error.strerror})")
        return
    if free < needed:
        yield RunError(f"{out}: {free / 1e6:.1f} MB free on the disk, about {needed / 1e6:.1f} MB needed")


def _has_tokenizer(source: Source) -> bool:
    if source.artifact is None:
        return source.tokenizer is not None
    return any(name in source.artifact.files for name in TOKENIZER)


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
