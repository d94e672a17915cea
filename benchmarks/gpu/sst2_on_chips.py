"""A stored SST-2 encoder on ten faulty chips, before and after protection, where no GPU is at hand.

    PYTHONPATH=core/src:sdk/src:plugins/reram/src:plugins/reram-protect/src python benchmarks/gpu/sst2_on_chips.py \
        --data ../shared/data --encoder FOLDER --out benchmarks/results/reram-protect-sst2.json

FOLDER holds ``sst2-encoder.safetensors`` and ``sst2-encoder-words.json``, as `reram_protect.py` writes them. Results are rewritten
after every figure; what does not fit into ``--seconds`` is left out.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from glue_encoder import TASKS, Encoder, Split, Vocabulary, score, split, words
from reram_protect import RATES, Bench, protect, variants_of
from safetensors.torch import load_file

from planish import measure
from planish_reram_protect.config import ReramProtectConfig

COMMAND = "python benchmarks/gpu/sst2_on_chips.py --data ../shared/data --encoder FOLDER --out FILE"
NOTE = (
    "Four-layer BERT-style encoder of width 128 (786,432 weights on crossbars; embeddings, norms and classifier digital). Trained from "
    "scratch on 20,000 SST-2 rows on an NVIDIA H100 by benchmarks/gpu/reram_protect.py; gates (120 steps on 3,840 rows, then rounded), tuning (120 "
    "steps) and faults on the CPU. All 872 dev rows; 8-bit weights in 2-bit cells, one scale a matrix; means over ten chips, spread "
    "is their standard deviation."
)


FALLING = sorted((name for name in RATES if "swapped" not in name), key=lambda name: -RATES[name].p_lrs)


class Rows:
    """The result file, rewritten with every row."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.end, self.rows = path, time.time() + seconds, []
        self.device = measure.device_name()

    @property
    def over(self) -> bool:
        return time.time() > self.end

    def add(
        self,
        metric: str,
        value: float,
        peer: str,
        other: float,
        spread: float | None = None,
        limit: float | None = None,
        unit: str = "%",
    ) -> None:
        ratio = value / other
        row: dict[str, Any] = {
            "metric": metric,
            "value": value,
            "unit": unit,
            "spread": spread,
            "peer": peer,
            "peer_value": other,
            "ratio": ratio,
            "bar": None if limit is None else f"ratio >= {limit:g}",
            "holds": None if limit is None else ratio >= limit,
            "device": self.device,
            "command": COMMAND,
        }
        self.rows.append(row)
        content = {"benchmark": "ReRAM protection, SST-2", "note": NOTE, "rows": self.rows}
        self.path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"{metric}: {value:.1f} ± {spread or 0:.1f} ({peer}: {other:.1f})", flush=True)

    def chips(self, bench: Bench, metric: str, free: float, **how: Any) -> None:
        """One figure over chips, beside the fault-free one; nothing when the time is over."""
        if self.over:
            return
        scale = how.pop("scale", {})
        found = bench.chips(bench.effective(bench.quantised(**scale), **how))
        self.add(
            f"{metric} (worst {found['worst']:.1f})", found["mean"], "without faults", free, found["std"]
        )


def load(folder: Path, data: Path) -> tuple[Encoder, Split, Split]:
    """The encoder, its training rows and the 872 evaluation rows."""
    task = TASKS[0]
    training, test = split(data / "glue", task, None)
    every = dict.fromkeys(w for row in [*training, *test] for w in words(row[0]))
    vocabulary = Vocabulary(json.loads((folder / "sst2-encoder-words.json").read_text()), list(every))
    model = Encoder(vocabulary)
    model.set_task(task)
    model.load_state_dict({n: t.float() for n, t in load_file(folder / "sst2-encoder.safetensors").items()})
    return model.eval(), *(Split.of(task, rows, vocabulary, "cpu") for rows in (training, test))


def dense(rows: Rows, model: Encoder, test: Split, chips: int) -> None:
    """The encoder as it was trained."""
    task = TASKS[0]
    accuracy = score(model, task, test, 128)
    rows.add("accuracy of the trained encoder", accuracy, "the bar", 80.0, limit=1.0)
    model.blocks = False
    rows.add(
        "accuracy with the encoder's blocks removed", score(model, task, test, 128), "with blocks", accuracy
    )
    model.blocks = True
    bench = Bench(model, task, test, chips)
    free = bench.fault_free()
    rows.add("dense, without faults", free, "float", accuracy)
    for name in FALLING:
        rows.chips(bench, f"dense, unprotected, {name}", free, rates=RATES[name], protection={})
    for name in FALLING[:3]:
        metric = f"dense, unprotected, differential mapping, {name}"
        rows.chips(bench, metric, free, rates=RATES[name], protection={}, mapping="differential")


def pruned(rows: Rows, model: Encoder, training: Split, test: Split, chips: int) -> None:
    """The encoder after gates, tuning and the plan with the default options."""
    task = TASKS[0]
    free = Bench(model, task, test, chips).fault_free()
    drawn = torch.randperm(len(training.ids), generator=torch.Generator().manual_seed(0))[: 60 * 64]
    some = Split(*(getattr(training, name)[drawn] for name in ("ids", "kinds", "target")))
    protection, report = protect(model, task, some, ReramProtectConfig(use_spare=False), (1, 2), 5e-4)
    bench = Bench(model, task, test, chips)
    clean = bench.fault_free()
    rows.add(f"pruned to {report['sparsity']:.3f}, without faults", clean, "dense, without faults", free)
    rows.add(
        "crossbars with the copies",
        report["crossbars"] + report["extra crossbars"],
        "without",
        report["crossbars"],
        unit="",
    )
    print(report, flush=True)
    variants = variants_of(protection)
    asked = [("bit", name, {}) for name in FALLING]
    asked += [(variant, name, {}) for name in FALLING[:3] for variant in ("healthy", "pruned, unprotected")]
    asked += [("bit", name, {"mapping": "differential"}) for name in FALLING[:2]]
    asked += [("bit, bias correction", FALLING[0], {}), *(("healthy", name, {}) for name in FALLING[3:])]
    for variant, name, how in asked:
        metric = ", ".join([variant, *(f"{value} mapping" for value in how.values()), name])
        rows.chips(bench, metric, clean, rates=RATES[name], protection=variants[variant], **how)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("dense", "pruned"), help="one half of the figures")
    parser.add_argument("--chips", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=600.0)
    arguments = parser.parse_args()
    model, training, test = load(arguments.encoder, arguments.data)
    rows = Rows(arguments.out, arguments.seconds)
    if arguments.only != "pruned":
        dense(rows, model, test, arguments.chips)
    if arguments.only != "dense":
        pruned(rows, model, training, test, arguments.chips)


if __name__ == "__main__":
    main()
