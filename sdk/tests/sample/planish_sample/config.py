from __future__ import annotations

from pydantic import BaseModel, Field

from planish.config import MethodConfig


class SampleConfig(MethodConfig):
    """How much goes."""

    sparsity: float = Field(0.5, ge=0, lt=1, description="share of each row that is zeroed")


class Undescribed(MethodConfig):
    """A field without a description, and a number without bounds."""

    sparsity: float = Field(0.5, ge=0, lt=1)
    layers: list[int] = Field([], description="blocks to leave alone")


class Lenient(BaseModel):
    """Takes any field."""

    sparsity: float = Field(0.5, ge=0, lt=1, description="share of each row that is zeroed")
