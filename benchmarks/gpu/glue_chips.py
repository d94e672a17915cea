"""Trained encoders on faulty chips: rates, the measurement of one figure, protection, and what the scripts share."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import masked_words
import torch
from glue_data import Split, Task
from glue_encoder import Encoder, metric
from torch import Tensor, nn

from planish_reram.chip import Physics, compose, program
from planish_reram.faults import FaultRates, preset
from planish_reram.layers import Setup
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.network import calibrate, on_chips, program_chips, to_crossbars
from planish_reram.protection import LayerProtection
from planish_reram.quantise import quantise
from planish_reram.slicing import Layout
from planish_reram.specs import Converters
from planish_reram_protect import plan
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.coupling import couple
from planish_reram_protect.data import input_rms
from planish_reram_protect.gates import count_gates
from planish_reram_protect.search import Schedule, search

Protection = Mapping[str, LayerProtection]
Save = Callable[[dict[str, Any]], None]
MARCH, SWAPPED = "1.75 % HRS, 9.04 % LRS", "9.04 % HRS, 1.75 % LRS"
RATES = {
    **{f"{p:g} % / {p:g} %": FaultRates(p / 100, p / 100) for p in (0.1, 0.5, 1.0, 2.0)},
    MARCH: preset("march_test"),
}
MORE_RATES = {
    **{f"{p:g} % / {p:g} %": FaultRates(p / 100, p / 100) for p in (5.0, 10.0)},
    SWAPPED: preset("march_test_swapped"),
}
SCALES: dict[str, dict[str, Any]] = {
    "a scale a row": {"scope": "row"},
    "clipped at 99.5 %": {"percentile": 99.5},
    "a scale a row, clipped at 99.5 %": {"scope": "row", "percentile": 99.5},
}
IDEAL = Converters(dac_bits=None)


class Bench:
    """One trained model on chips."""

    def __init__(self, model: Encoder, task: Task, data: Split, chips: int) -> None:
        self.model, self.task, self.data, self.seeds = model, task, data, range(chips)

    def __call__(
        self,
        rates: FaultRates | None = None,
        protection: Protection | None = None,
        mapping: str = "offset",
        cell_bits: int = 2,
        converters: Converters = IDEAL,
        calibration: Split | None = None,
        **scale: Any,
    ) -> dict[str, Any]:
        """The metric over chips; without rates, of one chip without faults."""
        seeds = self.seeds if rates else range(1)
        physics = Physics(Layout(8, cell_bits, mapping), rates or FaultRates())  # type: ignore[arg-type]
        net = self.crossbars(Setup(physics, converters, **scale), protection or {}, seeds, calibration)
        batches = self.data.sorted_batches(192 if self.data.ids.is_cuda else 64)
        found = []
        with torch.inference_mode():
            for rows in batches:
                length = self.data.padded(rows)
                inputs = {"ids": self.data.ids[rows, :length], "kinds": self.data.kinds[rows, :length]}
                answers = self.read(net(**on_chips(inputs, len(seeds))))
                found.append(answers.view(len(seeds), len(rows), -1))
        target = self.data.target[torch.cat(batches)].cpu()
        values = [self.value(answers, target) for answers in torch.cat(found, dim=1).cpu()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return {"mean": statistics.mean(values), "std": spread, "worst": min(values)}

    def states(self, rates: FaultRates | None = None, mapping: str = "offset") -> Tensor:
        """What the digital head reads, [chips, answers, width]."""
        seeds = self.seeds if rates else range(1)
        physics = Physics(Layout(8, 2, mapping), rates or FaultRates())  # type: ignore[arg-type]
        net, found = self.crossbars(Setup(physics, IDEAL), {}, seeds), []

        def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.append(inputs[0].unflatten(0, (len(seeds), -1)))

        net.get_submodule("head").register_forward_pre_hook(look)
        with torch.inference_mode():
            for rows in self.data.sorted_batches(128)[:8]:
                length = self.data.padded(rows)
                inputs = {"ids": self.data.ids[rows, :length], "kinds": self.data.kinds[rows, :length]}
                net(**on_chips(inputs, len(seeds)))
        return torch.cat(found, dim=1)

    def read(self, logits: Tensor) -> Tensor:
        """What is kept of the outputs of a batch."""
        return logits

    def value(self, answers: Tensor, target: Tensor) -> float:
        """The metric of one chip."""
        return metric(self.task, answers, target)

    def crossbars(
        self, setup: Setup, protection: Protection, seeds: range, calibration: Split | None = None
    ) -> nn.Module:
        """A copy of the model on crossbars, with its ADC ranges measured on ``calibration`` where there is an ADC."""
        net = copy.deepcopy(self.model)
        skip = ("head",)
        if calibration is not None:
            to_crossbars(net, setup, protection=protection, skip=skip, seeds=(0,))
            batch = {"ids": calibration.ids[:64, :48], "kinds": calibration.kinds[:64, :48]}
            with torch.inference_mode():
                calibrate(net, [batch], lambda inputs: net(**inputs))
            program_chips(net, seeds)
        else:
            to_crossbars(net, setup, protection=protection, skip=skip, seeds=seeds)
        return net

    def table(
        self, variants: Mapping[str, Protection], rates: Mapping[str, FaultRates], **how: Any
    ) -> dict[str, Any]:
        """Every variant at every pair of rates."""
        return {
            variant: {name: self(rate, protection, **how) for name, rate in rates.items()}
            for variant, protection in variants.items()
        }


def measures(bench: Bench, rates: FaultRates, mapping: str) -> dict[str, dict[str, Any]]:
    """Each measure against faults by itself, on the model as it is."""
    nothing = {name: LayerProtection() for name in blocks(bench.model)}
    copies = {
        "bit vote, one slice": everywhere(bench.model, 1),
        "bit vote, two slices": everywhere(bench.model, 2),
        "healthy copy": everywhere(bench.model, 1, vote="healthy"),
        "healthy copy, two slices": everywhere(bench.model, 2, vote="healthy"),
        "mean of the copies": everywhere(bench.model, 1, vote="mean"),
        "bias correction": changed(nothing, bias_correction="expected"),
        "bit vote, one slice, bias correction": everywhere(bench.model, 1, bias_correction="expected"),
    }
    found = {"none": bench(rates, mapping=mapping)}
    found |= {f"{bits}-bit cells": bench(rates, mapping=mapping, cell_bits=bits) for bits in (1, 4)}
    found |= {name: bench(rates, protection, mapping) for name, protection in copies.items()}
    return found | {name: bench(rates, mapping=mapping, **how) for name, how in SCALES.items()}


class WordBench(Bench):
    """A model that finds hidden words."""

    def read(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    def value(self, answers: Tensor, target: Tensor) -> float:
        return masked_words.accuracy(answers, target)


def blocks(model: Encoder) -> dict[str, nn.Module]:
    """The matrices that go onto crossbars, by path."""
    return {name: layer for name, layer in mapped_layers(model).items() if name.startswith("layers.")}


def with_large_rows(model: Encoder) -> Encoder:
    """The same function in other numbers: an output of query and value 16 times larger, what reads it smaller.

    One such row sets the scale of its matrix, as outliers do in large pre-trained models.
    """
    model = copy.deepcopy(model)
    with torch.no_grad():
        for layer in model.layers:
            attention = layer.attention
            for grown in (attention.self.query, attention.self.value):
                grown.weight[0] *= 16
                grown.bias[0] *= 16
            attention.self.key.weight[0] /= 16
            attention.self.key.bias[0] /= 16
            attention.output.dense.weight[:, 0] /= 16
    return model


def everywhere(model: Encoder, m: int, **choices: Any) -> dict[str, LayerProtection]:
    """Three copies of the top ``m`` slices of all weights, outside the accounting of cells."""
    return {
        name: LayerProtection(
            slices=torch.full((len(matrix(layer)),), m, dtype=torch.uint8), copies=3, **choices
        )
        for name, layer in blocks(model).items()
    }


def changed(protection: Protection, **choices: Any) -> dict[str, LayerProtection]:
    return {name: dataclasses.replace(part, **choices) for name, part in protection.items()}


def variants_of(protection: Protection) -> dict[str, Protection]:
    """A plan's own vote and what it is compared with, on the same pruned model."""
    none = changed(protection, copies=1, slices=None)
    return {
        "pruned, unprotected": none,
        "bit vote": protection,
        "bit vote, bias correction": changed(protection, bias_correction="expected"),
        "healthy copy": changed(protection, vote="healthy"),
    }


