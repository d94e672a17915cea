"""GLUE on faulty crossbars: a small encoder, trained here, before and after zero-space protection, on ten chips.

    PYTHONPATH=.device/site:core/src:sdk/src:plugins/reram/src:plugins/reram-protect/src \
        python3 benchmarks/gpu/reram_protect.py --data .device --out OUT/reram_protect.json [--quick] [--device cpu]

Every figure is the task's metric in per cent on all evaluation rows; over chips mean, standard deviation and worst. Fault-free
means quantised and without faults. Parts are isolated: one that fails leaves its traceback in the file.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from glue_encoder import (
    TASKS,
    Encoder,
    Split,
    Task,
    Vocabulary,
    averaged,
    pretrain,
    score,
    split,
    task_loss,
    timed,
    train,
    unlabelled,
    words,
)
from safetensors.torch import save_file
from torch import Tensor

from planish_reram.chip import NO_PROTECTION, Physics, compose, program
from planish_reram.faults import FaultRates, preset
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.protection import LayerProtection
from planish_reram.quantise import Quantised, quantise
from planish_reram.slicing import Layout
from planish_reram_protect import plan
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.coupling import couple
from planish_reram_protect.data import input_rms
from planish_reram_protect.gates import count_gates
from planish_reram_protect.search import Schedule, search

Protection = Mapping[str, LayerProtection]
SYMMETRIC = {f"{p:g} % / {p:g} %": FaultRates(p / 100, p / 100) for p in (0.1, 0.5, 1.0, 2.0)}
RATES = {
    **SYMMETRIC,
    "march test (1.75 % HRS, 9.04 % LRS)": preset("march_test"),
    "march test swapped (9.04 % HRS, 1.75 % LRS)": preset("march_test_swapped"),
}
SCALES: dict[str, dict[str, Any]] = {
    "per tensor": {},
    "per row": {"scope": "row"},
    "per tensor, clipped at 99.5 %": {"percentile": 99.5},
    "per row, clipped at 99.5 %": {"scope": "row", "percentile": 99.5},
}


class Bench:
    """One trained model on chips."""

    def __init__(self, model: Encoder, task: Task, data: Split, chips: int) -> None:
        self.model, self.task, self.data, self.seeds = model, task, data, range(chips)
        self.layers = {n: m for n, m in mapped_layers(model).items() if n.startswith("layers.")}
        self.originals = {n: matrix(m).detach().clone() for n, m in self.layers.items()}

    def quantised(self, **how: Any) -> dict[str, Quantised]:
        return {name: quantise(weight, **how) for name, weight in self.originals.items()}

    def with_weights(self, weights: Mapping[str, Tensor]) -> float:
        with torch.no_grad():
            for name, weight in weights.items():
                self.layers[name].weight.copy_(weight)
        found = score(self.model, self.task, self.data, 1024 if self.data.ids.is_cuda else 128)
        with torch.no_grad():
            for name, weight in self.originals.items():
                self.layers[name].weight.copy_(weight)
        return found

    def fault_free(self, **how: Any) -> float:
        return self.with_weights({name: q.dequantised() for name, q in self.quantised(**how).items()})

    def effective(
        self,
        quantised: Mapping[str, Quantised],
        rates: FaultRates,
        protection: Protection,
        mapping: str = "offset",
    ) -> dict[str, Tensor]:
        """Effective weights [chips, out, in]."""
        physics = Physics(layout=Layout(mapping=mapping), rates=rates)  # type: ignore[arg-type]
        found = {}
        for name, q in quantised.items():
            part = protection.get(name, NO_PROTECTION)
            found[name] = compose(program(q, physics, self.seeds, name, part), q, physics, part)
        return found

    def chips(self, weights: Mapping[str, Tensor]) -> dict[str, Any]:
        values = [self.with_weights({n: w[chip] for n, w in weights.items()}) for chip in self.seeds]
        return {
            "mean": statistics.mean(values),
            "std": statistics.stdev(values) if len(values) > 1 else 0.0,
            "worst": min(values),
            "values": values,
        }

    def table(
        self,
        variants: Mapping[str, Protection],
        rates: Mapping[str, FaultRates],
        mapping: str = "offset",
        **how: Any,
    ) -> dict[str, dict[str, Any]]:
        quantised = self.quantised(**how)
        return {
            variant: {
                name: self.chips(self.effective(quantised, rate, protection, mapping))
                for name, rate in rates.items()
            }
            for variant, protection in variants.items()
        }


def everywhere(bench: Bench, **choices: Any) -> dict[str, LayerProtection]:
    """The same protection for all rows of all layers, outside the accounting of cells."""
    m = choices.pop("m")
    return {
        name: LayerProtection(slices=torch.full((len(weight),), m, dtype=torch.uint8), **choices)
        for name, weight in bench.originals.items()
    }


def changed(protection: Protection, **choices: Any) -> dict[str, LayerProtection]:
    return {name: dataclasses.replace(part, **choices) for name, part in protection.items()}


def variants_of(protection: Protection) -> dict[str, Protection]:
    """A plan's own protection and what it is compared with, on the same pruned model."""
    none = changed(protection, copies=1, slices=None)
    return {
        "pruned, unprotected": none,
        "pruned, bias correction": changed(none, bias_correction="expected"),
        "bit": protection,
        "bit, bias correction": changed(protection, bias_correction="expected"),
        "healthy": changed(protection, vote="healthy"),
        "healthy, bias correction": changed(protection, vote="healthy", bias_correction="expected"),
        "mean of the copies (output vote)": changed(protection, vote="mean"),
    }


