from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from planish.errors import DataError
from planish_testbed import nets, skeleton


def test_layout_and_tree() -> None:
    data = skeleton.generate(
        classes=3, train_subjects=2, test_subjects=1, clips_per_class=2, frames=20, people=2
    )
    assert data.clips.shape == (18, 3, 20, 25, 2)
    assert data.clips.dtype == np.float32
    assert data.clips.flags.c_contiguous
    assert np.isfinite(data.clips).all()
    assert data.edges.shape == (24, 2)
    assert sorted(data.edges[:, 0]) == list(range(1, 25))
    depth = skeleton.depths(skeleton.EDGES, 25)
    assert all(depth[child] == depth[parent] + 1 for child, parent in skeleton.EDGES)
    inputs, labels = data.tensors(data.test_mask)
    assert inputs.shape == (6, 3, 20, 25, 2)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_subjects_are_disjoint_and_balanced() -> None:
    data = skeleton.generate()
    assert not set(data.subjects[data.train_mask]) & set(data.subjects[data.test_mask])
    assert (data.train_mask ^ data.test_mask).all()
    assert len(set(np.bincount(data.labels))) == 1


def test_a_subject_does_not_depend_on_how_many_there_are() -> None:
    few, many = skeleton.generate(train_subjects=2, test_subjects=1), skeleton.generate(train_subjects=5)
    assert np.array_equal(few.clips[few.subjects == 2], many.clips[many.subjects == 2])


def test_seed_decides_every_byte() -> None:
    one, same, other = (skeleton.generate(train_subjects=2, seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


@settings(max_examples=30, deadline=None)
@given(classes=st.integers(2, 20), overlap=st.floats(0, 1), seed=st.integers(0, 99))
def test_actions_are_as_described(classes: int, overlap: float, seed: int) -> None:
    actions = skeleton.draw_actions(classes, overlap, 25, seed)
    length = np.linalg.norm(actions.swing, axis=-1)
    active = length > 0
    assert not active[:, 0].any()
    assert ((length[active] >= 0.1 - 1e-9) & (length[active] <= 0.25 + 1e-9)).all()
    assert actions.frequency.min() == 0.5
    assert actions.frequency.max() == 3.0
    assert active.sum(1).max() <= 5
    assert active.sum(1).min() >= 3
    for before, after in itertools.pairwise(active):
        expected = min(round(overlap * after.sum()), before.sum())
        assert (before & after).sum() == expected


def test_motion_is_the_sinusoid_of_its_class() -> None:
    """Without noise the active joints, and no others, move relative to the root, at the frequency of the class."""
    data = skeleton.generate(classes=4, train_subjects=3, clips_per_class=1, frames=600, noise=0, dropped=0)
    actions = skeleton.draw_actions(4, 0.25, 25, 0)
    for clip, label in zip(data.clips[..., 0], data.labels, strict=True):
        moving = np.ptp(clip, axis=1).max(0) > 1e-4
        assert np.array_equal(moving, np.linalg.norm(actions.swing[label], axis=-1) > 0)
        signal = clip[:, :, moving][0] - clip[:, :, moving][0].mean(0)
        peak = np.abs(np.fft.rfft(signal, axis=0)).sum(1)[1:].argmax() + 1
        measured = peak * skeleton.FRAMES_PER_SECOND / 600
        assert 0.78 * actions.frequency[label] < measured < 1.27 * actions.frequency[label]


def test_dropped_joints_hold_their_value() -> None:
    clips = skeleton.generate(train_subjects=2, dropped=0.3, noise=0.01).clips
    held = (np.diff(clips, axis=2) == 0).all(1)
    assert abs(held.mean() - 0.3) < 0.01
    assert not (np.diff(skeleton.generate(train_subjects=2, dropped=0).clips, axis=2) == 0).all(1).any()


def probe(data: skeleton.Skeletons) -> float:
    """Logistic regression on how much each joint moves, which no view or start changes much."""
    features = data.clips[..., 0].std(2).reshape(len(data.clips), -1) * 20
    model = LogisticRegression(max_iter=500).fit(features[data.train_mask], data.labels[data.train_mask])
    return float(model.score(features[data.test_mask], data.labels[data.test_mask]))


def test_linear_probe_learns_and_overlap_makes_it_harder() -> None:
    easy, hard = probe(skeleton.generate(overlap=0.0)), probe(skeleton.generate(overlap=1.0))
    assert easy > 0.8
    assert hard < easy - 0.3


def test_reference_network_learns_from_other_subjects() -> None:
    data = skeleton.generate(classes=4, clips_per_class=6, frames=32)
    torch.manual_seed(0)
    net = nets.STGCN(torch.from_numpy(data.edges), 4, channels=(8, 16))
    accuracy = nets.fit_skeleton(net, data, epochs=12)
    assert accuracy.total == 96
    assert accuracy.value > 0.8


def test_other_trees_are_taken_and_broken_ones_refused() -> None:
    data = skeleton.generate(edges=[(1, 0), (2, 1), (3, 1), (4, 3), (5, 4), (6, 5), (7, 0), (8, 7), (9, 8), (10, 9),
        (11, 10)], rest_pose=[(0.0, 0.1 * i, 0.0) for i in range(12)], overlap=0)  # fmt: skip
    assert data.clips.shape[3] == 12
    pose = [(0.0, 0.0, 0.0)] * 3
    with pytest.raises(DataError, match="edges: joint 1 is on a cycle; valid: a tree with root 0"):
        skeleton.generate(edges=[(1, 2), (2, 1)], rest_pose=pose)
    with pytest.raises(DataError, match="edges: 1 pairs for 3 joints"):
        skeleton.generate(edges=[(1, 0)], rest_pose=pose)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"classes": 1}, "classes is 1; valid: 2 or more"),
        ({"frames": 1}, "frames is 1; valid: 2 or more"),
        ({"overlap": -0.1}, "overlap is -0.1; valid: 0 to 1"),
        ({"noise": -1.0}, "noise is -1.0; valid: 0 or more"),
        ({"dropped": 1.0}, "dropped is 1.0; valid: 0 to below 1"),
    ],
)
def test_bad_settings_are_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        skeleton.generate(**setting)  # type: ignore[arg-type]
