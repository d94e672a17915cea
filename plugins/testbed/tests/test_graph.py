from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from planish.errors import DataError
from planish_testbed import graph, nets


def homophily_of(data: graph.Graph) -> float:
    source, target = data.edge_index
    return float((data.labels[source] == data.labels[target]).mean())


@settings(max_examples=25, deadline=None)
@given(
    nodes=st.integers(40, 400),
    classes=st.integers(2, 6),
    degree=st.floats(1, 5),
    homophily=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_edges_are_simple_symmetric_and_counted(
    nodes: int, classes: int, degree: float, homophily: float, seed: int
) -> None:
    data = graph.generate(nodes, classes, degree, homophily, seed=seed)
    source, target = data.edge_index
    assert data.edge_index.dtype == np.int64
    assert len(source) == 2 * round(nodes * degree / 2)
    assert (source != target).all()
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert len(pairs) == len(source)
    assert all((b, a) in pairs for a, b in pairs)
    assert data.edge_index.min() >= 0
    assert data.edge_index.max() < nodes


def test_degrees_have_the_power_law_tail() -> None:
    """Hill's estimate over the upper 2 % is near the exponent asked for; a Poisson graph would give over 10."""
    for exponent in (2.5, 3.5):
        degrees = np.sort(graph.generate(50_000, 5, 20.0, exponent=exponent).degrees())[::-1]
        top = degrees[:1000].astype(float)
        hill = 1 + 1 / np.mean(np.log(top / top[-1]))
        assert abs(hill - exponent) < 0.6
    assert degrees.mean() == 20


def test_homophily_follows_the_setting() -> None:
    measured = [homophily_of(graph.generate(20_000, 5, 10.0, h)) for h in (0.0, 0.2, 0.5, 0.9)]
    assert np.allclose(measured, (0.0, 0.2, 0.5, 0.9), atol=0.03)
    assert measured[0] == 0


def test_masks_partition_the_nodes_with_the_shares() -> None:
    data = graph.generate(1000, train_share=0.6, validation_share=0.1)
    masks = np.stack([data.train_mask, data.validation_mask, data.test_mask])
    assert (masks.sum(0) == 1).all()
    assert masks.sum(1).tolist() == [600, 100, 300]


def test_seed_decides_every_byte() -> None:
    assert graph.generate(500, seed=1).fingerprint() == graph.generate(500, seed=1).fingerprint()
    assert graph.generate(500, seed=1).fingerprint() != graph.generate(500, seed=2).fingerprint()


def test_propagation_is_the_normalised_adjacency() -> None:
    data = graph.generate(nodes=60, classes=3, feature_dim=4, average_degree=5)
    edges, x = torch.from_numpy(data.edge_index), torch.from_numpy(data.features)
    found = nets.propagate(x, edges, nets.degree_scale(edges, data.nodes))
    assert torch.allclose(found, data.normalised_adjacency() @ x, atol=1e-5)


def test_csr_and_normalised_adjacency_agree_with_dense() -> None:
    data = graph.generate(60, 3, 4.0)
    offsets, columns = data.csr()
    dense = torch.zeros(60, 60)
    for node in range(60):
        dense[node, columns[offsets[node] : offsets[node + 1]]] = 1
    assert torch.equal(dense, dense.T)
    dense += torch.eye(60)
    scale = dense.sum(1) ** -0.5
    assert torch.allclose(data.normalised_adjacency().to_dense(), scale[:, None] * dense * scale, atol=1e-6)


def probe(data: graph.Graph) -> float:
    model = LogisticRegression(max_iter=500).fit(data.features[data.train_mask], data.labels[data.train_mask])
    return float(model.score(data.features[data.test_mask], data.labels[data.test_mask]))


def test_features_carry_the_class_as_strongly_as_asked() -> None:
    none, weak, strong = (probe(graph.generate(signal=signal)) for signal in (0.0, 1.0, 4.0))
    assert none < 0.3
    assert 0.35 < weak < 0.7
    assert strong > 0.95


def test_gcn_gains_from_the_structure() -> None:
    data = graph.generate()
    torch.manual_seed(0)
    accuracy = nets.fit_graph(nets.GCN(32, 5), data)
    assert accuracy.total == data.test_mask.sum()
    assert accuracy.value > probe(data) + 0.2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classes": 1}, "classes is 1; valid: 2 or more"),
        ({"nodes": 10}, "nodes is 10; valid: 4 or more a class"),
        ({"average_degree": 900}, "average_degree is 900; valid: above 0, at most nodes / 8"),
        ({"homophily": 1.5}, "homophily is 1.5; valid: 0 to 1"),
        ({"exponent": 1.0}, "exponent is 1.0; valid: above 1"),
        ({"train_share": 0.9}, "validation_share is 0.25; valid: 0 to 1 - train_share"),
        (
            {"nodes": 400, "classes": 100, "average_degree": 20, "homophily": 1.0},
            "average_degree asks for 4000 edges",
        ),
    ],
)
def test_bad_settings_are_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        graph.generate(**setting)  # type: ignore[arg-type]
