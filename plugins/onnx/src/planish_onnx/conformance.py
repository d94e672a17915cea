"""The conformance suite of this backend: `planish check planish-onnx`."""

from __future__ import annotations

from planish_sdk.testing import MethodSuite


class TestOnnx(MethodSuite):
    method = "onnx"
