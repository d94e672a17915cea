"""Handwritten digits, 8x8 pixels: the UCI test set that scikit-learn carries (`sklearn.datasets.load_digits`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .hashing import sha256_of

if TYPE_CHECKING:
    import torch

CLASSES = 10


@dataclass(frozen=True)
class Digits:
    """1,797 grey images, `images` [N, 1, 8, 8] float32 in [0, 1], `labels` [N] int64 in 0..9.

    The split goes by index: of every ten images the fifth and the tenth are test, the ninth is validation.
    """

    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    @cached_property
    def test_mask(self) -> NDArray[np.bool_]:
        return np.asarray(np.arange(len(self.labels)) % 5 == 4)

    @cached_property
    def validation_mask(self) -> NDArray[np.bool_]:
        return np.asarray(np.arange(len(self.labels)) % 10 == 8)

    @cached_property
    def train_mask(self) -> NDArray[np.bool_]:
        return ~(self.test_mask | self.validation_mask)

    def tensors(self, mask: NDArray[np.bool_]) -> tuple[torch.Tensor, torch.Tensor]:
        """(images [n, 1, 8, 8] float32, labels [n] int64) of one split, copied."""
        import torch

        return torch.from_numpy(self.images[mask]), torch.from_numpy(self.labels[mask])

    def fingerprint(self) -> str:
        return sha256_of(images=self.images, labels=self.labels)


def load() -> Digits:
    """Read the digits from the installed scikit-learn; no network."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    return Digits(images, bunch.target.astype(np.int64))
