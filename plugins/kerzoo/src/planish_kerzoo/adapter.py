"""LoRA through the PEFT library: matrices beside chosen layers are trained and then merged into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from planish.errors import MissingRequirement


def add_lora(module: nn.Module, rank: int, targets: Sequence[str], seed: int) -> nn.Module:
    """``module`` with LoRA of that rank, alpha twice the rank, on the layers named; only its matrices can be trained.

    Raises MissingRequirement without PEFT.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise MissingRequirement(
            'adapter "lora" needs the module peft: pip install "planish-kerzoo[peft]"'
        ) from None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), lora_dropout=0.0)
        adapted: nn.Module = get_peft_model(module, config)
    return adapted


def merge_lora(adapted: nn.Module, trainable: Mapping[str, bool]) -> nn.Module:
    """The module itself, its weights with the matrices added, and what could be trained before (parameter -> whether) can be again."""
    merged: nn.Module = adapted.merge_and_unload()  # type: ignore[operator]
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(trainable[name])
    return merged
