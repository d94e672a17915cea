"""Synthetic skeleton actions on a 25-joint tree, in the layout of ST-GCN: [N, C, T, V, M].

An action is a few joints that swing: joint j of class k moves by A_kj sin(2 pi f_k t - 0.2 depth(j)) along its own
direction. Subjects differ in size and tempo, clips in view, start and noise. Subjects of the two splits are disjoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planish.errors import DataError

from .hashing import sha256_of

if TYPE_CHECKING:
    import torch

# (child, parent), root 0, in the joint order of Kinect v2: spine base, spine mid, neck, head, left arm, right arm,
# left leg, right leg, spine shoulder, left hand tip and thumb, right hand tip and thumb.
EDGES: tuple[tuple[int, int], ...] = (
    (1, 0), (20, 1), (2, 20), (3, 2),
    (4, 20), (5, 4), (6, 5), (7, 6), (21, 7), (22, 7),
    (8, 20), (9, 8), (10, 9), (11, 10), (23, 11), (24, 11),
    (12, 0), (13, 12), (14, 13), (15, 14),
    (16, 0), (17, 16), (18, 17), (19, 18),
)  # fmt: skip

# Metres from the spine base to each joint of a standing person with arms hanging: right, up, forward.
REST_POSE: tuple[tuple[float, float, float], ...] = (
    (0.00, 0.00, 0.00), (0.00, 0.30, 0.00), (0.00, 0.58, 0.00), (0.00, 0.75, 0.02),
    (-0.18, 0.48, 0.00), (-0.23, 0.21, 0.00), (-0.25, -0.03, 0.03), (-0.25, -0.11, 0.04),
    (0.18, 0.48, 0.00), (0.23, 0.21, 0.00), (0.25, -0.03, 0.03), (0.25, -0.11, 0.04),
    (-0.09, -0.04, 0.00), (-0.11, -0.45, 0.01), (-0.12, -0.84, -0.02), (-0.12, -0.90, 0.11),
    (0.09, -0.04, 0.00), (0.11, -0.45, 0.01), (0.12, -0.84, -0.02), (0.12, -0.90, 0.11),
    (0.00, 0.50, 0.00), (-0.25, -0.19, 0.05), (-0.21, -0.13, 0.07), (0.25, -0.19, 0.05), (0.21, -0.13, 0.07),
)  # fmt: skip

FRAMES_PER_SECOND = 30.0
PHASE_LAG = 0.2  # radians a hop from the root


@dataclass(frozen=True)
class Skeletons:
    """Clips of skeleton actions.

    `clips` [N, C=3, T, V, M] float32 in metres, second coordinate vertical; `labels` [N] int64; `subjects` [N] int64;
    `edges` [V - 1, 2] int64 (child, parent); `train_mask` and `test_mask` [N] bool, disjoint in subjects.
    """

    clips: NDArray[np.float32]
    labels: NDArray[np.int64]
    subjects: NDArray[np.int64]
    edges: NDArray[np.int64]
    train_mask: NDArray[np.bool_]
    test_mask: NDArray[np.bool_]

    def tensors(self, mask: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        """(clips [n, 3, T, V, M] float32, labels [n] int64) of one split, copied."""
        import torch

        return torch.from_numpy(self.clips[mask]), torch.from_numpy(self.labels[mask])

    def fingerprint(self) -> str:
        return sha256_of(
            clips=self.clips,
            labels=self.labels,
            subjects=self.subjects,
            edges=self.edges,
            train_mask=self.train_mask,
            test_mask=self.test_mask,
        )


@dataclass(frozen=True)
class Actions:
    """What the classes are: `swing` [K, V, 3] metres (amplitude times direction) and `frequency` [K] hertz."""

    swing: NDArray[np.float64]
    frequency: NDArray[np.float64]


def generate(
    classes: int = 8,
    train_subjects: int = 12,
    test_subjects: int = 4,
    clips_per_class: int = 4,
    frames: int = 64,
    people: int = 1,
    overlap: float = 0.25,
    noise: float = 0.01,
    dropped: float = 0.05,
    edges: Sequence[tuple[int, int]] = EDGES,
    rest_pose: Sequence[tuple[float, float, float]] = REST_POSE,
    seed: int = 0,
) -> Skeletons:
    """Draw `clips_per_class` clips of every class for every subject.

    overlap: share of the active joints, with their swing, that a class takes over from the class before it. At 1 the
             classes differ in frequency alone.
    noise:   standard deviation of the joint positions, metres.
    dropped: probability that a joint keeps the position of the frame before.
    Raises DataError for values that make no data set.
    """
    _check(classes, train_subjects, test_subjects, clips_per_class, frames, people, overlap, noise, dropped)
    actions = draw_actions(classes, overlap, len(rest_pose), seed)
    lag = PHASE_LAG * depths(edges, len(rest_pose)).astype(np.float64)
    count = train_subjects + test_subjects
    clips = np.concatenate(
        [
            _subject_clips(
                actions,
                lag,
                np.asarray(rest_pose),
                (clips_per_class, frames, people),
                noise,
                dropped,
                np.random.default_rng([seed, 1, subject]),
            )
            for subject in range(count)
        ]
    )
    labels = np.tile(np.repeat(np.arange(classes), clips_per_class), count)
    subjects = np.repeat(np.arange(count), classes * clips_per_class)
    train = subjects < train_subjects
    return Skeletons(clips, labels, subjects, np.array(edges, dtype=np.int64), train, ~train)


def draw_actions(classes: int, overlap: float, joints: int, seed: int) -> Actions:
    """Three to five active joints a class, 0.1 to 0.25 m each, and frequencies spread over 0.5 to 3 Hz."""
    rng = np.random.default_rng([seed, 0])
    swing = np.zeros((classes, joints, 3))
    before = np.empty(0, dtype=np.int64)
    for index in range(classes):
        count = int(rng.integers(3, 6))
        kept = rng.permutation(before)[: round(overlap * count)]
        others = np.setdiff1d(np.arange(1, joints), before)
        fresh = rng.permutation(others)[: count - len(kept)] if overlap < 1 or index == 0 else others[:0]
        direction = rng.standard_normal((len(fresh), 3))
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        swing[index, kept] = swing[index - 1, kept]
        swing[index, fresh] = direction * rng.uniform(0.1, 0.25, (len(fresh), 1))
        before = np.concatenate([kept, fresh])
    return Actions(swing, rng.permutation(np.linspace(0.5, 3.0, classes)))


def depths(edges: Sequence[tuple[int, int]], joints: int) -> NDArray[np.int64]:
    """[V] int64, hops from the root (joint 0). Raises DataError where (child, parent) pairs are no tree."""
    parent = dict(edges)
    if len(edges) != joints - 1 or set(parent) != set(range(1, joints)):
        raise DataError(
            f"edges: {len(edges)} pairs for {joints} joints; valid: one (child, parent) pair a joint but 0"
        )
    depth = np.zeros(joints, dtype=np.int64)
    for joint in range(1, joints):
        walker = joint
        while walker != 0:
            walker = parent[walker]
            depth[joint] += 1
            if depth[joint] >= joints:
                raise DataError(f"edges: joint {joint} is on a cycle; valid: a tree with root 0")
    return depth


def _subject_clips(
    actions: Actions,
    lag: NDArray[np.float64],
    rest: NDArray[np.float64],
    shape: tuple[int, int, int],
    noise: float,
    dropped: float,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """[K * repeats, 3, T, V, M] float32: all clips of one subject, class by class."""
    repeats, frames, people = shape
    classes, joints = actions.swing.shape[:2]
    scale, speed = rng.uniform(0.85, 1.15), rng.uniform(0.8, 1.25)
    count = classes * repeats
    label = np.repeat(np.arange(classes), repeats)

    time = np.arange(frames) / FRAMES_PER_SECOND
    angle = 2 * np.pi * actions.frequency[label, None, None] * speed * time[:, None]  # [n, T, 1]
    start = rng.uniform(0, 2 * np.pi, (count, people, 1, 1))
    wave = np.sin(angle[:, None] + start - lag)  # [n, M, T, V]
    points = scale * (rest + wave[..., None] * actions.swing[label][:, None, None])  # [n, M, T, V, 3]

    view = np.deg2rad(rng.uniform(-45, 45, (count, 1, 1, 1)))
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    points = np.stack([x * np.cos(view) + z * np.sin(view), y, z * np.cos(view) - x * np.sin(view)], -1)
    points += rng.normal(0, noise, points.shape)

    missing = rng.random((count, people, frames, joints)) < dropped
    missing[:, :, 0] = False
    last_seen = np.maximum.accumulate(np.where(missing, 0, np.arange(frames)[:, None]), axis=2)
    points = np.take_along_axis(points, last_seen[..., None], axis=2)
    return np.ascontiguousarray(points.transpose(0, 4, 2, 3, 1), dtype=np.float32)


def _check(
    classes: int,
    train_subjects: int,
    test_subjects: int,
    clips_per_class: int,
    frames: int,
    people: int,
    overlap: float,
    noise: float,
    dropped: float,
) -> None:
    rules = [
        ("classes", classes, classes >= 2, "2 or more"),
        ("train_subjects", train_subjects, train_subjects >= 1, "1 or more"),
        ("test_subjects", test_subjects, test_subjects >= 1, "1 or more"),
        ("clips_per_class", clips_per_class, clips_per_class >= 1, "1 or more"),
        ("frames", frames, frames >= 2, "2 or more"),
        ("people", people, people >= 1, "1 or more"),
        ("overlap", overlap, 0 <= overlap <= 1, "0 to 1"),
        ("noise", noise, noise >= 0, "0 or more"),
        ("dropped", dropped, 0 <= dropped < 1, "0 to below 1"),
    ]
    for name, value, valid, choices in rules:
        if not valid:
            raise DataError(f"{name} is {value}; valid: {choices}")
