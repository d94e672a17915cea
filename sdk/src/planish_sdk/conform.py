"""Bring a model's config in line with its blocks after surgery, and see that it runs."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from planish.errors import PlanishError
from planish_sdk._inference import inference
from planish_sdk.blocks import find_blocks
from planish_sdk.layout import (
    CHANNELS,
    HEADS,
    KV_HEADS,
    QUERIES_PER_KV,
    WIDTH,
    attention_groups,
    ffn_channels,
)
from planish_sdk.views import weight_views


def update_config(model: nn.Module) -> bool:
    """Bring a transformers config in line with blocks that were all cut alike.

    A model built from the new config (on the meta device) must have every parameter shape and head count of
    this one; then plain `from_pretrained` opens what `save_pretrained` writes, and no `Changes` are needed.

    Returns:
        False, with the config untouched, when the blocks differ, or when the family's config cannot say it
        (GPT-2, OPT and GPT-NeoX derive the head size from the number of heads).
    """
    config = getattr(model, "config", None)
    if config is None:
        return False
    sizes = {_sizes(block) for block in find_blocks(model)[1]}
    if len(sizes) != 1:
        return False
    wanted = copy.deepcopy(config)
    try:
        _write_sizes(wanted, *sizes.pop())
        with torch.device("meta"):
            rebuilt = type(model)(wanted)
    except Exception:  # whatever the config or the model object to, the sizes cannot be said this way
        return False
    if _structure(rebuilt) != _structure(model):
        return False
    for mine, new in zip(_texts(config), _texts(wanted), strict=True):
        for name in (*HEADS, *KV_HEADS, "head_dim", *CHANNELS):
            if hasattr(new, name) and getattr(mine, name, None) != getattr(new, name):
                setattr(mine, name, getattr(new, name))
    return True


def check_forward(model: nn.Module) -> None:
    """Run four tokens through the model.

    Raises:
        PlanishError: it fails; the text carries the first line of the reason.
    """
    device = next(model.parameters()).device
    tokens = torch.zeros(1, 4, dtype=torch.int64, device=device)
    try:
        with inference(model):
            model(tokens)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise PlanishError(f"{type(model).__name__}: does not run after surgery ({reason})") from error


def _sizes(block: nn.Module) -> tuple[int, int, int, int | None]:
    attention = attention_groups(block)
    routed = any(view.routed_by is not None for view in weight_views(block).values())
    channels = None if routed else ffn_channels(block).count
    return attention.num_heads, attention.num_kv_heads, attention.head_dim, channels


def _texts(config: Any) -> list[Any]:
    """The config, and its text part when that is another object."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return [config] if text is config else [config, text]


def _write_sizes(config: Any, num_heads: int, num_kv_heads: int, head_dim: int, channels: int | None) -> None:
    text = _texts(config)[-1]
    wanted = {**dict.fromkeys(HEADS, num_heads), **dict.fromkeys(KV_HEADS, num_kv_heads)}
    if channels is not None:
        wanted |= dict.fromkeys(CHANNELS, channels)
    for name, value in wanted.items():
        if hasattr(text, name):
            setattr(text, name, value)
    if getattr(text, "head_dim", None) not in (None, head_dim) or text.hidden_size != num_heads * head_dim:
        text.head_dim = head_dim


def _structure(model: nn.Module) -> dict[str, Any]:
    """Every parameter's shape and every module's head counts."""
    shapes: dict[str, Any] = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for path, module in model.named_modules():
        for name in (*HEADS, *KV_HEADS, *QUERIES_PER_KV, *WIDTH):
            if isinstance(value := getattr(module, name, None), int):
                shapes[f"{path}:{name}"] = value
    return shapes