def protect(
    model: Encoder,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    data: Split,
    config: ReramProtectConfig,
    steps: int,
    lr: float,
) -> tuple[dict[str, LayerProtection], dict[str, Any]]:
    """Gates, tuning and the plan, on the model in place: about ``steps`` for the gates, four times as many for tuning."""
    size = 128
    layers = blocks(model)
    shapes = {n: (matrix(m).shape[0], matrix(m).shape[1]) for n, m in layers.items()}
    gated = couple(model, shapes, last="")

    def of_batch(batch: Tensor) -> Tensor:
        length, rows = data.padded(batch), batch.to(data.ids.device)
        return loss(data.ids[rows, :length], data.kinds[rows, :length], data.target[rows])

    def of_steps(generator: torch.Generator) -> list[Tensor]:
        found: list[Tensor] = []
        while len(found) < steps:
            found += data.batches(size, int(torch.randint(2**31, (1,), generator=generator)))
        return found[:steps]

    schedule = Schedule(
        target=config.goal,
        lr=lr,
        gate_lr=config.gate_rate(count_gates(gated), steps),
        gate_epochs=2,
        tune_epochs=4,
        clip=config.clip,
    )
    found = search(
        model,
        gated,
        of_steps,
        of_batch,
        schedule,
        lambda name: torch.Generator().manual_seed(sum(name.encode())),
    )
    first = torch.arange(min(256, len(data.ids)))
    with torch.no_grad():
        rms = input_rms(model, layers, lambda: of_batch(first))
    kept = plan.kept(gated, found.mask, {n: matrix(m) for n, m in layers.items()}, rms)
    protection, report = plan.protect(kept, config)
    return protection, report | {"steps of the search": found.steps, "reached by the search": found.reached}


