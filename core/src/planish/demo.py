"""The story of ``planish demo``: one language model, pruned three ways, exported, quantised, measured side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.artifact import write_json
from planish.compare import Entry, Row, compare
from planish.errors import MissingRequirement, UnknownMethod
from planish.events import Event, Listener
from planish.pipeline import Pipeline
from planish.record import Record
from planish.registry import host
from planish.report import write_report
from planish.result import MEASUREMENTS, REPORT, Result, megabytes, speed, text_table
from planish.runner import resolve_device
from planish.source import open_source

SOURCE = "testbed:lm"
PROMPT = "The built-in function"
STRUCTURED: Mapping[str, Any] = {"pattern": "structured", "ffn_sparsity": 0.5, "reconstruct": True}
WINDOWS = 32  # more of them leave the perplexity of masked models as it is; refitting does gain by more
REFERENCE = "dense, ONNX"
BEST = "structured, int8 ONNX"
VARIANTS: dict[str, Pipeline] = {
    REFERENCE: Pipeline().then("onnx"),
    "50 % unstructured, ONNX": Pipeline().then("ace", sparsity=0.5, nsamples=WINDOWS).then("onnx"),
    "2:4, ONNX": Pipeline().then("ace", pattern="2:4", nsamples=WINDOWS).then("onnx"),
    "structured, ONNX": Pipeline().then("ace", **STRUCTURED).then("onnx"),
    "dense, int8 ONNX": Pipeline().then("onnx", quantize="int8"),
    BEST: Pipeline().then("ace", **STRUCTURED).then("onnx", quantize="int8"),
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo measured: rows, the report, the final model's folder, and a line of text that model wrote."""

    rows: list[Row]
    report: Path
    model: Path
    sample: str

    def as_dict(self) -> dict[str, Any]:
        return {
            "rows": [row.as_dict() for row in self.rows],
            "report": str(self.report),
            "model": str(self.model),
            "sample": self.sample,
        }

    def text(self) -> str:
        row = {row.label: row for row in self.rows}
        dense, best = row[REFERENCE], row[BEST]
        quality = {
            label: next(m for m in row[label].quality if m.name == "perplexity")
            for label in (REFERENCE, BEST)
        }
        return "\n".join(
            [
                text_table(self.rows),
                "",
                f"{BEST} against {REFERENCE}, measured in this run:",
                f"  size on disk  {megabytes(dense.size)} -> {megabytes(best.size)} ({dense.size / best.size:.2f} x smaller)",
                f"  latency       {best.verdict}: {speed(best)}",
                f"  perplexity    {quality[REFERENCE].value:.2f} -> {quality[BEST].value:.2f}",
                "",
                f"it writes  {self.sample!r}",
                f"model      {self.model}",
                f"report     {self.report}",
            ]
        )


def run(out: Path, listen: Listener) -> Outcome:
    """Run every variant below ``out`` and measure all of them in one go. Finished variants are reused."""
    for method, distribution in {"ace": "planish-ace", "onnx": "planish-onnx"}.items():
        _demand(method, distribution)
    source = open_source(SOURCE)
    assert source.artifact is not None
    results: dict[str, Result] = {}
    for label, pipeline in VARIANTS.items():

        def tell(event: Event, label: str = label) -> None:
            listen(
                Event(event.type, f"{label}: {event.stage}", event.done, event.total, event.text, event.time)
            )

        # One folder for all: a stage that two variants share is run once.
        results[label] = pipeline.run(source, out, device="cpu", measure="none", listeners=(tell,))
    entries = [Entry("dense, torch", source.artifact)]
    entries += [Entry(label, result.artifact) for label, result in results.items()]

    def report(done: int, total: int, text: str) -> None:
        listen(Event("stage_progress", "measure", done, total, text))

    rows = compare(entries, source.task, reference=1, device=resolve_device("cpu"), report=report)
    # Of no one pipeline, so without a key that a run would take them by; `show` and `report` print them again.
    write_json(out / MEASUREMENTS, {"key": "", "rows": [row.as_dict() for row in rows]})
    stages: dict[Path, str] = {}
    for label, result in results.items():
        for folder in result.stages:
            stages.setdefault(folder, f"{label}: {folder.name[:2]}")
    records = [(name, Record.read(folder)) for folder, name in stages.items()]
    write_report(
        out / REPORT, "planish demo: one model, pruned, exported, quantised, measured", rows, records
    )
    best = results[BEST].artifact
    return Outcome(rows, out / REPORT, best.root, _write(best.load()))


def _demand(method: str, distribution: str) -> None:
    """The demo needs three plugins; a missing one is named with the way to get it."""
    try:
        host().method(method)
    except UnknownMethod:
        raise MissingRequirement(
            f"the demo needs the method {method!r}: pip install {distribution}"
        ) from None


def _write(model: Any) -> str:
    """A few greedy tokens of the final model."""
    import torch

    ids = torch.tensor([model.tokenizer(PROMPT)["input_ids"]])
    return str(model.tokenizer.decode(model.generate(ids, max_new_tokens=24)[0], skip_special_tokens=True))
