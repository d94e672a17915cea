"""Tiny random decoders, one a family, for tests of methods that must work on all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from planish.errors import PlanishError

__all__ = ["TINY", "PlainDecoder", "tiny"]

_TOKENS: dict[str, Any] = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES: dict[str, Any] = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED: dict[str, Any] = {**_SIZES, "num_key_value_heads": 2}
_EXPERTS: dict[str, Any] = {**_GROUPED, "intermediate_size": 24, "num_experts_per_tok": 2}

# name -> (transformers model type, config fields)
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GROUPED),
    "llama-tied": ("llama", {**_GROUPED, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 6}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 16}),
    "gemma2": ("gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {**_GROUPED, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2}),
    "phi": ("phi", _SIZES),
    "phi3": ("phi3", _GROUPED),
    "gpt_neox": ("gpt_neox", _SIZES),
    "opt": ("opt", {**_SIZES, "ffn_dim": 56, "word_embed_proj_dim": 32}),
    "gpt2": ("gpt2", {**_TOKENS, "n_embd": 32, "n_inner": 56, "n_layer": 3, "n_head": 4, "n_positions": 64}),
    "falcon": ("falcon", {**_SIZES, "ffn_hidden_size": 56, "multi_query": True}),
    "falcon-grouped": (
        "falcon",
        {**_SIZES, "ffn_hidden_size": 56, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "mixtral": ("mixtral", {**_EXPERTS, "num_local_experts": 4}),
    "qwen2_moe": (
        "qwen2_moe",
        {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 20},
    ),
    # Its own rotary scaling for long contexts would not fit 64 positions.
    "gpt_oss": (
        "gpt_oss",
        _EXPERTS
        | {
            "num_local_experts": 4,
            "head_dim": 8,
            "sliding_window": 4,
            "rope_scaling": {"rope_type": "default"},
        },
    ),
}

TINY: tuple[str, ...] = (*_FAMILIES, "plain")
"""Names that `tiny` knows."""


def tiny(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A three-block random decoder in evaluation mode: 96 tokens, width 32, 4 heads, up to 64 positions.

    The families differ where methods go wrong: grouped-query attention (llama, mistral, qwen), biases (qwen2,
    opt, gpt2), per-head norms (qwen3), per-layer masks (gemma), transposed and fused projections (gpt2, phi3,
    gpt_neox, falcon), parallel residuals (phi, gpt_neox), one key-value head (falcon), experts (mixtral,
    qwen2_moe, gpt_oss), no transformers at all (plain). Biases and norms are random too. The global random
    state is left alone.

    Raises:
        PlanishError: unknown name.
    """
    if name not in TINY:
        raise PlanishError(f"tiny model: got {name!r}, choose from {', '.join(TINY)}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = PlainDecoder() if name == "plain" else _from_config(*_FAMILIES[name])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Norms start at one and most biases at zero.
            parameter.copy_(0.2 * noise if parameter.ndim > 1 else parameter + 0.1 * noise)
    return model.to(dtype).eval()


def _from_config(model_type: str, fields: dict[str, Any]) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields))
    return model


class PlainDecoder(nn.Module):
    """A decoder in plain torch, with no config, no mask argument and tensors between its blocks."""

    def __init__(self, vocabulary: int = 96, width: int = 32, heads: int = 4, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_PlainBlock(width, heads) for _ in range(depth))
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, S, vocabulary] of `tokens` [B, S]."""
        hidden: Tensor = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


class _PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.norm1 = nn.LayerNorm(width)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 56)
        self.fc2 = nn.Linear(56, width)

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm1(hidden)
        q, k, v = (
            projection(normed).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.o_proj(attended.transpose(1, 2).flatten(-2))
        out: Tensor = hidden + self.fc2(F.gelu(self.fc1(self.norm2(hidden))))
        return out
