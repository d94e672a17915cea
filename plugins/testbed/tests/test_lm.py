from __future__ import annotations

import json
import logging
import lzma
import math
import struct
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish_testbed import corpus, lm


@pytest.fixture(scope="module")
def loaded() -> tuple[Any, Any]:
    return lm.load()


def test_loads_without_missing_weights_or_warnings(caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        model, info = AutoModelForCausalLM.from_pretrained(
            lm.folder(), dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    transformers_logging.disable_propagation()
    assert not [record.message for record in caplog.records if record.name.startswith("transformers")]
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert 3e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 8e6


def test_folder_is_small_plain_and_half_precision() -> None:
    files = {path.name: path.stat().st_size for path in lm.folder().iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) <= 12_000_000
    content = (lm.folder() / "model.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert {entry["dtype"] for entry in header.values()} == {"F16"}
    assert "lm_head.weight" not in header


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_tokenizer_round_trip(loaded: tuple[Any, Any], text: str) -> None:
    _, tokenizer = loaded
    if lm.END_OF_TEXT in text:
        return
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text


def test_beats_xz_on_heldout_text(loaded: tuple[Any, Any]) -> None:
    """Some of the held-out documents, of both kinds; the training script measures all of them."""
    chosen = (
        "topic:lambda",
        "topic:slicings",
        "topic:with",
        "module:bisect",
        "module:heapq",
        "module:zipapp",
    )
    documents = [document for document in corpus.heldout_documents() if document.name in chosen]
    assert len(documents) == len(chosen)
    result = lm.bits_per_byte(*loaded, documents)
    raw = "\n\n".join(document.text for document in documents).encode()
    assert result.bytes == sum(len(document.text.encode()) for document in documents)
    assert result.value < 2 < 8 * len(lzma.compress(raw, preset=9)) / result.bytes


class Uniform(torch.nn.Module):
    """Logits that know nothing, and a count of the windows."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(vocab))

    def forward(self, input_ids: torch.Tensor) -> Any:
        from types import SimpleNamespace

        return SimpleNamespace(logits=self.weight.expand(*input_ids.shape, -1))


@given(
    length=st.integers(2, 200),
    context=st.integers(1, 40),
    share=st.floats(0.01, 1),
)
def test_every_token_is_scored_once(length: int, context: int, share: float) -> None:
    stride = max(1, round(share * context))
    bits = lm.stream_bits(Uniform(16), torch.arange(length) % 16, context, stride)
    assert math.isclose(bits, 4 * (length - 1), rel_tol=1e-4)


def test_sliding_windows_equal_one_window(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = lm.token_stream(tokenizer, [corpus.Document("x", "The quick brown fox.\n" * 3)])
    logits = model(input_ids=ids[None, :-1]).logits[0].log_softmax(-1)
    direct = -logits.gather(1, ids[1:, None]).sum().item() / math.log(2)
    assert math.isclose(lm.stream_bits(model, ids), direct, rel_tol=1e-4)


def test_stride_beyond_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="stride is 9; valid: 1 to the context, 8"):
        lm.stream_bits(Uniform(4), torch.zeros(20, dtype=torch.int64), context=8, stride=9)


def test_greedy_generation_is_deterministic(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer("Return the ", return_tensors="pt")["input_ids"]
    runs = [model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8) for _ in range(2)]
    assert torch.equal(*runs)
    assert runs[0].shape[1] > ids.shape[1]
