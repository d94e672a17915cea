"""Finds plugins, keeps the broken ones apart, and answers which method, builder or metric a name stands for.

pluggy's own bulk loader stops at the first plugin that raises; here each entry point is loaded by itself, and one that
fails is listed with its distribution, version and reason.
"""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import pluggy

from planish import builtin
from planish.errors import BrokenPlugin, PlanishError, UnknownMethod
from planish.hooks import GROUP, KIND_HOOKS, TOPICS
from planish.method import API, Benchmark, Builder, Command, Evaluator, Method, Requirement

Record = Method | Builder | Evaluator | Benchmark | Command
R = TypeVar("R", Method, Builder, Evaluator, Benchmark, Command)

RECORD_HOOKS: dict[str, type[Record]] = {
    **dict.fromkeys(KIND_HOOKS.values(), Method),
    "builders": Builder,
    "evaluators": Evaluator,
    "benchmarks": Benchmark,
    "commands": Command,
}
_CORE_BUILDERS = {builder.name for builder in builtin.builders()}
HOOK_NAMES = [name for topic in TOPICS for name, _ in inspect.getmembers(topic, inspect.isfunction)]


@dataclass(frozen=True, slots=True)
class Owned:
    """A record and the distribution it comes from."""

    record: Any
    distribution: str
    version: str

    @property
    def address(self) -> str:
        return f"{self.distribution}:{self.record.name}"


@dataclass(slots=True)
class Plugin:
    """One entry point: what it offers, or why it is broken."""

    name: str
    distribution: str
    version: str
    module: str
    records: list[Any] = field(default_factory=list)
    hooks: list[str] = field(default_factory=list)
    broken: str = ""


