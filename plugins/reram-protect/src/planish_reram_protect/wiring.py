"""The protection as a stage of a pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn

from planish.context import Context
from planish.errors import PlanishError
from planish.model import TorchModel
from planish_reram.mapping import mapped_layers, matrix
from planish_reram_protect import data, plan
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.coupling import couple
from planish_reram_protect.gates import Gated, count_gates
from planish_reram_protect.model import CellLayout, ProtectedModel
from planish_reram_protect.search import Batches, Found, Schedule, search

_SMALL = 10_000_000  # weights up to which a network is trained as a tiny one
_SEARCH_EPOCHS = 5  # in which an average gate falls from its start to zero, when gate_lr is not given
_OBSERVED = 4  # batches that show the size of activations


def apply(model: TorchModel, config: ReramProtectConfig, ctx: Context) -> ProtectedModel:
    """Prune with gates, share out and place the copies; every epoch is kept as a unit."""
    layers = mapped_layers(model.module, config.skip)
    for name, layer in layers.items():
        if not bool(matrix(layer).isfinite().all()):
            raise PlanishError(f"reram-protect: the weight of {name} holds NaN or infinity")
    if config.embed == "lsb":
        protection, facts = plan.protect_in_place(shapes_of(model.module, config.skip), config)
    else:
        batches = data.training(ctx.need_task(), model, config.batch, config.window, config.epoch_steps)
        gated, found = _prune(model, batches, config, ctx)
        seen = [inputs for inputs, _ in batches(ctx.generator("importance"))[:_OBSERVED]]
        weights = {layer.name: matrix(layers[layer.name]) for layer in gated}
        kept = plan.kept(gated, found.mask, weights, _rms(model, weights, seen))
        protection, facts = plan.protect(kept, config)
        facts |= {
            "sparsity when the search stopped": found.searched,
            "steps of the search": found.steps,
            "target reached by": "the search" if found.reached else "rounding after the last epoch",
            "kept": {
                name: f"{len(part.rows)}/{part.shape[0]} rows, {len(part.columns)}/{part.shape[1]} columns"
                for name, part in kept.items()
            },
        }
    ctx.facts.update(facts)
    cells = {"before": "cells before", "kept": "cells after", "copies": "cells used by copies"}
    bars = [(label, float(facts[key]), f"{facts[key]:,}") for label, key in cells.items()]
    ctx.chart("Cells of the protected layers", bars)
    layout = CellLayout(
        weight_bits=config.weight_bits,
        cell_bits=config.cell_bits,
        mapping=config.mapping,
        tile=list(config.tile),
    )
    return ProtectedModel(model, protection, layout)


def look(model: TorchModel, config: ReramProtectConfig) -> Iterator[str]:
    """What can be seen wrong from the shapes alone, one line each."""
    try:
        shapes = shapes_of(model.module, config.skip)
    except PlanishError as error:
        yield str(error)
        return
    if not shapes:
        yield f"{type(model.module).__name__} has no linear or convolution layer that goes on a crossbar"
    if config.embed == "lsb":
        return
    for name, shape in shapes.items():
        if min(shape) < config.multiple:
            yield (
                f"{name} is {shape[0]} x {shape[1]}, too small for multiple = {config.multiple}: "
                "it would keep less than one multiple of rows or columns"
            )


def shapes_of(module: nn.Module, skip: Sequence[str] = ()) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix that goes on a crossbar, by path."""
    shapes = {name: matrix(layer).shape for name, layer in mapped_layers(module, skip).items()}
    return {name: (shape[0], shape[1]) for name, shape in shapes.items()}


def _rms(model: TorchModel, names: Iterable[str], batches: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """See `data.input_rms`; the model is in evaluation mode."""

    def run() -> None:
        model.module.eval()
        for batch in batches:
            model(batch)

    return data.input_rms(model.module, names, run)


def _prune(
    model: TorchModel, batches: Batches, config: ReramProtectConfig, ctx: Context
) -> tuple[list[Gated], Found]:
    """Find the gates of all layers that run, and train; the module computes in float32 meanwhile."""
    epoch = batches(ctx.generator("order"))
    shapes = shapes_of(model.module, config.skip)
    order = list(_rms(model, shapes, [epoch[0][0]]))
    if not order:
        raise PlanishError("reram-protect: no layer that goes on a crossbar runs in the model's forward pass")
    run = {name: shape for name, shape in shapes.items() if name in order}
    gated = couple(model.module, run, last=order[-1])
    kinds = {p.dtype for p in model.module.parameters() if p.is_floating_point()}
    model.module.float()
    count = sum(p.numel() for p in model.module.parameters())
    schedule = Schedule(
        target=config.goal,
        lr=config.lr or (1e-3 if count <= _SMALL else 2e-5),
        gate_lr=config.gate_rate(count_gates(gated), _SEARCH_EPOCHS * len(epoch)),
        gate_start=config.gate_start,
        penalty=config.penalty,
        penalty_gap=config.penalty_gap,
        gate_epochs=config.gate_epochs,
        tune_epochs=config.tune_epochs,
        multiple=config.multiple,
        clip=config.clip,
    )
    loss = data.losses(ctx.need_task(), model)
    found = search(model.module, gated, batches, loss, schedule, ctx.generator, ctx.unit, ctx.progress)
    if len(kinds) == 1:
        model.module.to(kinds.pop())
    return gated, found
