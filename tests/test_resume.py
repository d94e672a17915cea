"""Killed without warning, the same command finishes with the same bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from planish import recipe as recipes
from planish_sdk.testing.material import character_tokenizer, tiny_task

pytestmark = [pytest.mark.slow, pytest.mark.model]

STAGES = [
    {"ace": {"sparsity": 0.5, "nsamples": 32, "seqlen": 32}},
    {"onnx": {"quantize": "int8"}},
]


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "planish.cli.app", "run", recipe, "--out", out, "--measure", "none", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(recipe: Path, out: Path) -> str:
    """Run to the end, in this process: what has to be killed needs one of its own, and this one has done the imports."""
    pipeline, source = recipes.read(recipe)
    return pipeline.run(source, out, measure="none").artifact.digest


def kill_when(recipe: Path, out: Path, text: str) -> None:
    """Start the run and kill it with SIGKILL as soon as its events show ``text``."""
    process = start(recipe, out)
    events = out / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if events.is_file() and text in events.read_text():
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return
        time.sleep(0.01)
    raise AssertionError(
        f"the run ended before its events showed {text!r}: {process.communicate()[1][-2000:]}"
    )


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe over three blocks, wide enough that a stage can be killed between two of them."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4
    )
    for part in (LlamaForCausalLM(config), character_tokenizer()):
        part.save_pretrained(tmp_path / "model")
    text = {"kind": "language-modelling", **tiny_task().model_dump(mode="json", exclude_none=True)}
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"planish": 1, "source": str(tmp_path / "model"), "task": text, "stages": STAGES})
    )
    return path


def test_killed_inside_a_stage_and_then_between_stages(recipe: Path, tmp_path: Path) -> None:
    whole = finish(recipe, tmp_path / "whole")  # nobody disturbs this one
    out = tmp_path / "run"
    kill_when(recipe, out, '"done": 2')
    assert next(path.name for path in out.glob("01-*")).endswith(".tmp")
    kill_when(recipe, out, '"02 onnx"')
    (first,) = [path for path in out.glob("01-*") if path.suffix != ".tmp"]
    assert json.loads((first / "record.json").read_text())["resumed_units"] >= 2
    written = (first / "record.json").stat().st_mtime_ns
    assert finish(recipe, out) == whole
    assert (first / "record.json").stat().st_mtime_ns == written, "the finished stage was run again"
