"""The benchmark yields rows that were measured."""

from __future__ import annotations

import pytest

from planish_graph import benchmark


@pytest.mark.slow
def test_rows() -> None:
    rows = list(benchmark.rows(quick=True))
    assert any("segments" in row.metric for row in rows)
    chosen = [row for row in rows if row.metric.startswith("SpMM by choice")]
    assert chosen
    assert all(row.holds for row in chosen), "the choice is never slower than a candidate it measured"
    assert all(row.value > 0 and row.peer_value > 0 for row in rows)
