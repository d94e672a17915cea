"""The conformance kit on the backend."""

from __future__ import annotations

import pytest

pytest.importorskip("planish_sdk")

from planish_onnx.conformance import TestOnnx

pytestmark = [pytest.mark.model, pytest.mark.slow]

__all__ = ["TestOnnx"]
