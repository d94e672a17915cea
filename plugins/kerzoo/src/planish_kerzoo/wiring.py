"""KerZOO as a stage of a pipeline: batches of a task, a log in the stage's folder, resumption from it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from planish import measure
from planish.context import Context
from planish.errors import DataError, RunError
from planish.model import TorchModel
from planish.tasks import Classification, LanguageModelling, Task
from planish_kerzoo.adapter import add_lora, merge_lora
from planish_kerzoo.capture import CapturedLoss
from planish_kerzoo.config import KerZOOConfig, Options
from planish_kerzoo.log import RunLog, average, replay, share_log
from planish_kerzoo.optimizer import KerZOO

LOG = "kerzoo.log"
Batches = Callable[[int], tuple[dict[str, Tensor], Tensor]]
"""number of a step -> inputs and target of its batch, the same for the same number."""


def apply(model: TorchModel, config: KerZOOConfig, ctx: Context) -> TorchModel:
    """Fine-tune ``model`` in place. A killed run is rebuilt from its log and goes on with the next step."""
    task = ctx.need_task()
    _refuse_nan(model.module)
    batches = make_batches(task, model, config, ctx)
    module = model.module
    trainable = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    trained = add_lora(module, config.rank, config.targets, ctx.seed) if config.adapter == "lora" else module
    trained.eval()
    share_log(ctx.folder / LOG)
    log = RunLog(ctx.folder / LOG)
    options = config.model_dump(include=set(Options.model_fields))
    optimizer = KerZOO(trained, seed=ctx.seed, defer=True, log=log, **options)
    resumed = replay(log, optimizer)
    live = TorchModel(trained, model.builder, model.tokenizer)
    loss = _loss(task, live, config.microbatches)
    captured = CapturedLoss(trained, loss)
    losses = []
    for step in range(config.steps):
        if step >= resumed:
            batch, target = batches(step)
            plain = functools.partial(loss, target, **batch)
            losses.append(optimizer.step(captured.bind(target, **batch) if config.graph else plain))
        if (step + 1) % config.unit == 0 or step + 1 == config.steps:
            _mark(ctx, optimizer, step + 1, fresh=step >= resumed)
            ctx.progress(step + 1, config.steps, f"{optimizer.forwards} forward passes")
    optimizer.finish()
    if config.average:
        average(log, optimizer, config.average)
    log.close()
    _check_end(optimizer, config)
    if config.adapter == "lora":
        model.module = merge_lora(trained, trainable)
    ctx.facts.update(_facts(optimizer, log, model, config, losses))
    ctx.facts["CUDA graphs"] = captured.graphs
    return model


def look(model: TorchModel, config: KerZOOConfig) -> Iterator[str]:
    """What can be seen wrong from the shapes alone, one line each."""
    if not any(p.is_floating_point() and p.requires_grad for p in model.module.parameters()):
        yield f"{type(model.module).__name__} has no parameter to train: none is floating-point, or all are frozen"
    if config.adapter == "lora":
        names = {
            name.rpartition(".")[2] for name, part in model.module.named_modules() if hasattr(part, "weight")
        }
        if not names & set(config.targets):
            yield f"targets = {list(config.targets)}: no layer has such a name (layers: {', '.join(sorted(names))})"


def make_batches(task: Task, model: TorchModel, config: KerZOOConfig, ctx: Context) -> Batches:
    """Batches drawn with replacement, each from a generator of its own: any step can be made again.

    Raises DataError for other kinds of task, and for fewer tokens than one sample or no samples at all.
    """
    if isinstance(task, LanguageModelling):
        ids = task.tokens("calibration", model.tokenizer)
        last = len(ids) - config.length
        if last < 0:
            raise DataError(
                f"task {task.kind}: {len(ids)} tokens to train on, fewer than length = {config.length}"
            )

        def windows(step: int) -> tuple[dict[str, Tensor], Tensor]:
            start = torch.randint(last + 1, (config.batch,), generator=ctx.generator(f"batch {step}"))
            rows = torch.stack([ids[s : s + config.length] for s in start.tolist()]).to(ctx.device)
            return {"input_ids": rows}, rows

        return windows
    if isinstance(task, Classification):
        x, y = task.data.read("train_x", "train_y")
        if len(x) == 0:
            raise DataError(f"task {task.kind}: train_x holds no samples")

        def samples(step: int) -> tuple[dict[str, Tensor], Tensor]:
            rows = torch.randint(len(x), (config.batch,), generator=ctx.generator(f"batch {step}"))
            return {task.input: x[rows].to(ctx.device)}, y[rows].to(ctx.device)

        return samples
    raise DataError(f"task {task.kind}: kerzoo trains on language-modelling and on classification tasks")


def _loss(task: Task, model: TorchModel, parts: int) -> Callable[..., Tensor]:
    """Target and inputs of a batch -> the losses of this process's parts of it."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    if parts % world:
        raise RunError(f"microbatches = {parts} cannot be spread evenly over {world} processes")
    mine = range(rank * parts // world, (rank + 1) * parts // world)

    def losses(target: Tensor, /, **batch: Tensor) -> Tensor:
        size = len(target) // parts
        pieces = [slice(i * size, (i + 1) * size) for i in mine]
        return torch.stack(
            [
                task.loss(model, {name: value[piece] for name, value in batch.items()}, target[piece])
                for piece in pieces
            ]
        )

    return losses


def _mark(ctx: Context, optimizer: KerZOO, step: int, fresh: bool) -> None:
    """Save the unit that ends with a step: its place in the log, which holds everything else."""
    unit = ctx.unit(f"steps to {step}")
    if fresh or not unit.done:
        optimizer.finish()
        unit.save({"steps": torch.tensor(step)})


def _refuse_nan(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.isfinite().all()):
            raise DataError(f"parameter {name!r} holds NaN or infinity: every loss would be NaN")


def _check_end(optimizer: KerZOO, config: KerZOOConfig) -> None:
    if optimizer.skipped == config.steps:
        raise RunError(
            f"loss is not finite in all {config.steps} steps: nothing was trained; lower eps, or look at the data"
        )


def _facts(
    optimizer: KerZOO, log: RunLog, model: TorchModel, config: KerZOOConfig, losses: list[Tensor]
) -> dict[str, Any]:
    checkpoint = sum(p.numel() * p.element_size() for p in model.module.parameters())
    tenth = max(1, len(losses) // 10)
    return {
        "steps": config.steps,
        "forward passes": optimizer.forwards,
        "sweeps": optimizer.sweeps,
        "skipped steps": optimizer.skipped,
        "trained parameters": sum(work.segment.parameter.numel() for work in optimizer.works),
        "log": LOG,
        "log bytes": log.bytes,
        "checkpoint bytes": checkpoint,
        "loss of the first tenth of steps": float(torch.stack(losses[:tenth]).mean()) if losses else None,
        "loss of the last tenth of steps": float(torch.stack(losses[-tenth:]).mean()) if losses else None,
        "device": measure.device_name(str(optimizer.works[0].segment.local().device)),
    }
