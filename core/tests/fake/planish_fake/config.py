from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from planish import MethodConfig


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = Field(4, ge=1, le=8, description="inner width")


class ZeroConfig(MethodConfig):
    sparsity: float = Field(0.5, ge=0, lt=1, description="share of zeros in every layer")
    layers: Literal["all", "first"] = Field("all", description="which layers")
    label: str | None = Field(None, description="free text")
    inner: Inner = Field(default_factory=Inner, description="nested options")
    names: list[str] = Field(default_factory=list, description="a list")


class JitterConfig(MethodConfig):
    scale: float = Field(0.01, gt=0, le=1, description="standard deviation of the noise")


class NoConfig(MethodConfig):
    pass
