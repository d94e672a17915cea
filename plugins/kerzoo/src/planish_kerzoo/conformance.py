"""The conformance suite of this optimizer: `planish check planish-kerzoo`."""

from __future__ import annotations

from planish_sdk.testing import MethodSuite


class TestKerZOO(MethodSuite):
    method = "kerzoo"
    options = {"steps": 6, "unit": 2, "batch": 2, "length": 16, "lr": 1e-3}
    seeded = True
