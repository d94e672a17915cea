"""The conformance suite of the stage: `planish check planish-promptv`."""

from __future__ import annotations

from typing import Any

from planish_sdk.testing import MethodSuite


class TestPromptv(MethodSuite):
    method = "promptv"
    options = {"vectors": 64}
    selects = True
    seeded = True  # the vectors are drawn with the seed

    def model(self, name: str) -> Any:
        """A tiny decoder pruned to 2:4, because an N:M unit needs such a layer."""
        import torch

        found = super().model(name)
        with torch.no_grad():
            for layer in found.module.modules():
                if isinstance(layer, torch.nn.Linear) and layer is not found.module.get_output_embeddings():
                    groups = layer.weight.view(-1, 4)
                    groups.scatter_(1, groups.abs().topk(2, dim=1, largest=False).indices, 0.0)
        return found
