"""``planish bench onnx``: ONNX Runtime beside torch eager, int8 beside float32, the KV cache beside none."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path

from planish import measure, timing
from planish.bench import Row
from planish.compare import Row as Measured
from planish.errors import PlanishError
from planish.pipeline import Pipeline
from planish.source import Source, open_source
from planish_onnx.cached import export_cached
from planish_onnx.session import OnnxModel

COMMAND = "planish bench onnx"
NEW_TOKENS = 64


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Size, quality and speed on the embedded language model; ``quick`` leaves out text generation."""
    source = open_source("testbed:lm")
    if source.artifact is None or source.task is None:
        raise PlanishError("benchmark onnx: the source testbed:lm brings no model or no task")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        exact = Pipeline().then("onnx").run(source, out / "float", device="cpu")
        small = (
            Pipeline().then("onnx", quantize="int8").run(source, out / "int8", device="cpu", reference=False)
        )
        torch_row, float_row = exact.rows
        int8_row = small.rows[-1]
        yield _row("latency of float32", float_row, torch_row, "torch eager", ("<=", 1.0))
        yield _row("latency of int8", int8_row, small.rows[0], "torch eager", ("<=", 1.0))
        yield Row(
            "size on disk of int8", int8_row.size / 1e6, "MB", "float32 ONNX", float_row.size / 1e6,
            ("<=", 0.3), measure.device_name(), COMMAND,
        )  # fmt: skip
        quality, peer = int8_row.quality[0], float_row.quality[0]
        yield Row(
            "perplexity of int8", quality.value, "", "float32 ONNX", peer.value, ("<=", 1.02),
            measure.device_name(), COMMAND, quality.spread,
        )  # fmt: skip
        if not quick and importlib.util.find_spec("optimum"):
            yield _generation(source, exact.artifact.root, out / "cached")


def _row(metric: str, own: Measured, other: Measured, peer: str, bar: tuple[str, float]) -> Row:
    assert own.latency is not None
    assert other.latency is not None
    spread = 1e3 * own.latency.spread if own.latency.spread is not None else None
    return Row(
        metric, 1e3 * own.latency.value, "ms", peer, 1e3 * other.latency.value, bar,
        measure.device_name(), COMMAND, spread,
    )  # fmt: skip


def _generation(source: Source, plain: Path, folder: Path) -> Row:
    """Milliseconds a token of greedy generation, with the KV cache of optimum's export and without."""
    assert source.artifact is not None
    assert source.task is not None
    model = source.artifact.load()
    export_cached(model.module, folder)
    prompt = source.task.example(model)["input_ids"][:, :32]
    programs = {name: OnnxModel(path) for name, path in (("cached", folder), ("plain", plain))}
    timings = timing.interleaved(
        {
            name: (lambda program=program: program.generate(prompt, NEW_TOKENS))
            for name, program in programs.items()
        },
        rounds=7,
        warmup=1,
    )
    per_token = {name: 1e3 * taken.seconds.median / NEW_TOKENS for name, taken in timings.items()}
    return Row(
        f"generation of {NEW_TOKENS} tokens with a KV cache", per_token["cached"], "ms/token", "without a cache",
        per_token["plain"], ("<=", 1.0), measure.device_name(), COMMAND,
    )  # fmt: skip