def correct(device: str) -> dict[str, Any]:
    """What all figures rest on: composed weights equal a float64 reference, and do not depend on the device."""
    weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
    part = LayerProtection(slices=torch.full((96,), 1, dtype=torch.uint8), copies=3)
    physics = Physics(rates=preset("march_test"))
    both = [
        compose(program(q, physics, range(3), "x", part), q, physics, part, torch.float64).cpu()
        for q in (quantise(weight.double().to(where)) for where in ("cpu", device))
    ]
    clean = Physics()
    q = quantise(weight.double().to(device))
    exact = compose(program(q, clean, (0,), "x", part), q, clean, part, torch.float64)[0]
    assert torch.equal(both[0], both[1]), "CPU and GPU differ"
    assert torch.equal(exact, q.dequantised()), "a chip without faults is not the quantised weight"
    return {"cpu equals device": True, "no faults equals quantised": True}


def one_by_one(arguments: argparse.Namespace, work: Callable[[str, Save], None]) -> None:
    """``work`` for every name asked for; its results so far are written each time that it saves them.

    In one process: several of them on one GPU wait for each other at every small kernel.
    """
    torch.set_num_threads(1)
    begin = time.time()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else platform.processor(),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "quick": arguments.quick,
        "correctness": correct(arguments.device),
    }
    for name in arguments.only:

        def save(found: dict[str, Any], name: str = name) -> None:
            results[name] = found
            results["seconds"] = time.time() - begin
            arguments.out.write_text(json.dumps(results, indent=1) + "\n")

        if time.time() - begin < arguments.seconds:
            work(name, save)
            print(f"{name}: {time.time() - begin:.1f} s", flush=True)
    failed = [
        f"{name}, {part.removesuffix(': error')}"
        for name in arguments.only
        for part in results.get(name, {})
        if part.endswith(": error")
    ]
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}; see {arguments.out}")


def options(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--choose", action="store_true", help="compare recipes on held-out training rows instead"
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="nothing is begun after these")
    parser.add_argument("--seeds", type=int, default=3, help="SST-2 encoders; the first goes onto chips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    return arguments
