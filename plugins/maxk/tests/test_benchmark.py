"""The benchmark measures what it prints."""

from __future__ import annotations

import pytest

from planish_graph.generate import planted_communities
from planish_maxk import benchmark
from planish_maxk.accuracy import Setting


def test_accuracy_rows_and_curve(capsys: pytest.CaptureFixture[str]) -> None:
    data = planted_communities(150, 3, features=8)
    setting = Setting(width=16, blocks=1, epochs=15)
    rows = list(benchmark.accuracy_rows("toy", data, (2, 16), range(2), setting))
    assert [row.metric.split(", ")[2] for row in rows] == ["k = 2 of 16", "k = 16 of 16"]
    assert rows[0].peer_value == rows[1].peer_value
    assert rows[0].value != rows[1].value
    drawn = capsys.readouterr().err.splitlines()
    assert drawn[0] == "toy, sage, width 16: test accuracy over k"
    assert [line.split("#")[0].strip() for line in drawn[1:]] == ["ReLU", "k = 2", "k = 16"]
    again = list(benchmark.accuracy_rows("toy", data, (2, 16), range(2), setting))
    assert [row.value for row in again] == [row.value for row in rows], "one seed in, the same figure out"


def test_memory_rows_hold_their_bar() -> None:
    rows = list(benchmark._memory())
    held = [row for row in rows if row.bar]
    assert len(held) == 2 + 2 * 2 * 2, (
        "alone at two k; two networks at two k with half and everything recomputed"
    )
    assert all(row.holds for row in held)
    assert all(row.value < row.peer_value for row in rows)
    by_metric = {row.metric: row.value for row in rows}
    for kind in ("gcn", "sage"):
        kept = [
            by_metric[f"saved for backward, 4-layer 256-wide {kind}, {what} recomputed, k = 16, 500 nodes"]
            for what in ("nothing", "layers", "half", "everything")
        ]
        assert kept == sorted(kept, reverse=True)
