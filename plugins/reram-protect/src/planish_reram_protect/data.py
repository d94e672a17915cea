"""Training batches of a task, and what they show of a network: execution order and the size of every layer's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from planish.errors import DataError
from planish.model import TorchModel
from planish.tasks import Classification, LanguageModelling, Task
from planish_reram_protect.search import Batches, Loss

Batch = tuple[dict[str, Tensor], Tensor]


def training(task: Task, model: TorchModel, batch: int, window: int, steps: int | None) -> Batches:
    """Batches of (inputs, target) of one epoch, in an order that the generator decides.

    Raises:
        DataError: the task is of another kind, or its text is shorter than a window.
    """
    if isinstance(task, Classification):
        x, target = task.data.read("train_x", "train_y")
        inputs = {task.input: x}
    elif isinstance(task, LanguageModelling):
        ids = task.tokens("calibration", model.tokenizer)
        if len(ids) < window:
            raise DataError(
                f"task {task.kind}: {len(ids)} tokens of calibration text, fewer than window = {window}"
            )
        target = ids[: len(ids) // window * window].view(-1, window)
        inputs = {"input_ids": target}
    else:
        raise DataError(
            f"task {task.kind}: reram-protect trains its gates on classification or language-modelling tasks"
        )

    def epoch(generator: torch.Generator) -> Sequence[Batch]:
        order = torch.randperm(len(target), generator=generator).split(batch)[:steps]
        return [({name: value[rows] for name, value in inputs.items()}, target[rows]) for rows in order]

    return epoch


def losses(task: Task, model: TorchModel) -> Loss:
    """The task's loss of one batch, computed where the model is."""

    def loss(batch: Batch) -> Tensor:
        inputs, target = batch
        device = model.device
        return task.loss(model, {name: value.to(device) for name, value in inputs.items()}, target.to(device))

    return loss


def input_rms(module: nn.Module, names: Iterable[str], run: Callable[[], Any]) -> dict[str, float]:
    """RMS of the input of every named layer while ``run`` uses the module, in the order in which the layers first run.

    Layers that do not run are absent.
    """
    energy: dict[str, Tensor] = {}
    values: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            square = inputs[0].detach().double().square().sum()
            energy[name] = energy.get(name, torch.zeros_like(square)) + square
            values[name] = values.get(name, 0) + inputs[0].numel()

        return hook

    handles = [module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: float((total / values[name]).sqrt()) for name, total in energy.items()}
