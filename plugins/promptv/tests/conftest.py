"""Shared inputs of the tests."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `promptv_designs` sits beside the tests

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("PLANISH_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def verilog_data() -> Path:
    """The folder with the Verilog benchmarks that lies beside the checkout."""
    folder = SHARED / "data" / "verilog"
    if not (folder / "verilogeval_v2.jsonl.gz").is_file():
        pytest.skip(f"the benchmarks are not at {SHARED.name}/data/verilog (PLANISH_SHARED names the folder)")
    return folder


@pytest.fixture(scope="session")
def iverilog() -> None:
    """Skips where Icarus Verilog is missing."""
    if shutil.which("iverilog") is None:
        pytest.skip("iverilog is not installed: apt-get install iverilog")


@pytest.fixture(scope="session")
def simulator(iverilog: None) -> Iterator[object]:
    """One simulator for the tests of the loop."""
    from planish_promptv.harness import SandboxError, Simulator

    try:
        made = Simulator(slots=2)
    except SandboxError as error:
        pytest.skip(f"no sandbox works here: {error}")
    with made:
        yield made
