"""The records that plugins return from their hooks. Light by contract: nothing here imports torch or pydantic.

Everything heavy is named by an import string ``"module:object"`` and resolved on first use, so that listing plugins
costs no more than reading these records.
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any, Literal

from planish.errors import MissingRequirement, PlanishError

API = 1
"""Number of the plugin contract. A plugin whose methods carry another number is refused with that reason."""

Kind = Literal["pruner", "optimizer", "rewriter", "backend", "codegen"]
KINDS: tuple[Kind, ...] = ("pruner", "optimizer", "rewriter", "backend", "codegen")


def resolve(target: str) -> Any:
    """Import the object that ``"module:object"`` names.

    Raises:
        PlanishError: the string has no colon, the module cannot be imported, or it has no such object.
    """
    module_name, colon, attribute = target.partition(":")
    if not module_name or not colon or not attribute:
        raise PlanishError(f"target {target!r} is not of the form 'module:object'")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PlanishError(
            f"module {module_name!r} cannot be imported ({reason}; target {target!r})"
        ) from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise PlanishError(
            f"module {module_name!r} has no object {attribute!r} (target {target!r})"
        ) from None


@dataclass(frozen=True, slots=True)
class Requirement:
    """A Python module or a program that must be present, with the command that brings it."""

    name: str
    hint: str
    program: bool = False

    def missing(self) -> bool:
        if self.program:
            return shutil.which(self.name) is None
        try:
            return importlib.util.find_spec(self.name) is None
        except ModuleNotFoundError:
            return True


def demand(owner: str, requirements: tuple[Requirement, ...]) -> None:
    """Raise `MissingRequirement` for the first of ``requirements`` that is not installed."""
    for requirement in requirements:
        if requirement.missing():
            what = "program" if requirement.program else "module"
            raise MissingRequirement(f"{owner} needs the {what} {requirement.name!r}: {requirement.hint}")


@dataclass(frozen=True, slots=True)
class Method:
    """One method of one plugin.

    Attributes:
        name: what a recipe calls it; unique, or addressed as ``distribution:name``.
        kind: pruner, optimizer, rewriter, backend or codegen.
        summary: one line for listings.
        config: ``"module:Class"`` of the pydantic model of its options (a subclass of `planish.config.MethodConfig`).
        target: ``"module:function"``, called as ``function(model, config, context)``; returns the model that results.
        accepts: artifact kinds it can start from.
        yields: artifact kind it ends in; empty means the kind it was given.
        needs: what the run must offer, of ``"calibration"``, ``"training"``, ``"tokenizer"`` and ``"cuda"``; a config
            with a property ``needs`` decides instead, where it depends on the options.
        requires: modules and programs beyond the distribution's own dependencies.
        check: ``"module:function"``, called before any compute as ``function(model, config)`` with a model on the
            meta device; yields one line a problem.
        paper: the source of the method.
        api: number of the plugin contract the plugin was written for.
    """

    name: str
    kind: Kind
    summary: str
    config: str
    target: str
    accepts: tuple[str, ...] = ("torch",)
    yields: str = ""
    needs: tuple[str, ...] = ()
    requires: tuple[Requirement, ...] = ()
    check: str = ""
    paper: str = ""
    api: int = API


@dataclass(frozen=True, slots=True)
class Builder:
    """How models of one family are written to a folder, rebuilt from it and counted.

    ``target`` names an object with ``save``, ``load`` and ``count``: see `planish.model.ModelBuilder`.
    """

    name: str
    kind: str
    target: str
    summary: str = ""
    requires: tuple[Requirement, ...] = ()
    api: int = API


@dataclass(frozen=True, slots=True)
class Evaluator:
    """A metric: ``target`` is called as ``function(model, task)`` and returns a list of measurements."""

    name: str
    target: str
    tasks: tuple[str, ...]
    summary: str = ""
    api: int = API


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A comparison with peers: ``target`` is called as ``function(quick=bool)`` and yields `planish.bench.Row`."""

    name: str
    target: str
    summary: str = ""
    requires: tuple[Requirement, ...] = ()
    api: int = API


@dataclass(frozen=True, slots=True)
class Command:
    """A CLI group ``planish NAME …``; ``target`` names a typer application, imported when it is called."""

    name: str
    target: str
    summary: str = ""
    api: int = API
