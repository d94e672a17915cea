"""MaxK as a stage of a pipeline: rewrite, train on, and measure accuracy, epoch time and activations on both sides."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from planish import measure, timing
from planish.context import Context
from planish.errors import DataError, PlanishError
from planish.model import TorchModel
from planish.tasks import NodeClassification
from planish_maxk import sites
from planish_maxk.builder import MaxKModel
from planish_maxk.config import MaxKConfig
from planish_maxk.rewrite import NOT_FOUND, Rewritten, disagreement, rewrite
from planish_maxk.training import Training, saved_bytes

UNIT = 20
"""Epochs between two saved states."""


def apply(model: TorchModel, config: MaxKConfig, ctx: Context) -> MaxKModel:
    """Rewrite ``model``, train it on the task's graph, and report what changed. A rewritten model gets another k."""
    task = ctx.need_task()
    if not isinstance(task, NodeClassification):
        raise DataError(
            f"task {task.kind}: maxk rewrites graph networks; it needs a node-classification task"
        )
    inner = model.unwrapped() if isinstance(model, MaxKModel) else model
    _finite(inner)
    _suits(task, model, config)
    before = copy.deepcopy(model.module)  # its weights are those that are trained below
    batch = {name: value.to(inner.device) for name, value in task.example(model).items()}
    made = MaxKModel(rewrite(inner.module, config.k, batch, config.recompute), inner.builder, inner)
    facts: dict[str, Any] = {
        "activations": dict(zip(made.module.places, (m.width for m in made.module.activations), strict=True)),
        "difference with ReLU kept": disagreement(made.module, batch),
        "accuracy before": _accuracy(task, model),
        "accuracy rewritten, untrained": _accuracy(task, made),
    }
    _train(made, task, batch, config, ctx)
    facts["accuracy after training"] = _accuracy(task, made)
    facts |= _costs(before, made.module, task, batch, config, ctx)
    ctx.facts.update(facts)
    _draw(facts, ctx)
    return made


def look(model: TorchModel, config: MaxKConfig) -> Iterator[str]:
    """What can be seen wrong without weights: nothing to replace, or k above a width that is known."""
    net = model.module.net if isinstance(model.module, Rewritten) else model.module
    traced, _ = sites.trace(net)
    found = list(sites.find(traced))
    if not found:
        yield NOT_FOUND
    for site in found:
        if site.width is not None and config.k > site.width:
            yield f"k = {config.k}: the activation at {site.relu.name!r} is {site.width} wide; valid: 1 to {site.width}"


def _finite(model: TorchModel) -> None:
    for name, tensor in model.module.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise PlanishError(f"maxk: weight {name!r} holds NaN or infinity")


def _suits(task: NodeClassification, model: TorchModel, config: MaxKConfig) -> None:
    """Whether the task's graph is one that this network can be trained on."""
    x, y, *masks = task.data.read("x", "y", "train_mask", "val_mask")
    if not bool(x.isfinite().all()):
        raise DataError("maxk: x holds NaN or infinity")
    for name, tensor in zip(("y", "train_mask", "val_mask"), (y, *masks), strict=True):
        if tensor.shape != x.shape[:1]:
            raise DataError(
                f"maxk: {name} has the shape {list(tensor.shape)}; valid: [{len(x)}], one a row of x"
            )
    if bool((y != y.long()).any()):
        raise DataError("maxk: y holds fractions; valid: whole numbers, one label a node")
    chosen = [mask.bool() & (y >= 0) for mask in masks]
    if not bool(chosen[0].any()):
        raise DataError("maxk: train_mask picks no node with a label")
    if config.keep == "best" and not bool(chosen[1].any()):
        raise DataError(
            "maxk: val_mask picks no node with a label, which keep = 'best' needs; valid: keep = 'last'"
        )
    if config.epochs and not any(p.requires_grad for p in model.module.parameters()):
        raise PlanishError("maxk: no weight of the network requires a gradient; valid: epochs = 0")
    try:
        classes = model(task.example(model)).shape[-1]
    except (RuntimeError, TypeError) as error:
        text = " ".join(str(error).split())
        raise PlanishError(
            f"{type(model.module).__name__}: it does not take x and edge_index ({text[:160]})"
        ) from None
    if int(y.max()) >= classes:
        raise DataError(
            f"maxk: y holds the label {int(y.max())}; valid: below {classes}, the network's classes"
        )


