"""What other distributions may add to promptv, by the entry-point group ``planish.promptv``.

A module named there implements any of these with ``planish_promptv.hooks.extension``.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from planish_promptv.types import Task

GROUP = "planish.promptv"
_spec = pluggy.HookspecMarker("planish_promptv")
extension = pluggy.HookimplMarker("planish_promptv")
log = logging.getLogger("planish.promptv")


Linter = Callable[["Task", str], Iterable[str]]
Synthesiser = Callable[["Task", str], Mapping[str, Any]]


class Hooks:
    """The hooks."""

    @_spec(firstresult=True)
    def register_llm_provider(self, name: str, config: Any) -> Any:
        """The provider (`models.protocol.Provider`) called ``name``, made from a `GenerationConfig`, or None."""

    @_spec(firstresult=True)
    def register_simulator(self, config: Any) -> Any:
        """A simulator in the place of Icarus (``simulate(task, code, bench)``, ``quality(task, bench)``), or None."""

    @_spec(firstresult=True)
    def register_benchmark(self, name: str) -> Any:
        """The tasks of the benchmark called ``name``, or None."""

    @_spec(firstresult=True)
    def register_prompt_pack(self, name: str) -> Path | None:
        """The folder of the prompt pack called ``name``, or None."""

    @_spec
    def register_linter(self) -> tuple[str, Linter]:  # type: ignore[empty-body]
        """(name, function from (task, code) to lines of advice) for the teacher; never a gate."""

    @_spec
    def register_synthesiser(self) -> tuple[str, Synthesiser]:  # type: ignore[empty-body]
        """(name, function from (task, code) to figures in JSON), recorded beside the hardware of a model."""

    @_spec
    def on_event(self, event: Mapping[str, Any]) -> None:
        """Told of every event of a trace. What it raises is logged and stops nothing."""


def manager_of(points: Iterable[importlib.metadata.EntryPoint]) -> pluggy.PluginManager:
    """A manager with the modules of ``points``; one that fails to load is logged and left out."""
    manager = pluggy.PluginManager("planish_promptv")
    manager.add_hookspecs(Hooks)
    for point in points:
        try:
            manager.register(point.load(), point.name)
            manager.check_pending()
        except (Exception, SystemExit) as error:  # a stranger's module may fail in any way
            if manager.has_plugin(point.name):
                manager.unregister(name=point.name)
            log.warning("extension %r is left out: %s: %s", point.name, type(error).__name__, error)
    return manager


@functools.cache
def extensions() -> pluggy.PluginManager:
    """The manager of this process."""
    return manager_of(importlib.metadata.entry_points(group=GROUP))


def provider(name: str, config: Any) -> Any:
    """The provider that an extension makes for ``name``, or None."""
    return extensions().hook.register_llm_provider(name=name, config=config)


def simulator(config: Any) -> Any:
    """The simulator of an extension, or None."""
    return extensions().hook.register_simulator(config=config)


def benchmark(name: str) -> Any:
    """The tasks of an extension's benchmark, or None."""
    return extensions().hook.register_benchmark(name=name)


def prompt_pack(name: str) -> Path | None:
    """The folder of an extension's prompt pack, or None."""
    folder: Path | None = extensions().hook.register_prompt_pack(name=name)
    return folder


def lint(task: Task, code: str) -> list[str]:
    """Advice of every linter; one that fails says so in its place."""
    found: list[str] = []
    for name, linter in extensions().hook.register_linter():
        try:
            found += [f"{name}: {line}" for line in linter(task, code)]
        except Exception as error:  # advice is optional; the run goes on
            log.warning("linter %r failed: %s", name, error)
    return found


def synthesise(task: Task, code: str) -> dict[str, Any]:
    """Figures of every synthesiser, by its name; one that fails is logged and left out."""
    found: dict[str, Any] = {}
    for name, synthesiser in extensions().hook.register_synthesiser():
        try:
            found[name] = dict(synthesiser(task, code))
        except Exception as error:  # figures are optional; the run goes on
            log.warning("synthesiser %r failed: %s", name, error)
    return found


def tell(event: Mapping[str, Any]) -> None:
    """Pass an event on to observers."""
    for implementation in extensions().hook.on_event.get_hookimpls():
        try:
            implementation.function(event)
        except Exception:  # an observer may raise anything; the run goes on
            log.warning("an observer failed", exc_info=True)
