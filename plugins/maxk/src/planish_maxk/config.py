"""Options of MaxK. Light: no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from planish.config import MethodConfig


class MaxKConfig(MethodConfig):
    """Replace ReLU before graph aggregation by MaxK, and train on."""

    k: int = Field(
        16, ge=1, le=65536, description="entries kept in every row; at most the width of the activation"
    )
    epochs: int = Field(100, ge=0, le=100_000, description="full-batch training epochs after rewriting")
    lr: float = Field(0.01, gt=0, le=10, description="learning rate of Adam")
    weight_decay: float = Field(5e-4, ge=0, le=10, description="L2 penalty of Adam")
    keep: Literal["best", "last"] = Field(
        "best",
        description="weights of the epoch with the best validation accuracy (the first of equals), or of the last",
    )
    recompute: Literal["nothing", "layers", "half", "everything"] = Field(
        "nothing",
        description="what the backward pass computes again instead of keeping it: layers between an aggregation and the "
        "next compressed activation, half of the aggregations too, or all of them",
    )
    timing_rounds: int = Field(
        9, ge=0, le=1000, description="training epochs timed of the network before and after; 0: not measured"
    )