def _train(
    model: MaxKModel, task: NodeClassification, batch: dict[str, Any], config: MaxKConfig, ctx: Context
) -> None:
    """Epochs in units of `UNIT`; each keeps the whole state of the training."""
    training = _training(model.module, task, batch, config)
    for first in range(0, config.epochs, UNIT):
        last = min(first + UNIT, config.epochs)
        unit = ctx.unit(f"epochs {first} to {last}")
        if (saved := unit.load()) is not None:
            training.resume(saved)
        else:
            for number in range(first, last):
                loss = training.epoch(ctx.generator(f"epoch {number}").initial_seed())
                if loss != loss:
                    half = any(p.dtype == torch.float16 for p in model.module.parameters())
                    cure = (
                        "float16 weights do not train; valid: others" if half else f"lower lr = {config.lr}"
                    )
                    raise PlanishError(f"maxk: the loss is NaN in epoch {number}; {cure}")
            unit.save(training.state())
        ctx.progress(last, config.epochs, "epochs")
    training.finish(config.keep)


def _training(
    module: torch.nn.Module, task: NodeClassification, batch: dict[str, Any], config: MaxKConfig
) -> Training:
    y, train, validation = (t.to(batch["x"].device) for t in task.data.read("y", "train_mask", "val_mask"))
    return Training(
        module,
        batch,
        y.long(),
        train.bool(),
        validation.bool(),
        lr=config.lr,
        weight_decay=config.weight_decay,
    )


def _costs(
    before: torch.nn.Module,
    after: torch.nn.Module,
    task: NodeClassification,
    batch: dict[str, Any],
    config: MaxKConfig,
    ctx: Context,
) -> dict[str, Any]:
    """Bytes that autograd saves, and seconds a training epoch in alternation; on copies, so that nothing is trained."""
    nets = {"before": copy.deepcopy(before), "after": copy.deepcopy(after)}
    facts: dict[str, Any] = {
        f"saved activations {k}, bytes": saved_bytes(net, batch) for k, net in nets.items()
    }
    if config.timing_rounds:
        with torch.random.fork_rng(devices=[batch["x"].device] if batch["x"].is_cuda else []):
            taken = timing.interleaved(
                {name: _training(net, task, batch, config).step for name, net in nets.items()},
                warmup=2,
                rounds=config.timing_rounds,
                device=ctx.device,
            )
        facts |= {f"epoch {name}, seconds": taken[name].seconds.median for name in nets}
        facts["epoch time before over after"] = list(timing.ratio(taken["before"], taken["after"]))
        facts["epoch time on"] = measure.device_name(ctx.device)
    return facts


def _accuracy(task: NodeClassification, model: TorchModel) -> float:
    """Test accuracy in per cent."""
    return next(m.value for m in task.evaluate(model) if m.name == "accuracy")


def _draw(facts: dict[str, Any], ctx: Context) -> None:
    names = {
        "accuracy before": "before",
        "accuracy rewritten, untrained": "rewritten",
        "accuracy after training": "trained",
    }
    ctx.chart(
        "Test accuracy, %, measured in this run",
        [(n, facts[k], f"{facts[k]:.2f} %") for k, n in names.items()],
    )
    if "epoch before, seconds" in facts:
        bars = [(n, 1e3 * facts[f"epoch {n}, seconds"]) for n in ("before", "after")]
        ctx.chart("Training epoch, ms, median in alternation", [(n, v, f"{v:.2f} ms") for n, v in bars])
    bars = [(n, facts[f"saved activations {n}, bytes"] / 1e6) for n in ("before", "after")]
    ctx.chart("Saved for the backward pass, MB", [(n, v, f"{v:.2f} MB") for n, v in bars])
