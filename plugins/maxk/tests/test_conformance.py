"""The conformance kit on the rewriter."""

from __future__ import annotations

import pytest

from planish_maxk.conformance import TestMaxK

pytestmark = [pytest.mark.model, pytest.mark.slow]

__all__ = ["TestMaxK"]
