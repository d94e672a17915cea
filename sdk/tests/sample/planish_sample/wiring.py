"""`sound` is right; every other function is `sound` with one mistake."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish.errors import PlanishError
from planish.model import TorchModel
from planish_sdk.blocks import find_blocks, weight_views


def sound(
    model: Any,
    config: Any,
    context: Any,
    *,
    share: float | None = None,
    finite: bool = True,
    units: bool = True,
    restore: bool = True,
) -> Any:
    path, blocks = find_blocks(model.module)
    for number, block in enumerate(blocks):
        unit = context.unit(f"{path}.{number}")
        views = weight_views(block)
        if units and (saved := unit.load()):
            if restore:
                for name, view in views.items():
                    view.read().copy_(saved[name])
            continue
        for name, view in views.items():
            weight = view.read()
            if finite and not weight.isfinite().all():
                raise PlanishError(f"{path}.{number}.{name}: holds NaN or infinity")
            count = int((config.sparsity if share is None else share) * weight.shape[1])
            chosen = weight.abs().argsort(dim=1, stable=True)[:, :count]
            view.zero_(torch.zeros_like(weight, dtype=torch.bool).scatter_(1, chosen, True))
        if units:
            unit.save({name: view.read() for name, view in views.items()})
    return model


def check(model: Any, config: Any) -> list[str]:
    find_blocks(model.module)
    return []


def noop(model: Any, config: Any, context: Any) -> Any:
    return model


def timid(model: Any, config: Any, context: Any) -> Any:
    return sound(model, config, context, share=config.sparsity / 2)


def unseeded(model: Any, config: Any, context: Any) -> Any:
    draw = torch.Generator().manual_seed(int.from_bytes(os.urandom(7), "little"))
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw), alpha=0.01)
    return sound(model, config, context)


def litters(model: Any, config: Any, context: Any) -> Any:
    tempfile.mkstemp(prefix="left-over-")
    Path("scores.json").write_text("{}")
    return sound(model, config, context)


def homesick(model: Any, config: Any, context: Any) -> Any:
    cache = Path.home() / ".cache" / "sample"
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "scores.json").write_text("{}")
    return sound(model, config, context)


def vandal(model: Any, config: Any, context: Any) -> Any:
    away = Path("/var/tmp") / f"planish-sample-{os.getpid()}"  # beyond every folder that is compared
    away.write_text("{}")
    away.unlink()
    return sound(model, config, context)


def pickles(model: Any, config: Any, context: Any) -> Any:
    torch.save({"scores": torch.ones(3)}, context.out / "scores.json")
    return sound(model, config, context)


def carries_nan(model: Any, config: Any, context: Any) -> Any:
    return sound(model, config, context, finite=False)


def forgetful(model: Any, config: Any, context: Any) -> Any:
    return sound(model, config, context, units=False)


def misremembers(model: Any, config: Any, context: Any) -> Any:
    return sound(model, config, context, restore=False)


def volatile(model: Any, config: Any, context: Any) -> Any:
    """Changes the live model in a way that no file holds."""
    sound(model, config, context)
    model.module.lm_head.register_forward_hook(lambda module, given, output: 1.5 * output)
    return model


def unties(model: Any, config: Any, context: Any) -> Any:
    sound(model, config, context)
    head = model.module.lm_head
    head.weight = nn.Parameter(head.weight.detach().clone())
    return model


def overflows(model: Any, config: Any, context: Any) -> Any:
    sound(model, config, context)
    with torch.no_grad():
        model.module.lm_head.weight.fill_(3e38)
    return model


def stateful(model: Any, config: Any, context: Any) -> Any:
    """A second stage does more where the first one ran in the same process."""
    share = 0.75 if getattr(model.module, "seen", False) else config.sparsity
    model.module.seen = True
    return sound(model, config, context, share=share)


def crashes(model: Any, config: Any, context: Any) -> Any:
    raise RuntimeError("out of luck")


def speechless(model: Any, config: Any, context: Any) -> Any:
    sound(model, config, context)
    model.tokenizer = None
    return model


class Anonymous(TorchModel):
    runtime = None  # type: ignore[assignment]


def anonymous(model: Any, config: Any, context: Any) -> Any:
    sound(model, config, context)
    return Anonymous(model.module, model.builder, model.tokenizer, model.storage, model.patches)


def wanders(model: Any, config: Any, context: Any) -> Any:
    os.chdir(context.folder)
    return sound(model, config, context)
