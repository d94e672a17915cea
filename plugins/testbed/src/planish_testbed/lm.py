"""The embedded language model: a small Llama with its own byte-level BPE tokenizer, in plain Hugging Face format."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .corpus import Document

if TYPE_CHECKING:
    import torch

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class BitsPerByte:
    """Total code length of a text under a model, and the number of bytes it encodes."""

    bits: float
    bytes: int
    tokens: int

    @property
    def value(self) -> float:
        return self.bits / self.bytes


def folder() -> Path:
    """The folder with config.json, model.safetensors and the tokenizer; any Hugging Face loader reads it."""
    return Path(__file__).with_name("lm")


def load(dtype: Any = None, device: str = "cpu") -> tuple[Any, Any]:
    """Return (model, tokenizer), the model in evaluation mode; `dtype` defaults to torch.float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder(), dtype=dtype or torch.float32, local_files_only=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    return model.to(device).eval(), tokenizer


def token_stream(tokenizer: Any, documents: Iterable[Document]) -> torch.Tensor:
    """Token ids [T] int64 of the documents, an end-of-text token before each and after the last."""
    import torch

    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    ids = [end]
    for document in documents:
        ids += tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
        ids.append(end)
    return torch.tensor(ids, dtype=torch.int64)


def bits_per_byte(
    model: Any, tokenizer: Any, documents: Iterable[Document], context: int = 512, stride: int = 256
) -> BitsPerByte:
    """Code length of `documents` under `model` with sliding windows of `context` tokens.

    Every token but the first end-of-text token is predicted exactly once, after at least `context - stride` tokens
    where the text has that many before it. The end-of-text tokens count as bits; the bytes are those of the text
    alone, so the value can be compared with the size of a compressed file.
    """
    documents = tuple(documents)
    ids = token_stream(tokenizer, documents)
    bits = stream_bits(model, ids, context, stride)
    return BitsPerByte(bits, sum(len(document.text.encode()) for document in documents), len(ids) - 1)


def stream_bits(
    model: Any, ids: torch.Tensor, context: int = 512, stride: int = 256, batch: int = 16
) -> float:
    """Sum of -log2 p(token | tokens before it in its window) over `ids` [T], the first token excepted."""
    import torch
    import torch.nn.functional as F

    if not 0 < stride <= context:
        raise ValueError(f"stride is {stride}; valid: 1 to the context, {context}")
    device = next(model.parameters()).device
    inputs, targets = [], []
    scored_to = 0  # targets ids[1 .. scored_to] have been scored
    for start in range(0, len(ids) - 1, stride):
        end = min(start + context, len(ids) - 1)
        target = ids[start + 1 : end + 1].clone()
        target[: scored_to - start] = -100
        inputs.append(F.pad(ids[start:end], (0, context - (end - start))))
        targets.append(F.pad(target, (0, context - (end - start)), value=-100))
        scored_to = end
        if end == len(ids) - 1:
            break
    nats = 0.0
    with torch.inference_mode():
        for first in range(0, len(inputs), batch):
            logits = model(input_ids=torch.stack(inputs[first : first + batch]).to(device)).logits.float()
            target = torch.stack(targets[first : first + batch]).to(device)
            nats += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum").item()
    return nats / math.log(2)
