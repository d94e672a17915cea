"""The conformance suites of this backend: `planish check planish-reram`."""

from __future__ import annotations

from planish_sdk.testing import MethodSuite


class TestReram(MethodSuite):
    method = "reram"
    options = {"faults": "low", "chips": 2}
    selects = True
    seeded = True
    equivalent = 0.0  # stuck cells change the logits: that is the point


class TestReramConverters(MethodSuite):
    method = "reram"
    options = {"faults": "none", "chips": 1, "adc_bits": 8, "mapping": "differential"}
    selects = True
    equivalent = 0.2  # 8-bit weights, inputs and column sums
