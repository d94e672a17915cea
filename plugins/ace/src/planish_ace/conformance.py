"""The conformance suite of this pruner: `planish check planish-ace`."""

from __future__ import annotations

from planish_sdk.testing import MethodSuite


class TestAce(MethodSuite):
    method = "ace"
    options = {"sparsity": 0.5, "seqlen": 16, "nsamples": 8}
    expected = 0.5


class TestAceStructured(MethodSuite):
    method = "ace"
    options = {"pattern": "structured", "ffn_sparsity": 0.5, "reconstruct": True, "seqlen": 16, "nsamples": 8}
