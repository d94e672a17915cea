"""The backend as a stage of a pipeline: a model onto crossbars, its converters calibrated, its cost counted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from planish.context import Context
from planish.errors import DataError, PlanishError
from planish.model import Batch, TorchModel
from planish.tasks import Classification, LanguageModelling, Task
from planish_reram.config import ReramConfig
from planish_reram.constants import table
from planish_reram.converters import RangeWarning
from planish_reram.energy import Cost, Footprint, cost, footprint
from planish_reram.mapfile import read_maps
from planish_reram.mapping import mapped_layers
from planish_reram.model import ReramModel, chip_seeds, digital_layers
from planish_reram.network import calibrate, crossbars
from planish_sdk.calibrate import batches, windows


def look(model: TorchModel, config: ReramConfig) -> Iterator[str]:
    """Problems that shapes tell: nothing to map, a layer that cannot be, a table or map that cannot be read."""
    try:
        if not mapped_layers(model.module, digital_layers(model.module, config)):
            yield "no linear layer or convolution to put onto crossbars"
        table(config.constants)
        _given_maps(config)
    except PlanishError as error:
        yield str(error)


def apply(model: Any, config: ReramConfig, ctx: Context) -> Any:
    """Put the model onto the first chip, measure converter ranges, and count cells, conversions, energy and area."""
    constants, maps = table(config.constants), _given_maps(config)
    seeds = chip_seeds(ctx.seed, config.chips)
    if model.kind == "onnx":
        from planish_reram.graph import OnnxOnCrossbars

        program: Any = OnnxOnCrossbars(model.folder, config, seeds, maps)
        footprints = program.footprints()
        ctx.facts["an inference here is"] = (
            "one input vector a layer: a graph does not tell how many there are"
        )
        left = program.left_digital()
        ctx.facts["weights on crossbars"] = sum(matrix.numel() for matrix in program.matrices.values())
        ctx.facts["weights left digital"] = sum(left.values())
        ctx.facts["left digital"] = list(left)
    else:
        program = ReramModel(model, config, seeds, maps or None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _calibrate(program, config, ctx)
        for found_warning in caught:
            if found_warning.category is RangeWarning:
                ctx.facts["warning"] = str(found_warning.message)
            warnings.warn(found_warning.message, found_warning.category, stacklevel=2)
        footprints = _footprints(program, ctx.task)
        _digital(program, ctx)
    ctx.progress(1, 1, "on crossbars")
    found = cost(footprints, constants, config.tile, config.converters.adc_bits)
    _report(ctx, program, config, found)
    return program


def _calibrate(program: ReramModel, config: ReramConfig, ctx: Context) -> None:
    """Ranges from the task's calibration data; an ADC that spans the largest sum needs none, and warns when it is set."""
    if config.converters.calibrates:
        data = calibration_batches(ctx.need_task(), program.inner, config.calibration_samples, ctx.seed)
        calibrate(program.module, data, program)
    for layer in crossbars(program.module).values():
        if not layer.exact:
            layer.sliced()


def calibration_batches(task: Task, model: TorchModel, samples: int, seed: int) -> list[Batch]:
    """Inputs that may be looked at: text windows, training samples, or the whole graph; never the evaluation split."""
    if isinstance(task, LanguageModelling):
        tokens = task.tokens("calibration", model.tokenizer)
        rows = windows(tokens, min(task.length, len(tokens)), samples, seed)
        return [{"input_ids": part} for part in batches(rows, 8)]
    if isinstance(task, Classification):
        found: list[Batch] = []
        taken = 0
        for batch, labels in task.batches("train"):
            found.append({name: value[: samples - taken] for name, value in batch.items()})
            taken += len(labels)
            if taken >= samples:
                break
        if not found:
            raise DataError(f"task {task.kind}: no training sample to calibrate converters with")
        return found
    return [task.example(model)]


def _footprints(program: ReramModel, task: Task | None) -> dict[str, tuple[Footprint, int]]:
    """Footprint of each layer, and its input vectors for one sample of the task (one where there is no task)."""
    vectors = dict.fromkeys(crossbars(program.module), 0)

    def count(name: str) -> Any:
        def hook(layer: Any, arguments: tuple[Tensor, ...]) -> None:
            vectors[name] += layer.vectors(arguments[0]).shape[:-1].numel()

        return hook

    if task is None:
        vectors = dict.fromkeys(vectors, 1)
    else:
        hooks = [
            layer.register_forward_pre_hook(count(name)) for name, layer in crossbars(program.module).items()
        ]
        try:
            program(task.example(program, 1))
        finally:
            for hook in hooks:
                hook.remove()
            for layer in crossbars(program.module).values():
                layer.rewind()
    return {
        name: (
            footprint(
                (layer.out_features, layer.in_features), layer.setup.physics.layout, layer.setup.physics.tile,
                layer.setup.converters, layer.protection,
            ),
            vectors[name],
        )
        for name, layer in crossbars(program.module).items()
    }  # fmt: skip


def _digital(program: ReramModel, ctx: Context) -> None:
    """Tell which matrices are not on crossbars: tables, tied heads, fused experts, what the options left out."""
    mapped = {id(layer.weight) for layer in crossbars(program.module).values()}
    left = {
        name: weight.numel()
        for name, weight in program.module.named_parameters()
        if weight.dim() >= 2 and id(weight) not in mapped
    }
    ctx.facts["weights on crossbars"] = sum(
        layer.weight.numel() for layer in crossbars(program.module).values()
    )
    ctx.facts["weights left digital"] = sum(left.values())
    ctx.facts["left digital"] = list(left)


def _report(ctx: Context, program: Any, config: ReramConfig, found: Cost) -> None:
    """Headline figures as single facts, and the energy by part as a chart; the constants' name stands in each."""
    rates, name = config.rates, found.table
    ctx.facts |= {
        "engine": "simulated crossbars; no hardware was used",
        "path": "one product with the composed weight" if program.fast else "tile by tile, slice by slice",
        "layers on crossbars": len(program.layers),
        "p_hrs": rates.p_hrs,
        "p_lrs": rates.p_lrs,
        "p_row": rates.p_row,
        "p_col": rates.p_col,
        "chips": config.chips,
        "crossbars": found.crossbars,
        "cells": found.cells,
        "cells of copies": found.copied_cells,
        "conversions an inference": found.conversions,
        "conversions of copies an inference": found.copied_conversions,
        f"energy an inference, constants {name} (nJ)": found.total / 1e3,
        f"share of the ADC, constants {name} (%)": 100 * found.adc_share,
        f"latency an inference, constants {name} (us)": found.nanoseconds / 1e3,
        f"area, constants {name} (mm2)": found.square_millimetres,
    }
    if found.write_microjoules is not None:
        ctx.facts[f"programming, constants {name} (uJ)"] = found.write_microjoules
    if config.converters.adc_bits is None:
        ctx.facts["energy assumes"] = "the ADC of the table; the accuracy was simulated with an ideal one"
    ctx.facts["constants"] = {"name": name, "source": table(config.constants).source}
    ctx.chart(
        f"energy of one inference by part (nJ, constants: {name})",
        [
            (
                part,
                value / 1e3,
                f"{value / 1e3:.3g} nJ, {100 * value / found.total:.1f} %" if found.total else "0",
            )
            for part, value in found.picojoules.items()
        ],
    )


def _given_maps(config: ReramConfig) -> dict[str, list[Tensor]]:
    if config.fault_map is None:
        return {}
    path = Path(config.fault_map)
    if not path.is_file():
        raise DataError(f"fault_map = {config.fault_map!r}: no such file")
    return read_maps(path)
