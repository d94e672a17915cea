"""``planish bench reram-protect``: a digits network on ten faulty chips, unprotected and protected, and what that costs."""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from planish import measure
from planish.bench import Row
from planish.context import Context
from planish.data import Tensors
from planish.model import TorchModel
from planish.tasks import Classification
from planish_reram.chip import NO_PROTECTION, Physics, compose, program
from planish_reram.faults import FaultRates, preset
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.protection import LayerProtection
from planish_reram.quantise import quantise
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.wiring import apply

COMMAND = "planish bench reram-protect"
Protection = Mapping[str, LayerProtection]
RATES = {
    "1.75 % HRS, 9.04 % LRS": preset("march_test"),
    "9.04 % HRS, 1.75 % LRS": preset("march_test_swapped"),
    "1 % HRS, 1 % LRS": FaultRates(0.01, 0.01),
}
SYMMETRIC = (0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
"""Rates in per cent, of each kind, at which the tolerated one is looked for."""


@dataclass(frozen=True, slots=True)
class Chips:
    """Accuracy in per cent over chips."""

    mean: float
    spread: float
    worst: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Chips:
        return cls(statistics.mean(values), statistics.stdev(values), min(values))


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Accuracy over chips at three pairs of rates, the tolerated rate, and the cells; ``quick`` trains and draws less."""
    chips, epochs, tune = (3, 8, 5) if quick else (10, 25, 35)
    task = digits()
    dense = fit(task, epochs)
    plans = {
        "": ReramProtectConfig(tune_epochs=tune),
        "two slices copied, ": ReramProtectConfig(tune_epochs=tune, protected_slices=2),
        "no weight limit, ": ReramProtectConfig(tune_epochs=tune, clip=None),
    }
    device = measure.device_name()
    base = accuracy(dense, task, fault_free(dense))
    for label, config in plans.items():
        net = copy.deepcopy(dense)
        with tempfile.TemporaryDirectory() as folder:
            context = Context(task, 0, "cpu", Path(folder))
            protection = apply(TorchModel(net, "module"), config, context).protection
        required = not label and not quick
        clean = accuracy(net, task, fault_free(net))
        bar = (">=", (base - 0.5) / base) if required else None
        yield Row(f"{label}accuracy without faults, pruned", clean, "%", "dense", base, bar, device, COMMAND)
        yield from _tables(label, dense, net, protection, task, chips, device, required)
        yield from _tolerated(label, dense, net, protection, task, chips, device, required)
        tiles, extra = context.facts["crossbars"], context.facts["extra crossbars"]
        yield Row(
            f"{label}crossbars with the copies",
            tiles + extra,
            "",
            "dense, no copies",
            tiles,
            ("<=", 1.0),
            device,
            COMMAND,
        )


def _tables(
    label: str,
    dense: nn.Module,
    net: nn.Module,
    protection: Protection,
    task: Classification,
    chips: int,
    device: str,
    required: bool,
) -> Iterator[Row]:
    """Every variant beside the unprotected pruned network, and the bars at the march-test rates beside what they ask for."""
    bars = {"bit vote": 90.0, "healthy copy": 95.5, "bit vote, bias correction": 93.0}
    for name, rates in RATES.items():
        bare = over_chips(net, task, rates, unprotected(protection), chips)
        first = over_chips(dense, task, rates, {}, chips)
        found = {"dense, unprotected": first} | {
            variant: over_chips(net, task, rates, part, chips)
            for variant, part in variants(protection).items()
        }
        for variant, result in found.items():
            yield Row(
                f"{label}accuracy at {name}, {variant} (worst {result.worst:.1f})",
                result.mean,
                "%",
                f"pruned, unprotected (spread {bare.spread:.1f}, worst {bare.worst:.1f})",
                bare.mean,
                None,
                device,
                COMMAND,
                result.spread,
            )
            if required and name == next(iter(RATES)) and variant in bars:
                yield Row(
                    f"accuracy at {name}, {variant}, against the bar",
                    result.mean,
                    "%",
                    "the bar",
                    bars[variant],
                    (">=", 1.0),
                    device,
                    COMMAND,
                    result.spread,
                )


def _tolerated(
    label: str,
    dense: nn.Module,
    net: nn.Module,
    protection: Protection,
    task: Classification,
    chips: int,
    device: str,
    required: bool,
) -> Iterator[Row]:
    """The largest rate, of each kind, up to which the mean over chips loses at most one point."""
    rates = SYMMETRIC[::3] if chips < 10 else SYMMETRIC
    voted = tolerated(net, task, protection, rates, chips)
    peers = {
        "the same network, unprotected": tolerated(net, task, unprotected(protection), rates, chips),
        "dense, unprotected": tolerated(dense, task, {}, rates, chips),
    }
    for peer, value in peers.items():
        bar = (">=", 2.5) if required else None
        metric = f"{label}tolerated rate of each kind, bit vote"
        yield Row(metric, voted, "%", peer, value, bar, device, COMMAND)


def digits() -> Classification:
    """scikit-learn's digits, 64 pixels in [0, 1]; a fifth is for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    train, test = (
        torch.tensor(part) for part in train_test_split(range(len(y)), test_size=0.2, random_state=0)
    )
    values = {"train_x": x[train], "train_y": y[train], "test_x": x[test], "test_y": y[test]}
    return Classification(data=Tensors(values=values), input="input")