class Host:
    """The plugins of one process.

    Args:
        entry_points: what to load; by default every installed entry point of the group ``planish.plugins``.
        only: names of entry points or distributions to load; None loads all. By default the comma list in
            ``PLANISH_PLUGINS``, where an empty value loads none.
    """

    def __init__(
        self,
        entry_points: Iterable[importlib.metadata.EntryPoint] | None = None,
        only: Iterable[str] | None = None,
    ) -> None:
        self.manager = pluggy.PluginManager("planish")
        for topic in TOPICS:
            self.manager.add_hookspecs(topic)
        self.plugins: list[Plugin] = []
        core = Plugin("builtin", "planish", importlib.metadata.version("planish"), builtin.__name__)
        self._register(core, lambda: builtin)
        found = importlib.metadata.entry_points(group=GROUP) if entry_points is None else entry_points
        wanted = _wanted() if only is None else set(only)
        for point in sorted(found, key=lambda p: (_distribution(p)[0], p.name)):
            distribution, version = _distribution(point)
            if wanted is None or point.name in wanted or distribution in wanted:
                self._register(Plugin(point.name, distribution, version, point.value), point.load)

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.plugins if plugin.broken]

    def _register(self, plugin: Plugin, load: Callable[[], Any]) -> None:
        self.plugins.append(plugin)
        name = f"{plugin.distribution}:{plugin.name}"
        try:
            module = load()
            plugin.hooks = _hooks(module)
            plugin.records = _records(module, plugin.hooks)
            self.manager.register(module, name)
        except (Exception, SystemExit) as error:  # a plugin may fail in any way; the host must live
            plugin.broken = " ".join(f"{type(error).__name__}: {error}".split())
            plugin.records = []
            if self.manager.has_plugin(name):  # pluggy keeps the hooks it had added before it refused one
                self.manager.unregister(name=name)

    def records(self, kind: type[R]) -> Iterator[Owned]:
        """Every record of one class, with its distribution."""
        for plugin in self.plugins:
            for record in plugin.records:
                if isinstance(record, kind):
                    yield Owned(record, plugin.distribution, plugin.version)

    def find(self, kind: type[R], name: str) -> Owned:
        """The record that ``name`` or ``distribution:name`` stands for.

        Raises:
            UnknownMethod: nobody offers it, or two distributions do.
            BrokenPlugin: the plugin of that name could not be loaded.
        """
        noun = kind.__name__.lower()
        known = list(self.records(kind))
        matches = [owned for owned in known if name in (owned.record.name, owned.address)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            addresses = " or ".join(owned.address for owned in matches)
            raise UnknownMethod(f"{noun} {name!r} is offered by two plugins: say {addresses}")
        distribution, _, short = name.rpartition(":")
        for plugin in self.broken:
            if plugin.name == short or plugin.distribution in (distribution, f"planish-{short}"):
                raise BrokenPlugin(
                    f"{noun} {name!r}: plugin {plugin.distribution} {plugin.version} is broken: {plugin.broken}"
                )
        names = sorted({owned.record.name for owned in known})
        near = difflib.get_close_matches(short, names, n=1)
        guess = f"; did you mean {near[0]!r}?" if near else ""
        # A plugin that could not be loaded cannot say what it offers: it may be the one that was meant.
        broken = "".join(f"; broken: {p.distribution} {p.version}, {p.broken}" for p in self.broken)
        raise UnknownMethod(
            f"unknown {noun} {name!r}{guess} (installed: {', '.join(names) or 'none'}{broken})"
        )

    def method(self, name: str) -> Owned:
        return self.find(Method, name)

    def builder(self, name: str) -> Owned:
        return self.find(Builder, name)

    def evaluators(self, task: str) -> list[Owned]:
        """The metrics that apply to a kind of task."""
        return [owned for owned in self.records(Evaluator) if task in owned.record.tasks]

    def open_artifact(self, uri: str) -> Any:
        """Ask each plugin for the model behind ``uri``; None when nobody knows it."""
        return self.manager.hook.open_artifact(uri=uri)

    def executor(self, name: str) -> Any:
        return self.manager.hook.executor(name=name)


@functools.cache
def host() -> Host:
    """The host of this process, made on first use."""
    return Host()


def _wanted() -> set[str] | None:
    text = os.environ.get("PLANISH_PLUGINS")
    return None if text is None else {name.strip() for name in text.split(",") if name.strip()}


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of who brought an entry point; what an installer left half removed has neither."""
    try:
        assert point.dist is not None
        name, version = point.dist.name, point.dist.version
    except Exception:  # without METADATA, each Python version raises something else
        return point.name, "unknown"
    return name or point.name, version or "unknown"


def _mistyped(record: Record) -> Iterator[str]:
    """One line for each field of a record that would raise where it is read, far from the plugin it came from."""
    for field_ in fields(record):
        value = getattr(record, field_.name)
        if field_.name == "requires":
            if not (isinstance(value, tuple | list) and all(isinstance(v, Requirement) for v in value)):
                yield f"requires = {value!r} must be a tuple of Requirement"
        elif field_.name in ("accepts", "needs", "tasks"):
            if not (isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)):
                yield f"{field_.name} = {value!r} must be a tuple of texts"
        elif field_.name != "api" and not isinstance(value, str):
            yield f"{field_.name} = {value!r} must be text"
    if not record.name:
        yield "name is empty"


def _hooks(module: Any) -> list[str]:
    """Names of the hooks a plugin implements; a marked function that is no hook is a misspelling."""
    names = []
    for name, function in inspect.getmembers(module, inspect.isroutine):
        if getattr(function, "planish_impl", None) is None:
            continue
        if name not in HOOK_NAMES:
            near = difflib.get_close_matches(name, HOOK_NAMES, n=1)
            guess = f", did you mean {near[0]!r}?" if near else ""
            raise PlanishError(f"hook {name!r} is unknown{guess} (hooks: {', '.join(HOOK_NAMES)})")
        if hasattr(module, "__path__") and importlib.util.find_spec(f"{module.__name__}.{name}"):
            # Importing it sets the attribute of that name, and the hook would be gone for the next host.
            raise PlanishError(
                f"module '{module.__name__}.{name}' hides the hook {name!r}: rename the module"
            )
        names.append(name)
    return names


def _records(module: Any, hooks: list[str]) -> list[Any]:
    """Call the record hooks once and check what they return."""
    records = []
    for hook in hooks:
        expected = RECORD_HOOKS.get(hook)
        if expected is None:
            continue
        for record in getattr(module, hook)():
            if not isinstance(record, expected):
                raise PlanishError(f"hook {hook!r} returned {type(record).__name__}, not {expected.__name__}")
            noun = f"{expected.__name__.lower()} {record.name!r}"
            if record.api != API:
                raise PlanishError(f"{noun} speaks plugin API {record.api}, this planish speaks {API}")
            for wrong in _mistyped(record):
                raise PlanishError(f"{noun}: {wrong}")
            if isinstance(record, Builder) and module is not builtin and record.name in _CORE_BUILDERS:
                raise PlanishError(f"{noun}: core has a builder of that name")
            if isinstance(record, Method) and KIND_HOOKS.get(record.kind) != hook:
                raise PlanishError(f"method {record.name!r} of kind {record.kind!r} came from hook {hook!r}")
            records.append(record)
    return records
