"""What is timed and measured on a GPU, and the model it is done on: one for all parts of the KerZOO script."""

from __future__ import annotations

import gc
import itertools
import statistics
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

OPT = {"tiny": (2, 256, 4, 512), "small": (12, 768, 12, 50272), "2.7B": (32, 2560, 32, 50272)}
"""Layers, width, heads and vocabulary of the models of the OPT family."""


def opt(size: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A model of random weights, those of seed 0, in evaluation mode.

    Nothing is padded, so attention is causal without a mask, on all sides alike: transformers would look for padding on the
    device in every eager forward pass, and could not in a captured one.
    """
    from transformers import AttentionInterface, OPTConfig, OPTForCausalLM
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    layers, width, heads, vocabulary = OPT[size]
    config = OPTConfig(
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=heads,
        ffn_dim=4 * width,
        word_embed_proj_dim=width,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = OPTForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
    AttentionInterface.register("causal", sdpa_attention_forward)
    model.config._attn_implementation = "causal"
    return model


def median(program: Callable[[], Any], rounds: int, device: str) -> dict[str, float]:
    """Of calls one after the other, as in training: the host may run ahead of the device, and does not wait between them."""
    for _ in range(2):
        program()
    if device == "cpu":
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            program()
            times.append((time.perf_counter() - start) * 1e3)
    else:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(rounds + 1)]
        events[0].record()
        for event in events[1:]:
            program()
            event.record()
        torch.cuda.synchronize()
        times = [one.elapsed_time(two) for one, two in itertools.pairwise(events)]
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high, "rounds": rounds}


def peak(device: str, program: Callable[[], Any], calls: int = 3) -> dict[str, int]:
    """Bytes of tensors at most, and bytes that torch held for them, which counts what a CUDA graph keeps for itself too."""
    if device == "cpu":
        program()
        return {"allocated": 0, "reserved": 0}
    clean(device)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(calls):
        program()
    torch.cuda.synchronize()
    return {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}


def trace(device: str, program: Callable[[], Any]) -> list[dict[str, int]]:
    """Bytes allocated after, at the peak of, and reserved at the peak of, each of five steps."""
    found: list[dict[str, int]] = []
    for _ in range(5 if device != "cpu" else 0):
        torch.cuda.reset_peak_memory_stats()
        program()
        torch.cuda.synchronize()
        found.append(
            {
                "allocated": torch.cuda.memory_allocated(),
                "peak": torch.cuda.max_memory_allocated(),
                "reserved": torch.cuda.max_memory_reserved(),
            }
        )
    return found


def no_sync(program: Callable[[], Any], device: str) -> bool | str:
    """Whether a step waits nowhere for the device: torch raises where it would."""
    if device == "cpu":
        return "not measured"
    torch.cuda.set_sync_debug_mode("error")
    try:
        program()
    except RuntimeError as error:
        return f"{error}\n{traceback.format_exc()[-600:]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def clean(device: str) -> None:
    """Free what is no longer used, so that the next measurement starts from what is."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
