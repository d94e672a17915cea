"""The hooks of planish, all of them. A plugin implements any number with `hookimpl` and is found by its entry point
in the group ``planish.plugins``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from planish.events import Event
    from planish.method import Benchmark, Builder, Command, Evaluator, Method
    from planish.source import Source

GROUP = "planish.plugins"

hookspec = pluggy.HookspecMarker("planish")
hookimpl = pluggy.HookimplMarker("planish")


class Methods:
    """What a plugin offers: records, never implementations."""

    @hookspec
    def pruners(self) -> Iterable[Method]:  # type: ignore[empty-body]
        """Methods that remove weights or operations."""

    @hookspec
    def optimizers(self) -> Iterable[Method]:  # type: ignore[empty-body]
        """Methods that train."""

    @hookspec
    def rewriters(self) -> Iterable[Method]:  # type: ignore[empty-body]
        """Methods that exchange parts of the architecture."""

    @hookspec
    def backends(self) -> Iterable[Method]:  # type: ignore[empty-body]
        """Methods that end in something another engine runs."""

    @hookspec
    def codegens(self) -> Iterable[Method]:  # type: ignore[empty-body]
        """Methods that write programs or circuits."""

    @hookspec
    def builders(self) -> Iterable[Builder]:  # type: ignore[empty-body]
        """Families of architectures that this plugin can save and rebuild."""

    @hookspec
    def evaluators(self) -> Iterable[Evaluator]:  # type: ignore[empty-body]
        """Metrics."""

    @hookspec
    def benchmarks(self) -> Iterable[Benchmark]:  # type: ignore[empty-body]
        """Comparisons with peers."""

    @hookspec
    def commands(self) -> Iterable[Command]:  # type: ignore[empty-body]
        """CLI groups, imported when called."""


class Resolvers:
    """The first plugin that answers wins; None passes on."""

    @hookspec(firstresult=True)
    def open_artifact(self, uri: str) -> Source | None:
        """The model, and the task it comes with, behind ``scheme:name`` (for instance ``testbed:lm``)."""

    @hookspec(firstresult=True)
    def executor(self, name: str) -> Any | None:
        """A `concurrent.futures.Executor` that runs pipelines elsewhere."""


class Observers:
    """Told of what a run does. What an observer raises is logged and never stops the run."""

    @hookspec
    def stage_started(self, event: Event) -> None:
        """A stage begins."""

    @hookspec
    def stage_progress(self, event: Event) -> None:
        """A stage has come further."""

    @hookspec
    def stage_finished(self, event: Event) -> None:
        """A stage is complete and its folder renamed."""

    @hookspec
    def stage_failed(self, event: Event) -> None:
        """A stage raised."""


TOPICS = (Methods, Resolvers, Observers)
KIND_HOOKS = {
    "pruner": "pruners",
    "optimizer": "optimizers",
    "rewriter": "rewriters",
    "backend": "backends",
    "codegen": "codegens",
}
