"""A Llama for many sets of weights at once: R fine-tuning runs of one small model in one batched forward pass.

The comparison of estimators needs hundreds of runs of a model that leaves a device idle when it runs alone. Weights are
rows of one matrix in the layout of `planish_kerzoo.layout`, so that a direction is added to a run as one vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.errors import PlanishError
from planish_kerzoo.layout import lay_out
from planish_kerzoo.noise import CHUNK
from planish_kerzoo.sweep import triton_kernels

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the rotary embedding, [T, D] each."""


@dataclass(frozen=True)
class StackedLlama:
    """Shape of a transformers ``LlamaForCausalLM`` with tied embeddings and no biases.

    places: name -> (flat offset, shape). size: elements of the flat vector.
    """

    places: dict[str, tuple[int, torch.Size]]
    size: int
    layers: int
    heads: int
    groups: int
    width: int
    epsilon: float
    theta: float

    @classmethod
    def of(cls, model: Any) -> StackedLlama:
        """Raises PlanishError for another architecture."""
        config = model.config
        if config.model_type != "llama" or not config.tie_word_embeddings:
            raise PlanishError(f"{type(model).__name__}: only Llama with tied embeddings can be stacked")
        segments = lay_out([(name, parameter, 0) for name, parameter in model.named_parameters()])
        places = {s.name.removeprefix("model."): (s.start, s.parameter.shape) for s in segments}
        last = segments[-1]
        rope = getattr(config, "rope_parameters", None) or {}
        theta: Any = rope.get("rope_theta") or getattr(config, "rope_theta", 10000.0)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            places,
            last.start + -(-last.parameter.numel() // CHUNK) * CHUNK,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            width,
            config.rms_norm_eps,
            float(theta),
        )

    def pack(self, model: Any) -> Tensor:
        """The weights of ``model`` as a flat vector [size] in float32; padding is zero."""
        flat = torch.zeros(self.size, device=next(model.parameters()).device)
        state = {name.removeprefix("model."): value for name, value in model.named_parameters()}
        for name, (start, shape) in self.places.items():
            flat[start : start + shape.numel()] = state[name].detach().flatten()
        return flat

    def answers(self, flat: Tensor, ids: Tensor, last: Tensor, labels: Tensor) -> Tensor:
        """Logits [R, B, K] of the label words after each prompt.

        Args:
            flat: weights [R, size].
            ids: token ids [R, B, T], padded on the right. last: [R, B] position of the last token of the prompt.
            labels: [R, K] token ids of the label words.
        """
        runs, batch, length = ids.shape
        weight = {name: self._view(flat, name) for name in self.places}
        rows = torch.arange(runs, device=ids.device)
        embedding = weight["embed_tokens.weight"]
        x = embedding[rows[:, None, None], ids].view(runs, batch * length, -1)
        rotation = self._rotation(length, ids.device)
        parts = self._parts(flat)
        for layer in range(self.layers):
            of = f"layers.{layer}."
            h = parts.norm(x, weight[of + "input_layernorm.weight"], self.epsilon)
            query, key, value = (
                torch.bmm(h, weight[f"{of}self_attn.{name}_proj.weight"].mT) for name in "qkv"
            )
            mixed = parts.attention(query, key, value, rotation, length, self.heads, self.groups)
            x = torch.baddbmm(x, mixed, weight[of + "self_attn.o_proj.weight"].mT)
            h = parts.norm(x, weight[of + "post_attention_layernorm.weight"], self.epsilon)
            gate, up = (torch.bmm(h, weight[f"{of}mlp.{name}_proj.weight"].mT) for name in ("gate", "up"))
            x = torch.baddbmm(x, parts.gated(gate, up), weight[of + "mlp.down_proj.weight"].mT)
        x = x.view(runs, batch, length, -1)
        x = x[rows[:, None], torch.arange(batch, device=ids.device), last]
        final = parts.norm(x, weight["norm.weight"], self.epsilon)
        return torch.bmm(final, embedding[rows[:, None], labels].mT)

    @staticmethod
    def _parts(flat: Tensor) -> Any:
        """What stands between matrix products: in Triton on CUDA where no gradient is wanted, or else in plain torch."""
        if (
            flat.is_cuda
            and flat.dtype == torch.float32
            and not flat.requires_grad
            and triton_kernels() is not None
        ):
            from planish_kerzoo import fused

            return fused
        return Plain

    def _view(self, flat: Tensor, name: str) -> Tensor:
        start, shape = self.places[name]
        part = flat[:, start : start + shape.numel()].view(len(flat), *shape)
        return part[:, None] if len(shape) == 1 else part

    def _rotation(self, length: int, device: torch.device) -> Rotation:
        exponent = torch.arange(0, self.width, 2, device=device) / self.width
        angle = torch.arange(length, device=device)[:, None] / self.theta**exponent
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


class Plain:
    """The functions of `planish_kerzoo.fused` in plain torch."""

    @staticmethod
    def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight

    @staticmethod
    def attention(
        query: Tensor, key: Tensor, value: Tensor, rotation: Rotation, length: int, heads: int, groups: int
    ) -> Tensor:
        cosine, sine = rotation
        width = query.shape[-1] // heads
        q, k, v = (
            x.view(-1, length, x.shape[-1] // width, width).transpose(1, 2) for x in (query, key, value)
        )
        q, k = (x * cosine + Plain.turned(x) * sine for x in (q, k))
        k, v = (x.repeat_interleave(heads // groups, 1) for x in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(query.shape)

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)

    @staticmethod
    def gated(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up
