"""The main job: prune, export, quantise, run in ONNX Runtime, and print what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.slow

DENSE, MASKED, PAIRS = "dense, ONNX", "50 % unstructured, ONNX", "2:4, ONNX"
SMALL, INT8, BEST = "structured, ONNX", "dense, int8 ONNX", "structured, int8 ONNX"


@pytest.fixture(scope="module")
def rows(demo: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["label"]: row for row in demo["rows"]}


def perplexity(row: dict[str, Any]) -> float:
    return next(m["value"] for m in row["quality"] if m["name"] == "perplexity")


def sparsity(row: dict[str, Any], part: str) -> list[float]:
    layers = {name: pair for name, pair in row["counts"]["layers"].items() if part in name}
    assert layers, f"no layer {part} among {list(row['counts']['layers'])}"
    return [1 - nonzeros / size for size, nonzeros in layers.values()]


def test_masks_leave_the_size_alone_and_structured_pruning_does_not(rows: dict[str, Any]) -> None:
    assert rows[MASKED]["counts"]["parameters"] == rows[DENSE]["counts"]["parameters"]
    assert rows[PAIRS]["counts"]["parameters"] == rows[DENSE]["counts"]["parameters"]
    assert rows[SMALL]["counts"]["parameters"] < 0.75 * rows[DENSE]["counts"]["parameters"]


@pytest.mark.parametrize("label", [MASKED, PAIRS])
def test_half_of_every_pruned_matrix_is_zero_in_the_exported_file(rows: dict[str, Any], label: str) -> None:
    assert sparsity(rows[label], "layers.0.mlp.down_proj") == pytest.approx([0.5], abs=0.01)
    assert max(sparsity(rows[label], "embed_tokens")) < 0.01


def test_smaller_on_disk(rows: dict[str, Any]) -> None:
    size = {label: row["size"] for label, row in rows.items()}
    assert size[BEST] < size[INT8] < size[DENSE]
    assert size[BEST] < size[SMALL] < size[DENSE]
    assert size[BEST] < size["dense, torch"]


def test_quality_is_measured_for_every_row_and_in_a_sane_order(rows: dict[str, Any]) -> None:
    found = {label: perplexity(row) for label, row in rows.items()}
    assert all(math.isfinite(value) and value > 1 for value in found.values())
    assert found[DENSE] == pytest.approx(found["dense, torch"], rel=1e-4)
    assert found[DENSE] < found[MASKED] < found[PAIRS]
    assert found[INT8] == pytest.approx(found[DENSE], rel=0.05)


def test_every_latency_has_a_spread_and_a_mask_is_never_called_smaller(rows: dict[str, Any]) -> None:
    for row in rows.values():
        assert row["latency"]["repeats"] > 5
        assert row["latency"]["spread"] is not None
    for label in (MASKED, PAIRS):
        low = rows[label]["speedup"][1]
        assert rows[label]["verdict"] == ("faster" if low > 1.05 else "masked only")


def test_the_result_writes_text_and_the_report_shows_every_row(
    demo: dict[str, Any], rows: dict[str, Any]
) -> None:
    assert len(demo["sample"].split()) > 6
    page = (demo["out"] / "report.html").read_text()
    for row in rows.values():
        assert f"{row['size'] / 1e6:.2f} MB" in page
        assert f"{perplexity(row):.2f}" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_folder_shows_the_figures_again(demo: dict[str, Any], planish: Callable[..., Any]) -> None:
    shown = json.loads(planish("show", demo["out"], "--json").stdout)
    assert shown["rows"] == demo["rows"]


def test_progress_comes_as_plain_lines_without_a_terminal(demo: dict[str, Any]) -> None:
    assert "\x1b" not in demo["log"]
    assert "01 ace" in demo["log"]
