from __future__ import annotations

import torch  # noqa: F401

from planish_sample.config import SampleConfig


class HeavyConfig(SampleConfig):
    """Brings torch with it."""
