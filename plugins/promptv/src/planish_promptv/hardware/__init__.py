"""Hardware for a compressed model: design tasks whose benches hold what torch computed, with designs that pass them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planish.errors import PlanishError
from planish_promptv.hardware import lif, mac
from planish_promptv.hardware.cells import Cells, count
from planish_promptv.hardware.lif import Lif
from planish_promptv.hardware.mac import Layer
from planish_promptv.harness.simulator import Simulator
from planish_promptv.types import Task

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cells", "Layer", "Lif", "cells", "hardware_tasks"]


def hardware_tasks(model: Any, vectors: int = 256, seed: int = 0) -> list[Task]:
    """One task for every distinct LIF neuron and every distinct N:M pattern of the linear layers of ``model``.

    Args:
        model: a torch module, or anything that has one as ``module`` (a planish model opened from an artifact).
        vectors: cycles of each bench.

    Raises:
        PlanishError: the model has neither, or ``vectors`` is below 8.
    """
    if vectors < 8:
        raise PlanishError(f"vectors = {vectors} is below 8")
    module: nn.Module = getattr(model, "module", model)
    tasks = [
        lif.task(neuron, vectors, seed, "lif" if not number else f"lif-{number}")
        for number, neuron in enumerate(dict.fromkeys(neurons(module)))
    ]
    patterns: dict[tuple[int, int], Layer] = {}
    for layer in layers(module):
        patterns.setdefault((layer.n, layer.m), layer)
    tasks += [mac.task(layer, vectors, seed) for layer in patterns.values()]
    if not tasks:
        raise PlanishError(
            "the model has no LIF neuron and no linear layer with N:M sparsity "
            f"({', '.join(f'{n}:{m}' for n, m in mac.PATTERNS)}); prune it first, for instance ace with pattern '2:4'"
        )
    return tasks


def neurons(module: nn.Module) -> list[Lif]:
    """The LIF neurons of a module, in its own order."""
    return [neuron for child in module.modules() if (neuron := lif.from_module(child)) is not None]


def layers(module: nn.Module) -> list[Layer]:
    """The linear layers of a module that hold an N:M pattern, in its own order, in int8."""
    from torch import nn

    found = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear) and (layer := Layer.of(name, child.weight)) is not None:
            found.append(layer)
    return found


def cells(task: Task, code: str, simulator: Simulator) -> Cells:
    """Cell counts of ``code`` for the task's top module."""
    return count(simulator, code, task.top_name)
