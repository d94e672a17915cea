"""Timing of programs against each other within one run: core's own, under the SDK's name for plugin authors."""

from __future__ import annotations

from planish.timing import Quartiles, Timing, interleaved, ratio

__all__ = ["Quartiles", "Timing", "interleaved", "ratio"]
