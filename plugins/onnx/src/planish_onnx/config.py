"""Options of the ONNX backend."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from planish.config import MethodConfig


class OnnxConfig(MethodConfig):
    """How a torch model becomes an ONNX folder."""

    exporter: Literal["dynamo", "optimum"] = Field(
        "dynamo",
        description="dynamo: torch's exporter, any module, no KV cache; optimum: decoders with a KV cache "
        "(extra planish-onnx[optimum], transformers 4.57)",
    )
    opset: int | None = Field(
        None,
        ge=18,
        le=24,
        description="ONNX operator set; none takes 23, which keeps attention as one operator, or with optimum its own",
    )
    dtype: Literal["float32", "keep"] = Field(
        "float32",
        description="float32 exports a float32 copy of the weights; keep exports them in their own type",
    )
    quantize: Literal["none", "int8"] = Field(
        "none",
        description="int8 stores weights in 8 bits and multiplies in integers, activations scaled on the fly",
    )
    per_channel: bool = Field(
        True, description="int8: one scale for each output column instead of one for each matrix"
    )
    reduce_range: bool = Field(
        False,
        description="int8: 7-bit weights, for x86 processors without VNNI (before about 2019), which saturate",
    )
    embeddings: bool = Field(
        True,
        description="int8: store embedding tables in 8 bits too; a table tied to the output head is stored once",
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="threads of ONNX Runtime; none leaves it to the runtime"
    )
    verify_tolerance: float | None = Field(
        None,
        gt=0,
        le=0.1,
        description="largest error allowed between torch in float32 and the graph before int8, as a share of the largest "
        "logit; none takes 1e-4, or 1e-2 where float16 weights are kept",
    )

    @model_validator(mode="after")
    def _int8_needs_float32(self) -> OnnxConfig:
        if self.quantize == "int8" and self.dtype == "keep":
            raise ValueError("quantize = 'int8' needs dtype = 'float32', not 'keep'")
        if self.exporter == "optimum" and self.dtype == "keep":
            raise ValueError(
                "exporter = 'optimum' writes float32 only; dtype = 'keep' needs exporter = 'dynamo'"
            )
        return self
