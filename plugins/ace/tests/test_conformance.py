"""The conformance kit on the pruner."""

from __future__ import annotations

import pytest

from planish_ace.conformance import TestAce, TestAceStructured

pytestmark = [pytest.mark.model, pytest.mark.slow]

__all__ = ["TestAce", "TestAceStructured"]
