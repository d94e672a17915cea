"""The examples run, each in a folder of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAMS = {"promptv_hardware": ("iverilog", "yosys", "bwrap")}

pytestmark = [pytest.mark.slow, pytest.mark.model]


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(script: Path, tmp_path: Path) -> None:
    assert len(script.read_text().splitlines()) <= 40
    if missing := [name for name in PROGRAMS.get(script.stem, ()) if not shutil.which(name)]:
        pytest.skip(f"needs the program {missing[0]}")
    done = subprocess.run(
        [sys.executable, script, tmp_path / "run"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "verdict" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()


def test_recipe_example_runs_on_the_real_model(
    shared: Path, planish: Callable[..., Any], tmp_path: Path
) -> None:
    recipe = (EXAMPLES / "stories260k.yaml").read_text().replace("../../shared", str(shared))
    (tmp_path / "stories.yaml").write_text(recipe)
    done = planish("run", tmp_path / "stories.yaml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "source, same backend" in done.stdout
    assert (tmp_path / "run" / "report.html").is_file()
