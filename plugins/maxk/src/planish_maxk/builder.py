"""Saves rewritten networks as what they were before, with k beside; rebuilding rewrites again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.artifact import get_builder
from planish.errors import ArtifactError
from planish.model import Architecture, TorchModel
from planish.weights import Counts
from planish_maxk.rewrite import Rewritten

if TYPE_CHECKING:
    from torch import nn

NAME = "maxk"


class MaxKModel(TorchModel):
    """A rewritten network and the builder of the network underneath."""

    module: Rewritten

    def __init__(self, module: Rewritten, base: str, inner: TorchModel) -> None:
        super().__init__(module, NAME, inner.tokenizer, inner.storage, inner.patches)
        self.base = base

    def unwrapped(self) -> TorchModel:
        """The network underneath, ReLUs in place, as its own builder knows it."""
        return TorchModel(self.module.net, self.base, self.tokenizer, self.storage, self.patches)


class MaxKBuilder:
    """Delegates weights to the builder of the network underneath: an artifact names builders, never import paths."""

    def save(self, model: MaxKModel, folder: Path) -> Architecture:
        inner = get_builder(model.base).save(model.unwrapped(), folder)
        return {"base": model.base, "k": model.module.k, "network": inner}

    def load(
        self, folder: Path, architecture: Architecture, device: str, given: nn.Module | None = None
    ) -> MaxKModel:
        """Raises ArtifactError for a damaged description, and what the builder underneath raises."""
        base, k, network = self._read(folder, architecture)
        inner = get_builder(base).load(folder, network, device, given)
        return MaxKModel(Rewritten(inner.module, k).train(inner.module.training), base, inner)

    def count(self, folder: Path, architecture: Architecture) -> Counts:
        base, _, network = self._read(folder, architecture)
        return get_builder(base).count(folder, network)

    def _read(self, folder: Path, architecture: Architecture) -> tuple[str, int, Any]:
        base, k, network = (architecture.get(name) for name in ("base", "k", "network"))
        if not isinstance(base, str) or base == NAME or not isinstance(k, int) or not 1 <= k <= 65536:
            raise ArtifactError(f"{folder}: not a network rewritten by maxk (base {base!r}, k {k!r})")
        return base, k, network
