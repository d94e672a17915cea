"""The loop of the public MeZO code, restated step by step to be timed beside ours.

After princeton-nlp/MeZO: a seed from numpy; four passes over the named parameters, each drawing a full-size normal tensor
and replacing ``param.data``; the projected gradient read with ``.item()``. The words are ours, the operations are its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn


class MeZOLoop:
    """``step(closure)`` as MeZO's trainer does it, without weight decay."""

    def __init__(self, model: nn.Module, lr: float, eps: float) -> None:
        self.model, self.lr, self.eps = model, lr, eps
        self.named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.seed = 0

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        self.seed = int(np.random.randint(1_000_000_000))
        self._perturb(1)
        first = self._forward(closure)
        self._perturb(-2)
        second = self._forward(closure)
        projected = ((first - second) / (2 * self.eps)).item()
        self._perturb(1)
        self._update(projected)
        return first

    def _forward(self, closure: Callable[[], Tensor]) -> Tensor:
        self.model.eval()
        with torch.inference_mode():
            return closure().detach()

    def _perturb(self, factor: float) -> None:
        torch.manual_seed(self.seed)
        for _, p in self.named:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
            p.data = p.data + factor * z * self.eps

    def _update(self, projected: float) -> None:
        torch.manual_seed(self.seed)
        for _, p in self.named:
            z = torch.normal(mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype)
            p.data = p.data - self.lr * (projected * z)
