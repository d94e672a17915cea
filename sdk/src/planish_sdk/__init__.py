"""What authors of planish plugins use.

The names below are loaded on first use, so that `import planish_sdk` brings neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish_sdk.blocks import BlockStep as BlockStep
    from planish_sdk.blocks import BlockWalker as BlockWalker
    from planish_sdk.blocks import Observer as Observer
    from planish_sdk.blocks import find_blocks as find_blocks
    from planish_sdk.calibrate import batches as batches
    from planish_sdk.calibrate import windows as windows
    from planish_sdk.timing import Timing as Timing
    from planish_sdk.timing import interleaved as interleaved
    from planish_sdk.timing import ratio as ratio
    from planish_sdk.views import WeightView as WeightView
    from planish_sdk.views import weight_views as weight_views

_HOME = {
    "BlockStep": "blocks",
    "BlockWalker": "blocks",
    "Observer": "blocks",
    "Timing": "timing",
    "WeightView": "views",
    "batches": "calibrate",
    "find_blocks": "blocks",
    "interleaved": "timing",
    "ratio": "timing",
    "weight_views": "views",
    "windows": "calibrate",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "blocks", "calibrate", "fixtures", "surgery", "timing", "views"]
