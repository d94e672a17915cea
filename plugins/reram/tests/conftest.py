"""Shared inputs of the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("PLANISH_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def encoder() -> Path:
    """The linear layers of a trained BERT-tiny, beside the checkout."""
    folder = SHARED / "models" / "bert-tiny-sst2-encoder"
    if not folder.is_dir():
        pytest.skip(
            f"the trained matrices are not at {folder.parent.name}/{folder.name} (PLANISH_SHARED names the folder)"
        )
    return folder
