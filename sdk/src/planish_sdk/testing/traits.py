"""What may be expected of a method, where its author says nothing else: the usual of its kind."""

from __future__ import annotations

from dataclasses import dataclass

from planish.method import Kind


@dataclass(frozen=True, slots=True)
class Traits:
    """What a kind of method usually does.

    Attributes:
        units: it saves units, so that a killed run goes on inside the stage.
        selects: it picks layers of the model, and refuses a model that has none of them before any compute.
        runs: what it returns can be called with a batch.
        equivalent: largest difference of its logits from the source's, relative to the largest logit; None: any.
    """

    units: bool
    selects: bool
    runs: bool = True
    equivalent: float | None = None


USUAL: dict[Kind, Traits] = {
    "pruner": Traits(units=True, selects=True),
    "optimizer": Traits(units=True, selects=False),
    "rewriter": Traits(units=False, selects=True),
    "backend": Traits(units=False, selects=False, equivalent=1e-3),
    "codegen": Traits(units=False, selects=False, runs=False),
}
