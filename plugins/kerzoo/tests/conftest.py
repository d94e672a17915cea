"""Shared inputs of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("PLANISH_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with test models and texts that lies beside the checkout."""
    if not (SHARED / "models" / "stories260k" / "model.safetensors").is_file():
        pytest.skip(
            f"the trained test model is not at {SHARED.name}/models/stories260k (PLANISH_SHARED names the folder)"
        )
    return SHARED
