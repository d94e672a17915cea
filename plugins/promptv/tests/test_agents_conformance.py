"""The conformance kit on the stage."""

from __future__ import annotations

import pytest

from planish_promptv.conformance import TestPromptv

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.usefixtures("simulator")]

__all__ = ["TestPromptv"]
