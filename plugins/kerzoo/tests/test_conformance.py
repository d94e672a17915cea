"""The conformance kit on the optimizer."""

from __future__ import annotations

import pytest

from planish_kerzoo.conformance import TestKerZOO

pytestmark = [pytest.mark.model, pytest.mark.slow]

__all__ = ["TestKerZOO"]
