"""``planish bench reram-accuracy``: a classifier of digits on ten chips a setting, beside the same network without faults.

An MLP 64-256-128-10 on 8 x 8 images, every matrix on crossbars, biases digital, ideal converters.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from planish import measure
from planish.bench import Row
from planish.errors import PlanishError
from planish.source import open_source
from planish.tasks import Classification
from planish_reram.chip import Physics
from planish_reram.layers import Setup
from planish_reram.network import on_chips, program_chips, to_crossbars
from planish_reram.protection import LayerProtection
from planish_reram.slicing import Layout
from planish_reram.specs import Converters, FaultRates, preset

COMMAND = "planish bench reram-accuracy"
RATES = {
    "1.75 / 9.04 %": preset("march_test"),
    "9.04 / 1.75 %": preset("march_test_swapped"),
    "1 / 1 %": FaultRates(0.01, 0.01),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "offset, 2-bit cells": {},
    "offset, 1-bit cells": {"cell_bits": 1},
    "offset, 4-bit cells": {"cell_bits": 4},
    "differential, 2-bit cells": {"mapping": "differential"},
    "offset, a scale a row": {"scope": "row"},
    "offset, clipped at 99.5 %": {"percentile": 99.5},
    "differential, a scale a row": {"mapping": "differential", "scope": "row"},
    "offset, bias correction": {"corrected": True},
}


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Accuracy in per cent, mean over the chips with its standard deviation; ``quick`` takes three chips and rates of 1 %."""
    net, x, y = _trained()
    chips = 3 if quick else 10
    for rate, rates in list(RATES.items())[-1 if quick else 0 :]:
        for name, options in SETTINGS.items():
            perfect = accuracies(net, x, y, FaultRates(), 1, **options)[0]
            found = accuracies(net, x, y, rates, chips, **options)
            yield Row(
                f"accuracy, {name}, HRS / LRS {rate}, {chips} chips, worst {min(found):.1f} %",
                statistics.fmean(found), "%", "the same without faults", perfect, None,
                measure.device_name(), COMMAND, statistics.stdev(found),
            )  # fmt: skip


def accuracies(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    rates: FaultRates,
    chips: int,
    *,
    cell_bits: int = 2,
    mapping: str = "offset",
    corrected: bool = False,
    **scale: Any,
) -> list[float]:
    """Accuracy in per cent on each chip, all chips in one batch."""
    physics = Physics(Layout(8, cell_bits, mapping), rates)  # type: ignore[arg-type]
    on = copy.deepcopy(net)
    plan = LayerProtection(bias_correction="expected" if corrected else None)
    names = [name for name, layer in on.named_modules() if isinstance(layer, nn.Linear)]
    to_crossbars(
        on, Setup(physics, Converters(dac_bits=None), **scale), protection=dict.fromkeys(names, plan)
    )
    program_chips(on, range(chips))
    with torch.inference_mode():
        logits = on(on_chips({"x": x}, chips)["x"]).view(chips, len(x), -1)
    return [100 * float(right) for right in (logits.argmax(dim=-1) == y).float().mean(dim=1)]


def _trained() -> tuple[nn.Module, Tensor, Tensor]:
    """The network after 60 epochs, test images and labels."""
    task = open_source("testbed:digits").task
    if not isinstance(task, Classification):
        raise PlanishError("benchmark reram-accuracy: the source testbed:digits brings no images")
    train_x, train_y, test_x, test_y = task.data.read("train_x", "train_y", "test_x", "test_y")
    train_x, test_x = train_x.flatten(1), test_x.flatten(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
        for _ in range(60):
            for batch in torch.split(torch.randperm(len(train_x)), 64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(train_x[batch]), train_y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return net.eval().requires_grad_(False), test_x, test_y
