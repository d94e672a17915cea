"""planish makes trained models smaller, cheaper and runnable on unusual hardware, and proves what it gained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from planish.artifact import Artifact
    from planish.bench import Row
    from planish.config import MethodConfig
    from planish.context import Context
    from planish.data import Tensors, Text
    from planish.errors import PlanishError
    from planish.hooks import hookimpl
    from planish.measure import Measurement
    from planish.method import Benchmark, Builder, Command, Evaluator, Method, Requirement
    from planish.model import TorchModel
    from planish.pipeline import Pipeline
    from planish.result import Result
    from planish.source import Source
    from planish.tasks import Classification, LanguageModelling, NodeClassification, SkeletonAction, Task

# Where each public name lives. They are imported on first use, so that the command line starts without them.
_HOMES = {
    "artifact": ("Artifact",),
    "bench": ("Row",),
    "config": ("MethodConfig",),
    "context": ("Context",),
    "data": ("Tensors", "Text"),
    "errors": ("PlanishError",),
    "hooks": ("hookimpl",),
    "measure": ("Measurement",),
    "method": ("Benchmark", "Builder", "Command", "Evaluator", "Method", "Requirement"),
    "model": ("TorchModel",),
    "pipeline": ("Pipeline",),
    "result": ("Result",),
    "source": ("Source",),
    "tasks": ("Classification", "LanguageModelling", "NodeClassification", "SkeletonAction", "Task"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Artifact",
    "Benchmark",
    "Builder",
    "Classification",
    "Command",
    "Context",
    "Evaluator",
    "LanguageModelling",
    "Measurement",
    "Method",
    "MethodConfig",
    "NodeClassification",
    "Pipeline",
    "PlanishError",
    "Requirement",
    "Result",
    "Row",
    "SkeletonAction",
    "Source",
    "Task",
    "Tensors",
    "Text",
    "TorchModel",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        return getattr(importlib.import_module(f"planish.{_HOME[name]}"), name)
    raise AttributeError(f"module 'planish' has no attribute {name!r}")
