"""The conformance kit: `MethodSuite`, and what its checks are made of.

The names below are loaded on first use, so that importing this package brings neither pytest nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planish_sdk.testing.kernels import tensors as tensors
    from planish_sdk.testing.material import character_tokenizer as character_tokenizer
    from planish_sdk.testing.material import tiny_model as tiny_model
    from planish_sdk.testing.material import tiny_task as tiny_task
    from planish_sdk.testing.suite import MethodSuite as MethodSuite

_HOME = {
    "MethodSuite": "suite",
    "character_tokenizer": "material",
    "tensors": "kernels",
    "tiny_model": "material",
    "tiny_task": "material",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
