from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch

from planish import Context, Row, TorchModel
from planish_fake.config import JitterConfig, ZeroConfig
from planish_fake.models import Packed


def _die(place: str) -> None:
    """As the kernel's out-of-memory killer would, at the place that the environment names."""
    if os.environ.get("FAKE_KILL") == place:
        os.kill(os.getpid(), signal.SIGKILL)


def zero(model: TorchModel, config: ZeroConfig, context: Context) -> TorchModel:
    chosen = model.module.layers if config.layers == "all" else model.module.layers[:1]
    zeros = 0
    for number, layer in enumerate(chosen):
        _die(f"zero:{number}")
        unit = context.unit(f"layer {number}")
        done = unit.load()
        if done is None:
            with torch.no_grad():
                flat = layer.weight.flatten()
                flat[flat.abs().argsort()[: int(config.sparsity * flat.numel())]] = 0
            unit.save({"weight": layer.weight}, zeros=int((layer.weight == 0).sum()))
        else:
            layer.weight.data.copy_(done["weight"])
        zeros += unit.facts["zeros"]
        context.progress(number + 1, len(chosen), f"layer {number}")
    context.facts["zeros"] = zeros
    context.chart("zeros written", [("all layers", zeros, f"{zeros} zeros")])
    return model


def look(model: TorchModel, config: ZeroConfig) -> Iterator[str]:
    if all(layer.weight.device.type == "meta" for layer in model.module.layers) and config.label == "bad":
        yield "no layer matches label 'bad'"


def jitter(model: TorchModel, config: JitterConfig, context: Context) -> TorchModel:
    model.module.train()
    context.need_task()
    for number, layer in enumerate(model.module.layers):
        _die(f"jitter:{number}")
        unit = context.unit(f"layer/{number}")
        done = unit.load()
        if done is None:
            noise = torch.randn(layer.weight.shape, generator=context.generator(f"layer {number}"))
            layer.weight.data += config.scale * noise.to(layer.weight.device)
            unit.save({"weight": layer.weight})
        else:
            layer.weight.data.copy_(done["weight"])
    return model


def fail(model: TorchModel, config: Any, context: Context) -> TorchModel:
    context.unit("first").save({"x": torch.zeros(1)})
    if os.environ.get("FAKE_FAIL") == "no":
        return model
    raise ZeroDivisionError("half-way")


def same(model: TorchModel, config: Any, context: Context) -> TorchModel:
    return model


def pack(model: TorchModel, config: Any, context: Context) -> Packed:
    return Packed(model.module.state_dict())


def duel(quick: bool) -> Iterator[Row]:
    yield Row("latency", 2.0, "ms", "peer", 4.0, ("<=", 0.6), "CPU", f"bench duel quick={quick}", spread=0.5)
    yield Row("accuracy", 80.0, "%", "peer", 100.0, (">=", 0.9), "CPU", "bench duel")
    yield Row("size", 1.0, "MB", "peer", 1.0, None, "CPU", "bench duel")
