"""The pipeline stage: hardware for what a compressed model computes, checked against torch bit for bit."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.artifact import write_json
from planish.context import Context
from planish.errors import ArtifactError, DataError, RunError
from planish.model import Architecture, TorchModel
from planish.weights import Counts
from planish_promptv import hooks
from planish_promptv.agents.generate import generate, open_simulator
from planish_promptv.config import PromptvConfig
from planish_promptv.hardware import cells, hardware_tasks
from planish_promptv.types import Task

if TYPE_CHECKING:
    from torch import nn

DESIGNS = "designs.json"


class VerilogDesigns:
    """A folder of designs, each with the bench that it passed."""

    kind = "verilog"
    builder = "verilog"
    tokenizer = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def runtime(self) -> str:
        return "Verilog, Icarus"

    @property
    def designs(self) -> list[dict[str, Any]]:
        """Name, module, description and verdict of each design."""
        found: list[dict[str, Any]] = json.loads((self.folder / DESIGNS).read_text(encoding="utf-8"))
        return found


class VerilogBuilder:
    """Saves and reopens `VerilogDesigns`."""

    def save(self, model: VerilogDesigns, folder: Path) -> Architecture:
        if model.folder.resolve() != folder.resolve():
            shutil.copytree(model.folder, folder, dirs_exist_ok=True)
        return {"designs": [design["name"] for design in model.designs]}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> VerilogDesigns:
        if device == "meta":
            raise ArtifactError(f"{folder}: Verilog has no torch module to look at")
        return VerilogDesigns(folder)

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        """Circuits store no weights."""
        return Counts(0, 0, {})


def apply(model: TorchModel, config: PromptvConfig, ctx: Context) -> VerilogDesigns:
    """Write the circuits of ``model`` with their benches, simulate them, and count cells.

    Raises:
        RunError: a design does not equal the torch reference.
    """
    _finite(model.module)
    tasks = hardware_tasks(model, vectors=config.vectors, seed=ctx.seed)
    designs: list[dict[str, Any]] = []
    figures: dict[str, dict[str, Any]] = {}
    with open_simulator(config) as simulator:
        for number, task in enumerate(tasks):
            ctx.progress(number, len(tasks), task.id)
            code = _code(task, config, ctx, simulator)
            sim = simulator.simulate_sync(task, code)
            if not sim.passed:
                told = (
                    f"{sim.mismatches} of {sim.samples} vectors differ" if sim.samples else sim.status.value
                )
                raise RunError(
                    f"design {task.id!r} is not what torch computes ({told}); nothing is kept of it"
                )
            _write(ctx.out / task.id, task, code)
            designs.append(
                {
                    "name": task.id,
                    "module": task.top_name,
                    "description": task.description,
                    "vectors": sim.samples,
                    "mismatches": sim.mismatches,
                    "notes": list(task.notes),
                }
            )
            figures[task.id] = {
                "vectors": sim.samples,
                "mismatches": sim.mismatches,
                "source": config.generator,
            }
            if config.synthesis:
                figures[task.id]["cells"] = cells(task, code, simulator).as_dict()
                figures[task.id] |= hooks.synthesise(task, code)
    write_json(ctx.out / DESIGNS, designs)
    ctx.facts["designs"] = figures
    ctx.progress(len(tasks), len(tasks), "every design equals torch bit for bit")
    return VerilogDesigns(ctx.out)


def look(model: TorchModel, config: PromptvConfig) -> Iterator[str]:
    """What can be seen wrong without weights, one line each."""
    from torch import nn

    from planish_promptv.hardware import neurons
    from planish_promptv.models.opening import check

    if not neurons(model.module) and not any(isinstance(m, nn.Linear) for m in model.module.modules()):
        yield "the model has no spiking neuron and no linear layer to make a circuit of"
    if config.generator == "agents":
        check(config)


def _code(task: Task, config: PromptvConfig, ctx: Context, simulator: Any) -> str:
    """The design: written by hand, or by agents, whose paid replies survive a kill in the stage's folder."""
    if config.generator == "reference":
        assert task.reference is not None
        return task.reference
    out = ctx.folder / "agents" / task.id
    result = asyncio.run(generate(task, config, simulator=simulator, seed=ctx.seed, out=out))
    if result.code is None or not result.succeeded:
        raise RunError(
            f"design {task.id!r}: the agents ended in {result.state!r} after {result.calls} calls; "
            "try another seed or model"
        )
    ctx.facts.setdefault("agents", {})[task.id] = {
        "calls": result.calls,
        "tokens": result.prompt_tokens + result.completion_tokens,
        "rounds": result.rounds,
    }
    return result.code


def _write(folder: Path, task: Task, code: str) -> None:
    """Design, bench and the bench's data files, in a folder of their own: ``iverilog -g2012 *.v *.sv`` runs there."""
    bench = task.provided_testbench
    assert bench is not None
    folder.mkdir(exist_ok=True)
    files = {f"{task.top_name}.v": code, "tb.sv": bench.text, **task.aux_files, **bench.aux_files}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def _finite(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise DataError(f"parameter {name!r} holds NaN or infinity; a circuit needs numbers")