def fit(task: Classification, epochs: int, seed: int = 0) -> nn.Sequential:
    """A trained 64-256-128-10 network."""
    x, y = task.data.read("train_x", "train_y")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            for part in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                torch.autograd.backward(nn.functional.cross_entropy(net(x[part]), y[part]))
                optimizer.step()
    return net.eval()


def accuracy(net: nn.Module, task: Classification, weights: Mapping[str, Tensor]) -> float:
    """Test accuracy in per cent with these weights [out, in] in place of the network's own."""
    x, y = task.data.read("test_x", "test_y")
    with torch.inference_mode():
        named = {f"{name}.weight": weight for name, weight in weights.items()}
        logits = torch.func.functional_call(net, named, (x,))
    return 100 * float((logits.argmax(1) == y).double().mean())


def over_chips(
    net: nn.Module, task: Classification, rates: FaultRates, protection: Protection, chips: int
) -> Chips:
    """Accuracy of the network on so many chips."""
    physics = Physics(rates=rates)
    effective: dict[str, Tensor] = {}
    for name, layer in mapped_layers(net).items():
        quantised, part = quantise(matrix(layer)), protection.get(name, NO_PROTECTION)
        effective[name] = compose(
            program(quantised, physics, range(chips), name, part), quantised, physics, part
        )
    return Chips.of(
        [accuracy(net, task, {n: w[chip] for n, w in effective.items()}) for chip in range(chips)]
    )


def tolerated(
    net: nn.Module, task: Classification, protection: Protection, rates: Sequence[float], chips: int
) -> float:
    """The last of the rising ``rates`` (per cent, of each kind) before the mean over chips has lost more than a point."""
    limit = accuracy(net, task, fault_free(net)) - 1
    found = 0.0
    for rate in rates:
        if over_chips(net, task, FaultRates(rate / 100, rate / 100), protection, chips).mean < limit:
            break
        found = rate
    return found


def fault_free(net: nn.Module) -> dict[str, Tensor]:
    """The quantised weights: the reference of all that faults do."""
    return {name: quantise(matrix(layer)).dequantised() for name, layer in mapped_layers(net).items()}


def unprotected(protection: Protection) -> dict[str, LayerProtection]:
    """The same pruned layers without their copies."""
    return _changed(protection, copies=1, slices=None)


def _changed(protection: Protection, **choices: Any) -> dict[str, LayerProtection]:
    return {name: dataclasses.replace(part, **choices) for name, part in protection.items()}


def variants(protection: Protection) -> dict[str, Protection]:
    """What one plan can be read as: its own vote, others, and the correction with and without."""
    return {
        "bias correction alone": _changed(unprotected(protection), bias_correction="expected"),
        "bit vote": protection,
        "bit vote, bias correction": _changed(protection, bias_correction="expected"),
        "healthy copy": _changed(protection, vote="healthy"),
        "mean of the copies": _changed(protection, vote="mean"),
    }
