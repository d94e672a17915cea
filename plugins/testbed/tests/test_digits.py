from __future__ import annotations

import numpy as np
import pytest
import torch

from planish_testbed import digits, nets


def test_shapes_range_and_fingerprint() -> None:
    data = digits.load()
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.images.dtype == np.float32
    assert (data.images.min(), data.images.max()) == (0, 1)
    assert set(data.labels) == set(range(10))
    assert data.fingerprint() == digits.load().fingerprint()
    changed = digits.Digits(data.images, np.roll(data.labels, 1))
    assert changed.fingerprint() != data.fingerprint()


def test_split_is_a_partition_with_every_class() -> None:
    data = digits.load()
    masks = np.stack([data.train_mask, data.validation_mask, data.test_mask])
    assert (masks.sum(0) == 1).all()
    assert masks.sum(1).tolist() == [1259, 179, 359]
    for mask in masks:
        images, labels = data.tensors(mask)
        assert images.shape == (mask.sum(), 1, 8, 8)
        assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize(("network", "bar"), [(nets.DigitsMLP, 0.94), (nets.DigitsCNN, 0.97)])
def test_reference_networks_learn(network: type[torch.nn.Module], bar: float) -> None:
    torch.manual_seed(0)
    accuracy = nets.fit_digits(network(), digits.load())
    assert accuracy.total == 359
    assert accuracy.value > bar


def test_training_is_reproducible_and_leaves_the_generator() -> None:
    data = digits.load()
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(3)
        net = nets.DigitsMLP(hidden=16)
        before = torch.get_rng_state()
        nets.fit_digits(net, data, epochs=1, seed=seed)
        assert torch.equal(before, torch.get_rng_state())
        weights.append(net[1].weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
