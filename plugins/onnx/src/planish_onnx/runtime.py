"""ONNX Runtime, imported in one place, with its telemetry off.

From 1.29 on its wheels send usage events and leave a device identifier in the home folder. It reads the switch while it is
imported, so the switch must be set before; a value that the user has set stays.
"""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
from onnxruntime.quantization import QuantType, quantize_dynamic

__all__ = ["QuantType", "onnxruntime", "quantize_dynamic"]
