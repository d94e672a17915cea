"""Run a model without gradients, caches or dropout, and leave it as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_EXTRA_OUTPUTS = ("use_cache", "output_attentions", "output_hidden_states", "output_router_logits")
_EXPERTS = "_experts_implementation_internal"


@contextmanager
def inference(module: nn.Module, *, eager_experts: bool = False) -> Iterator[None]:
    """Evaluation mode, no gradients, no key-value cache, plain outputs; everything restored on leaving.

    Args:
        module: a model or one of its blocks; the configs that its modules hold are switched with it.
        eager_experts: let transformers 5 loop over its experts instead of using one grouped kernel.
    """
    modes = [(part, part.training) for part in module.modules()]
    changed: list[tuple[Any, str, Any]] = []
    configs = {id(part.config): part.config for part in module.modules() if hasattr(part, "config")}
    for config in configs.values():
        switched = [name for name in _EXTRA_OUTPUTS if getattr(config, name, None)]
        if eager_experts and hasattr(config, _EXPERTS):
            switched.append(_EXPERTS)
        changed += [(config, name, getattr(config, name)) for name in switched]
    try:
        module.eval()
        for config, name, _ in changed:
            setattr(config, name, "eager" if name == _EXPERTS else False)
        with torch.no_grad():
            yield
    finally:
        for config, name, value in changed:
            setattr(config, name, value)
        for part, training in modes:
            part.training = training
