"""What tests across distributions share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def planish() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own."""

    def run(
        *arguments: str | Path, cwd: Path | None = None, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "planish.cli.app", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, **environment},
            timeout=900,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real models and data kept beside the checkout; tests that need them are skipped where they are absent."""
    folder = Path(os.environ.get("PLANISH_SHARED", ROOT.parent / "shared"))
    if not (folder / "models" / "stories260k").is_dir():
        pytest.skip(f"no real models and data in {folder} (set PLANISH_SHARED)")
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory, planish: Callable[..., Any]) -> dict[str, Any]:
    """The demo, run once."""
    out = tmp_path_factory.mktemp("demo")
    done = planish("demo", "--out", out, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "out": out, "log": done.stderr}
