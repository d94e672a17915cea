"""Shared inputs of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("PLANISH_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def graphs() -> Path:
    """The folder with real graphs that lies beside the checkout."""
    folder = SHARED / "data" / "graphs"
    if not (folder / "cora.npz").is_file():
        pytest.skip(f"no real graphs in {SHARED.name}/data/graphs (PLANISH_SHARED names the folder)")
    return folder
