"""Killed runs (SIGKILL, as the kernel's out-of-memory killer sends it) go on with the same command and end in the
same bytes as a run that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planish import Artifact, recipe
from planish.record import Record

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe_file(fake_model: Path, tmp_path: Path) -> Path:
    from planish_fake.models import data

    np.savez(tmp_path / "data.npz", **{name: t.numpy() for name, t in data().items()})
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"source: {fake_model}\nseed: 3\n"
        "task: {kind: classification, data: {path: data.npz}, batch: 16}\n"
        "stages: [zero: {sparsity: 0.5}, jitter: {scale: 0.1}, pack]\n"
    )
    return path


def run(path: Path, out: Path, site: Path, kill: str = "") -> subprocess.CompletedProcess[str]:
    """``planish run`` as a user would call it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "planish.cli.app", "run", path, "--out", out, "--measure", "none", "--json"],
        env={**os.environ, "PYTHONPATH": str(site), "FAKE_KILL": kill, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_killed_inside_a_stage_and_between_stages(recipe_file: Path, tmp_path: Path, site: Path) -> None:
    pipeline, source = recipe.read(recipe_file)
    whole = pipeline.run(source, tmp_path / "whole", measure="none")
    out = tmp_path / "run"

    inside = run(recipe_file, out, site, kill="zero:2")
    assert inside.returncode == -signal.SIGKILL, inside.stderr
    (left,) = (p for p in out.iterdir() if p.is_dir())
    assert left.name == f"{whole.stages[0].name}.tmp"
    assert len(list(left.glob("units/*.safetensors"))) == 2

    between = run(recipe_file, out, site, kill="jitter:0")
    assert between.returncode == -signal.SIGKILL, between.stderr
    assert Record.read(out / whole.stages[0].name).resumed_units == 2
    assert Artifact.open(out / whole.stages[0].name).digest == Artifact.open(whole.stages[0]).digest
    assert (out / f"{whole.stages[1].name}.tmp").is_dir()

    last = run(recipe_file, out, site)
    assert last.returncode == 0, last.stderr
    assert json.loads(last.stdout)["digest"] == whole.artifact.digest
    assert [Record.read(out / p.name).resumed_units for p in whole.stages] == [2, 0, 0]
    assert [Record.read(out / p.name).facts for p in whole.stages] == [r.facts for r in whole.records]
    assert not list(out.glob("*.tmp"))
    assert "01 zero already done" in last.stderr
    for folder in whole.stages:
        assert Artifact.open(out / folder.name).digest == Artifact.open(folder).digest
