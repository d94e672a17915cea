"""A small run of the optimizer itself: stories260k adapted to Shakespeare with 600 forward passes in full fp32.

An independent implementation measured it with two seeds: from a validation loss of 4.55, MeZO came to 3.94 and 3.89, and
KerZOO of order 3 to 4.28 and 4.28.
"""

from __future__ import annotations

import functools
import lzma
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from planish.errors import DataError
from planish_kerzoo.optimizer import KerZOO

BATCH, LENGTH = 8, 64
RUNS: dict[str, tuple[dict[str, Any], tuple[float, float]]] = {
    "mezo": ({"kernel": "mezo", "lr": 1e-4}, (3.94, 3.89)),
    "order3": ({"kernel": "order3", "lr": 3e-5}, (4.28, 4.28)),
}
"""name -> (options, what was measured elsewhere)."""


def shakespeare(data: Path, tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Training stream [T] and validation windows [N, 64]: the first 90 % of the text, and 128 windows of the rest."""
    try:
        with lzma.open(data / "text" / "shakespeare.txt.xz", "rt", encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{data}/text/shakespeare.txt.xz: {error}") from None
    cut = len(text) * 9 // 10
    train, rest = (
        torch.tensor(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"])
        for part in (text[:cut], text[cut : cut + 40_000])
    )
    return train, rest[: 128 * LENGTH].view(-1, LENGTH)


def adapt(
    folder: Path, data: Path, name: str, seed: int, device: str = "cpu", forwards: int = 600
) -> tuple[float, float]:
    """Validation loss before and after one run."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).to(
        device
    )
    train, windows = shakespeare(data, AutoTokenizer.from_pretrained(folder, local_files_only=True))
    optimizer = KerZOO(model, seed=seed, defer=True, **RUNS[name][0])

    def loss(ids: Tensor) -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    @torch.no_grad()
    def validate() -> float:
        optimizer.finish()
        return float(torch.stack([loss(part.to(device)) for part in windows.chunk(4)]).mean())

    before = validate()
    generator = torch.Generator().manual_seed(seed)
    while optimizer.forwards < forwards:
        start = torch.randint(len(train) - LENGTH, (BATCH,), generator=generator).tolist()
        ids = torch.stack([train[s : s + LENGTH] for s in start]).to(device)
        optimizer.step(functools.partial(loss, ids))
    return before, validate()
