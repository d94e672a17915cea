"""The conformance kit, applied to this backend."""

from __future__ import annotations

import pytest

from planish_reram.conformance import TestReram, TestReramConverters

pytestmark = pytest.mark.model

__all__ = ["TestReram", "TestReramConverters"]
