"""The conformance kit on the pruner."""

from __future__ import annotations

import pytest

from planish_reram_protect.conformance import TestReramProtect, TestReramProtectLsb

pytestmark = [pytest.mark.model, pytest.mark.slow]

__all__ = ["TestReramProtect", "TestReramProtectLsb"]
