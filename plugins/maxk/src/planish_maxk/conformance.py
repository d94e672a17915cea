"""The conformance suite of this rewriter: `planish check planish-maxk`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planish.artifact import Artifact
from planish.errors import PlanishError
from planish.runner import in_memory
from planish.source import Source, open_source
from planish.tasks import NodeClassification
from planish_sdk.testing import MethodSuite


class TestMaxK(MethodSuite):
    method = "maxk"
    options = {"k": 8, "epochs": 25, "timing_rounds": 0}
    models = ("graph",)
    expected = 8.0
    units = True
    seeded = True

    def model(self, name: str) -> Any:
        source = _source()
        return in_memory(source.module, None)  # type: ignore[arg-type]

    def task(self, name: str, folder: Path) -> NodeClassification:
        """A small graph with the features and classes that the network was made for."""
        import numpy

        from planish_graph.generate import planted_communities

        made = planted_communities(300, 5, features=32)
        masks = {"train_mask": made.train, "val_mask": made.validation, "test_mask": made.test}
        edges = numpy.stack([made.graph.indices.numpy(), made.graph.rows.numpy()])
        arrays = {"x": made.x, "edge_index": edges, "y": made.y, **masks}
        numpy.savez(folder / "graph.npz", **arrays)  # type: ignore[arg-type]
        return NodeClassification.model_validate({"data": {"path": folder / "graph.npz"}})

    def change(self, before: Artifact, after: Artifact) -> float:
        """Entries kept in every row."""
        return float(after.architecture["k"])


def _source() -> Source:
    """The testbed's graph network, if the testbed is installed."""
    try:
        return open_source("testbed:graph")
    except PlanishError as error:
        pytest.skip(f"needs planish-testbed: {error}")
