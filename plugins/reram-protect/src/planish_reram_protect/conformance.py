"""The conformance suites of this pruner: `planish check planish-reram-protect`."""

from __future__ import annotations

from planish_sdk.testing import MethodSuite


class TestReramProtect(MethodSuite):
    """Gates on tiny decoders; the amount is counted over the matrices in blocks, which hold all that is gated but the head."""

    method = "reram-protect"
    options = {
        "gate_epochs": 2,
        "tune_epochs": 1,
        "epoch_steps": 3,
        "batch": 4,
        "window": 16,
        "skip": ["*lm_head"],
    }
    expected = 1 / 3 + 0.01
    amount_tolerance = 0.012
    seeded = True


class TestReramProtectLsb(MethodSuite):
    """Copies in the least significant slices: no weight changes, the plan is what is new."""

    method = "reram-protect"
    options = {"embed": "lsb"}
    units = False
    seeded = False
    equivalent = 1e-6
