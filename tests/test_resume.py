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

pytestmark = [pytest.mark.slow, pytest.mark.model]

RECIPE = """
planish: 1
source: testbed:lm
stages:
  - ace: {sparsity: 0.5, nsamples: 8, seqlen: 64}
  - onnx: {quantize: int8}
"""


def start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "planish.cli.app", "run", recipe, "--out", out, "--measure", "none", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(recipe: Path, out: Path) -> str:
    process = start(recipe, out)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return str(json.loads(output)["digest"])


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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("resume") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def whole(recipe: Path) -> str:
    """Digest of a run that nobody disturbed."""
    return finish(recipe, recipe.parent / "whole")


def test_killed_inside_a_stage(recipe: Path, whole: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(recipe, out, '"done": 2')
    assert next(path.name for path in out.glob("01-*")).endswith(".tmp")
    assert finish(recipe, out) == whole
    (record,) = [json.loads(path.read_text()) for path in out.glob("01-*/record.json")]
    assert record["resumed_units"] >= 2


def test_killed_between_stages(recipe: Path, whole: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    kill_when(recipe, out, '"02 onnx"')
    (first,) = [path for path in out.glob("01-*") if path.suffix != ".tmp"]
    written = (first / "record.json").stat().st_mtime_ns
    assert finish(recipe, out) == whole
    assert (first / "record.json").stat().st_mtime_ns == written, "the finished stage was run again"
