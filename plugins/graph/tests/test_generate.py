"""Generators keep their promises; real files are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from planish.errors import DataError
from planish_graph.files import read_labelled
from planish_graph.generate import from_degrees, histogram_degrees, lognormal_degrees, planted_communities


def test_stand_in_has_the_degrees_and_the_locality_asked_for() -> None:
    degrees = lognormal_degrees(5000, 60_000, 900, 1.3)
    assert abs(int(degrees.sum()) - 60_000) < 600
    assert degrees.min() >= 1
    assert degrees.max() <= 900
    graph = from_degrees(degrees, seed=1)
    assert torch.equal(graph.degrees, degrees)
    assert graph.indptr.dtype == torch.int32
    incoming = torch.bincount(graph.indices, minlength=5000).double()
    correlation = torch.corrcoef(torch.stack([incoming, degrees.double()]))[0, 1]
    assert correlation > 0.9, "columns are drawn in proportion to degree"
    for locality, low, high in ((0.0, 0.0, 0.1), (0.5, 0.5, 0.6)):
        local = from_degrees(degrees, locality=locality, block=250)
        share = (local.rows // 250 == local.indices // 250).float().mean()
        assert low <= share <= high
    again = from_degrees(degrees, seed=1)
    assert torch.equal(again.indices, graph.indices)
    assert not torch.equal(from_degrees(degrees, seed=2).indices, graph.indices)
    assert from_degrees(torch.zeros(3, dtype=torch.int64)).num_edges == 0


def test_histogram_stand_in(graphs: Path) -> None:
    degrees = histogram_degrees(graphs / "degree_histograms.npz", "pubmed")
    assert (len(degrees), int(degrees.sum()), int(degrees.max())) == (19_717, 99_203, 171)
    with pytest.raises(DataError, match="'reddit' is not one of"):
        histogram_degrees(graphs / "degree_histograms.npz", "reddit")


def test_planted_communities() -> None:
    made = planted_communities(1200, 6, average_degree=12, homophily=0.75, seed=3)
    graph = made.graph
    dense = graph.to_dense()
    assert torch.equal(dense, dense.T)
    assert dense.diagonal().sum() == 0
    assert dense.max() == 1
    assert 0.95 * 12 * 1200 <= graph.num_edges <= 12 * 1200
    inside = (made.y[graph.rows.long()] == made.y[graph.indices.long()]).float().mean()
    assert abs(inside - 0.75) < 0.03
    assert (made.train.int() + made.validation.int() + made.test.int() == 1).all()
    assert torch.equal(planted_communities(1200, 6, average_degree=12, homophily=0.75, seed=3).x, made.x)
    nearest = torch.cdist(made.x, torch.stack([made.x[made.y == c].mean(0) for c in range(6)])).argmin(1)
    assert (nearest == made.y).float().mean() > 1 / 6, "features tell something of the label"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: planted_communities(10, 1), "communities = 1; valid: 2 to 10"),
        (lambda: planted_communities(homophily=2), "homophily = 2"),
        (lambda: planted_communities(10, 2, average_degree=10), "average_degree = 10"),
        (lambda: from_degrees(torch.tensor([1, -1])), "no negative numbers"),
        (lambda: from_degrees(torch.tensor([1]), locality=1.5), "locality = 1.5"),
        (lambda: from_degrees(torch.tensor([1]), block=0), "block = 0"),
        (lambda: lognormal_degrees(10, 5, 3, 1.0), "nodes <= entries"),
    ],
)
def test_bad_parameters_are_one_line(call: object, text: str) -> None:
    with pytest.raises(DataError, match=text):
        call()  # type: ignore[operator]


def test_real_graphs_are_read(graphs: Path) -> None:
    cora = read_labelled(graphs / "cora.npz")
    assert (cora.graph.num_rows, cora.graph.num_edges, cora.classes) == (2708, 10_556, 7)
    assert cora.x.shape == (2708, 1433)
    assert set(cora.x.unique().tolist()) == {0.0, 1.0}
    dense = cora.graph.to_dense()
    assert torch.equal(dense, dense.T)
    assert not (cora.train & cora.test).any()
    sparse = read_labelled(graphs / "cora.npz", dense=False)
    assert torch.equal(sparse.x.to_dense(), cora.x)
    assert read_labelled(graphs / "pubmed.npz").x.shape == (19_717, 0)


def test_bad_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz"):
        read_labelled(tmp_path / "none.npz")
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="damaged"):
        read_labelled(tmp_path / "damaged.npz")
    np.savez(tmp_path / "part.npz", indptr=np.zeros(1))
    with pytest.raises(DataError, match="no array 'indices'"):
        read_labelled(tmp_path / "part.npz")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"single\.npy: no \.npz archive"):
        read_labelled(tmp_path / "single.npy")
    sound = {
        "indptr": [0, 1, 2],
        "indices": [0, 1],
        "labels": [0, 1],
        "train_idx": [0],
        "val_idx": [1],
        "test_idx": [1],
    }
    for change, text in (
        ({"labels": [0]}, r"labels have the shape \[1\]; valid: \[2\]"),
        ({"labels": ["a", "b"]}, "labels is <U1; valid: numbers"),
        ({"val_idx": [1, -1]}, "val_idx: node -1; valid: 0 to 1"),
        ({"x_indptr": [0, 1, 2]}, "no array 'x_indices'"),
    ):
        np.savez(tmp_path / "changed.npz", **{**sound, **change})  # type: ignore[arg-type]
        with pytest.raises(DataError, match=text):
            read_labelled(tmp_path / "changed.npz")
