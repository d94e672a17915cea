"""ONNX backend of planish: export a torch model, optionally store it as int8, run and measure it in ONNX Runtime.

This module stays light: it imports neither torch nor onnx.
"""

from __future__ import annotations

from planish import Benchmark, Builder, Method, hookimpl

__version__ = "0.1.0"


@hookimpl
def backends() -> list[Method]:
    return [
        Method(
            name="onnx",
            kind="backend",
            summary="export to ONNX, optionally int8, checked against torch and run in ONNX Runtime",
            config="planish_onnx.config:OnnxConfig",
            target="planish_onnx.wiring:apply",
            accepts=("torch",),
            yields="onnx",
            paper="onnx.ai and onnxruntime.ai",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="onnx",
            kind="onnx",
            target="planish_onnx.wiring:OnnxBuilder",
            summary="model.onnx with its data file, loaded in ONNX Runtime",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="onnx",
            target="planish_onnx.benchmark:rows",
            summary="ONNX Runtime beside torch eager, int8 beside float32, a smaller model beside a masked one",
        )
    ]