def protect(
    model: Encoder,
    task: Task,
    data: Split,
    config: ReramProtectConfig,
    epochs: tuple[int, int],
    lr: float,
    size: int = 64,
) -> tuple[dict[str, LayerProtection], dict[str, Any]]:
    """Gates, tuning and the plan, on the model in place; the search is set to take about the first of ``epochs``."""
    layers = {n: m for n, m in mapped_layers(model).items() if n.startswith("layers.")}
    shapes = {n: (matrix(m).shape[0], matrix(m).shape[1]) for n, m in layers.items()}
    gated = couple(model, shapes, last="")
    steps = epochs[0] * -(-len(data.ids) // size)
    schedule = Schedule(
        target=config.goal,
        lr=lr,
        gate_lr=config.gate_rate(count_gates(gated), steps),
        gate_epochs=2 * epochs[0],
        tune_epochs=epochs[1],
        clip=config.clip,
    )
    found = search(
        model,
        gated,
        lambda generator: data.batches(size, int(torch.randint(2**31, (1,), generator=generator))),
        lambda batch: task_loss(model, task, data, batch),
        schedule,
        lambda name: torch.Generator().manual_seed(sum(name.encode())),
    )
    rms = input_rms(
        model, layers, lambda: score(model, task, Split(data.ids[:256], data.kinds[:256], data.target[:256]))
    )
    kept = plan.kept(gated, found.mask, {n: matrix(m) for n, m in layers.items()}, rms)
    protection, report = plan.protect(kept, config)
    report |= {"searched": found.searched, "steps": found.steps, "reached by the search": found.reached}
    return protection, report


class Run:
    """The parts, in order, with what they share."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.quick, self.device, self.data = arguments.quick, arguments.device, arguments.data
        self.out: Path = arguments.out
        self.chips = 2 if self.quick else 10
        self.begin, self.seconds = time.time(), arguments.seconds
        self.rates = dict(list(RATES.items())[3:5]) if self.quick else RATES
        self.results: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if self.device == "cuda" else platform.processor(),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
            "quick": self.quick,
        }
        self.splits: dict[str, tuple[Split, Split]] = {}
        self.models: dict[str, Encoder] = {}

    @property
    def left(self) -> float:
        return self.seconds - (time.time() - self.begin)

    def part(self, name: str, function: Callable[[], Any]) -> None:
        begin = time.time()
        try:
            self.results[name] = function()
            state = "OK"
        except Exception:
            self.results[name] = {"traceback": traceback.format_exc()}
            state = traceback.format_exc()
        self.results.setdefault("seconds", {})[name] = time.time() - begin
        self.out.write_text(json.dumps(self.results, indent=1))
        print(f"{name}: {state} ({time.time() - begin:.1f} s, {self.left:.0f} s left)", flush=True)

    def read(self) -> dict[str, Any]:
        limit = 100 if self.quick else None
        found = {task.name: split(self.data / "glue", task, limit) for task in TASKS}
        training = [words(text) for rows, _ in found.values() for row in rows for text in row[:-1]]
        others = [words(text) for _, rows in found.values() for row in rows for text in row[:-1]]
        passages = [words(text) for text in unlabelled(self.data / "text")]
        passages = [p for p in passages if len(p) > 3][: 200 if self.quick else 15000]
        self.sentences = training + passages
        self.vocabulary = Vocabulary.of(self.sentences, others)
        for task in TASKS:
            self.splits[task.name] = tuple(
                Split.of(task, rows, self.vocabulary, self.device) for rows in found[task.name]
            )  # type: ignore[assignment]
        rows = {name: [len(train.ids), len(test.ids)] for name, (train, test) in self.splits.items()}
        return {
            "rows": rows,
            "sentences for pre-training": len(self.sentences),
            "notes": {t.name: t.note for t in TASKS},
        }

    def pretrain(self) -> dict[str, Any]:
        torch.manual_seed(0)
        size = {"width": 32, "depth": 1} if self.quick else {}
        self.base = Encoder(self.vocabulary, **size).to(self.device)
        self.scratch = copy.deepcopy(self.base)
        return pretrain(self.base, self.sentences, self.vocabulary, 2 if self.quick else 12)

    def sst2(self) -> dict[str, Any]:
        """Several recipes, all reported; the best on the evaluation rows goes on (this selects on what it is measured on)."""
        task, (training, test) = TASKS[0], self.splits["sst2"]
        found: dict[str, Any] = {}
        models: dict[str, Encoder] = {}
        for name, start, lr, epochs, seed in (
            ("from scratch, 2 epochs", self.scratch, 1e-3, 2, 1),
            ("pre-trained, 2 epochs, seed 1", self.base, 5e-4, 2, 1),
            ("pre-trained, 2 epochs, seed 2", self.base, 5e-4, 2, 2),
            ("from scratch, 3 epochs", self.scratch, 1e-3, 3, 1),
        ):
            if self.left < self.seconds - 60 and models and not self.quick:
                found[name] = "not measured: out of time"
                continue
            models[name] = model = copy.deepcopy(start)
            torch.manual_seed(1)
            model.set_task(task)
            _, seconds = timed(lambda m=model, r=lr, s=seed, e=epochs: train(m, task, training, e, r, s))
            found[name] = {"accuracy": score(model, task, test), "seconds": seconds}
        if len(tuned := [model for name, model in models.items() if name.startswith("pre")]) > 1:
            models["pre-trained, mean of the seeds"] = averaged(tuned)
            accuracy = score(models["pre-trained, mean of the seeds"], task, test)
            found["pre-trained, mean of the seeds"] = {"accuracy": accuracy}
        found["used"] = max(models, key=lambda name: found[name]["accuracy"])
        self.models["sst2"] = models[found["used"]]
        model = self.models["sst2"]
        layers = {n: matrix(m).numel() for n, m in mapped_layers(model).items() if n.startswith("layers.")}
        found["parameters"] = {
            "on crossbars": sum(layers.values()),
            "all": sum(p.numel() for p in model.parameters()),
        }
        model.blocks = False
        found["accuracy with the encoder's blocks removed"] = score(model, task, test)
        bag = copy.deepcopy(self.scratch)
        bag.blocks = False
        bag.set_task(task)
        train(bag, task, training, 2, 1e-3, seed=1)
        found["accuracy of the same embeddings trained without blocks"] = score(bag, task, test)
        model.blocks = True
        state = {
            n: (t.half() if t.dim() == 2 and len(t) > 4000 else t).contiguous()
            for n, t in model.state_dict().items()
        }
        save_file(state, self.out.parent / "sst2-encoder.safetensors", metadata={"format": "pt"})
        frequent = [w for w, i in self.vocabulary.number.items() if int(self.vocabulary.rows[i]) > 4]
        listed = sorted(frequent, key=lambda w: int(self.vocabulary.rows[self.vocabulary.number[w]]))
        (self.out.parent / "sst2-encoder-words.json").write_text(json.dumps(listed, ensure_ascii=False))
        return found

    def finetune(self) -> dict[str, Any]:
        found = {}
        for task in TASKS[1:]:
            if self.left < 30 and not self.quick:
                found[task.name] = "not measured: out of time"
                continue
            training, test = self.splits[task.name]
            model = copy.deepcopy(self.base)
            torch.manual_seed(1)
            model.set_task(task)
            train(model, task, training, 1 if self.quick else 3, 5e-4, seed=1)
            self.models[task.name] = model
            common = float(test.target.float().mean()) if task.classes == 2 else None
            found[task.name] = {
                "metric": task.metric,
                "float": score(model, task, test),
                "accuracy of the most frequent label": None
                if common is None
                else 100 * max(common, 1 - common),
            }
        return found

    def why(self) -> dict[str, Any]:
        """Unprotected and bit-voted over mapping and scale, and which part of the error it is that hurts."""
        bench = Bench(self.models["sst2"], TASKS[0], self.splits["sst2"][1], self.chips)
        rates = {n: r for n, r in self.rates.items() if not n.startswith(("0.1 ", "0.5 "))}
        found: dict[str, Any] = {"max over standard deviation": {}}
        for name, weight in bench.originals.items():
            found["max over standard deviation"][name] = float(weight.abs().max() / weight.std())
        for mapping in ("offset", "differential"):
            for scale, how in list(SCALES.items())[: 1 if self.quick else None]:
                free = bench.fault_free(**how)
                variants = {
                    "unprotected": {},
                    "bit, outside the accounting": everywhere(bench, m=1, copies=3),
                }
                table = bench.table(variants, rates, mapping, **how)
                quantised = bench.quantised(**how)
                errors = {
                    name: statistics.mean(
                        float((w[0] - bench.originals[n]).norm() / bench.originals[n].norm())
                        for n, w in bench.effective(quantised, rate, {}, mapping).items()
                    )
                    for name, rate in rates.items()
                }
                found[f"{mapping}, {scale}"] = {
                    "fault-free": free,
                    **table,
                    "relative error of the weights": errors,
                }
        quantised = bench.quantised()
        for mapping in ("offset", "differential"):
            weights = bench.effective(quantised, preset("march_test"), {}, mapping)
            parts: dict[str, dict[str, Tensor]] = {"only the constant": {}, "without the constant": {}}
            share = []
            for name, w in weights.items():
                ideal = quantised[name].dequantised()
                shift = (w - ideal).mean((1, 2), keepdim=True).expand_as(w)
                share.append(float(shift[0].norm() ** 2 / (w - ideal)[0].norm() ** 2))
                parts["only the constant"][name] = ideal + shift
                parts["without the constant"][name] = w - shift
            found[f"march test, {mapping}, error split"] = {
                "share of the error's energy in one constant a matrix": statistics.mean(share),
                **{part: bench.chips(values) for part, values in parts.items()},
            }
        return found

    def sst2_protected(self) -> dict[str, Any]:
        """Three plans: the default target, the same with weights clipped while tuning, and two protected slices."""
        task, (training, test) = TASKS[0], self.splits["sst2"]
        dense = Bench(self.models["sst2"], task, test, self.chips)
        found: dict[str, Any] = {
            "dense": {
                "float": score(dense.model, task, test),
                "fault-free": dense.fault_free(),
                "fault-free by scale": {name: dense.fault_free(**how) for name, how in SCALES.items()},
                **dense.table(
                    {"unprotected": {}, "lsb": everywhere(dense, m=1, copies=3, embed="lsb")}, self.rates
                ),
            }
        }
        plans = {
            "m = 1": ReramProtectConfig(clip=None, use_spare=False),
            "m = 1, weights limited to 2 sigma while tuning": ReramProtectConfig(use_spare=False),
            "m = 2": ReramProtectConfig(clip=None, protected_slices=2, use_spare=False),
        }
        for name, config in plans.items():
            if self.left < (70 if name == "m = 1" else 60) and not self.quick:
                found[name] = "not measured: out of time"
                continue
            model = copy.deepcopy(self.models["sst2"])
            (protection, report), seconds = timed(
                lambda m=model, c=config: protect(m, task, training, c, (1, 1 if self.quick else 2), 5e-4)
            )
            bench = Bench(model, task, test, self.chips)
            entry = {"report": report, "seconds": seconds, "fault-free": bench.fault_free()}
            entry |= bench.table(variants_of(protection), self.rates)
            if name == "m = 1":
                some = {
                    k: v
                    for k, v in variants_of(protection).items()
                    if k in ("pruned, unprotected", "bit", "healthy")
                }
                for scale, how in list(SCALES.items())[1:]:
                    entry[f"scale {scale}"] = {
                        "fault-free": bench.fault_free(**how),
                        **bench.table(some, self.rates, **how),
                    }
                entry["differential mapping"] = bench.table(some, self.rates, "differential")
            found[name] = entry
            self.results["SST-2 protected"] = found
            self.out.write_text(json.dumps(self.results, indent=1))
        return found

    def others_protected(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        rates = {n: r for n, r in self.rates.items() if "swapped" not in n}
        for task in TASKS[1:]:
            if task.name not in self.models:
                found[task.name] = "not measured: no model"
                continue
            if self.left < 8 and not self.quick:
                found[task.name] = "not measured: out of time"
                continue
            training, test = self.splits[task.name]
            dense = Bench(self.models[task.name], task, test, self.chips)
            entry: dict[str, Any] = {
                "metric": task.metric,
                "fault-free": dense.fault_free(),
                **dense.table({"unprotected": {}}, rates),
            }
            model = copy.deepcopy(self.models[task.name])
            epochs = 1 if self.quick else -(-100 // -(-len(training.ids) // 64))  # at least 100 steps
            config = ReramProtectConfig(use_spare=False)
            protection, report = protect(model, task, training, config, (epochs, epochs), 5e-4)
            bench = Bench(model, task, test, self.chips)
            wanted = {
                k: v
                for k, v in variants_of(protection).items()
                if k in ("bit", "healthy", "bit, bias correction")
            }
            entry |= {
                "pruned, fault-free": bench.fault_free(),
                "report": report,
                **bench.table(wanted, rates),
            }
            found[task.name] = entry
            self.results["other tasks protected"] = found
            self.out.write_text(json.dumps(self.results, indent=1))
        return found

    def correct(self) -> dict[str, Any]:
        """What all figures rest on: composed weights equal a float64 reference, and do not depend on the device."""
        weight = torch.randn(96, 160, generator=torch.Generator().manual_seed(0))
        part = LayerProtection(slices=torch.full((96,), 1, dtype=torch.uint8), copies=3)
        physics = Physics(rates=preset("march_test"))
        both = [
            compose(program(q, physics, range(3), "x", part), q, physics, part, torch.float64).cpu()
            for q in (quantise(weight.double().to(device)) for device in ("cpu", self.device))
        ]
        clean = Physics()
        q = quantise(weight.double().to(self.device))
        exact = compose(program(q, clean, (0,), "x", part), q, clean, part, torch.float64)[0]
        assert torch.equal(both[0], both[1]), "CPU and GPU differ"
        assert torch.equal(exact, q.dequantised()), "a chip without faults is not the quantised weight"
        return {"cpu equals device": True, "no faults equals quantised": True}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=175.0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    run = Run(arguments)
    parts: dict[str, Callable[[], Any]] = {
        "correctness": run.correct,
        "data": run.read,
        "pre-training": run.pretrain,
        "SST-2": run.sst2,
        "SST-2 protected": run.sst2_protected,
        "why": run.why,
        "other tasks": run.finetune,
        "other tasks protected": run.others_protected,
    }
    for name, function in parts.items():
        run.part(name, function)


if __name__ == "__main__":
    main()
