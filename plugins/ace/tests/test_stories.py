"""The trained 260 K-parameter model: order and size of the metrics. ``pytest -s -m "slow or not slow"`` prints the whole table.

Protocol: each story tokenised alone with one BOS, joined; split by count of stories (58 and 59); windows of 256
tokens side by side; the first 96 windows of one half calibrate (or 128 windows of 16 tokens), all of the other half is the test.
"""

from __future__ import annotations

import copy
import functools
import lzma
import os
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from planish_ace.config import AceConfig
from planish_ace.metrics import CosineMoments, InputMoments
from planish_ace.prune import prune


class Stories(NamedTuple):
    model: nn.Module
    first: Tensor
    second: Tensor


@pytest.fixture(scope="module")
def stories(shared: Path) -> Stories:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = shared / "models" / "stories260k"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with lzma.open(shared / "data" / "text" / "tinystories_sample.txt.xz", "rt") as stream:
        texts = [text.strip() for text in stream.read().split("<|endoftext|>") if text.strip()]
    halves = (texts[: len(texts) // 2], texts[len(texts) // 2 :])
    first, second = (
        torch.tensor(list(chain.from_iterable(tokenizer(text, verbose=False)["input_ids"] for text in half)))
        for half in halves
    )
    return Stories(model, first, second)


def windows(tokens: Tensor, length: int = 256) -> Tensor:
    return tokens[: len(tokens) // length * length].view(-1, length)


def perplexity(model: nn.Module, rows: Tensor) -> float:
    """exp of the mean cross entropy of all next tokens of equal windows [N, S]."""
    losses = []
    with torch.no_grad():
        for part in rows.split(8):
            logits = model(part).logits.float()
            losses.append(
                nn.functional.cross_entropy(
                    logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="none"
                )
            )
    return torch.cat(losses).double().mean().exp().item()


def pruned(stories: Stories, calibration: Tensor, test: Tensor, **options: Any) -> float:
    model = copy.deepcopy(stories.model)
    prune(model, calibration, AceConfig(**options, batch_size=16))
    return perplexity(model, test)


def test_dense_perplexity(stories: Stories) -> None:
    assert len(windows(stories.second)) == 162
    assert perplexity(stories.model, windows(stories.second)) == pytest.approx(4.92, abs=0.005)
    assert perplexity(stories.model, windows(stories.first)) == pytest.approx(4.20, abs=0.005)


def test_mean_over_equal_windows_is_the_mean_over_tokens(stories: Stories) -> None:
    rows = windows(stories.second)[:3]
    with torch.no_grad():
        one_by_one = [stories.model(row[None], labels=row[None]).loss.double() for row in rows]
    assert perplexity(stories.model, rows) == pytest.approx(
        torch.stack(one_by_one).mean().exp().item(), rel=1e-5
    )


PATTERNS: dict[str, dict[str, Any]] = {
    "50 %": {"sparsity": 0.5},
    "60 %": {"sparsity": 0.6},
    "70 %": {"sparsity": 0.7},
    "2:4": {"pattern": "2:4"},
    "4:8": {"pattern": "4:8"},
}
# All five columns take minutes; PLANISH_FULL=1 asks for them, with every protocol.
FULL = bool(os.environ.get("PLANISH_FULL"))
COLUMNS = list(PATTERNS) if FULL else ["50 %", "2:4"]
OTHER_COLUMNS = list(PATTERNS) if FULL else ["50 %"]  # how weights are selected does not depend on the data
PAPER = {"metric": "cosp", "cosp_form": "paper"}
BOTH = {"metric": "cosp+varp", "cosp_form": "paper"}
TABLE: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "magnitude": ({"metric": "magnitude"}, (42.1, 132, 367, 124, 82.9)),
    "wanda": ({"metric": "wanda"}, (23.0, 67.4, 157, 69.5, 35.6)),
    "ria": ({"metric": "ria"}, (24.0, 63.4, 191, 83.3, 44.5)),
    "varp on weight": ({"base": "weight"}, (41.1, 125, 385, 142, 75.8)),
    "varp on wanda": ({}, (22.3, 59.9, 127, 74.1, 38.6)),
    "varp on ria": ({"base": "ria"}, (24.2, 62.9, 194, 80.1, 43.2)),
    "varp B on wanda": ({"varp_reading": "B"}, (23.5, 54.4, 119, 68.1, 38.4)),
    "varp B on weight": ({"varp_reading": "B", "base": "weight"}, (27.6, 79.7, 243, 85.7, 50.7)),
    "cosp paper rms": (PAPER, (24.4, 60.3, 182, 77.2, 39.9)),
    "cosp paper mean_abs": ({**PAPER, "aggregation": "mean_abs"}, (24.0, 59.4, 146, 71.3, 36.7)),
    "cosp paper sqrt": ({**PAPER, "aggregation": "sqrt"}, (24.1, 64.1, 149, 74.9, 37.5)),
    "cosp+varp on wanda": (BOTH, (24.1, 59.1, 157, 79.6, 41.3)),
    "cosp+varp on ria": ({**BOTH, "base": "ria"}, (22.8, 58.7, 181, 79.9, 35.7)),
}
"""An independent implementation measured these on another machine, with the protocol above."""

SWAPPED: dict[str, tuple[float, ...]] = {
    "wanda": (18.9, 56.1, 182, 75.5, 35.4),
    "varp on wanda": (18.9, 59.0, 144, 71.6, 35.4),
    "ria": (20.9, 63.5, 180, 72.6, 41.5),
    "varp on ria": (20.7, 56.8, 197, 69.5, 40.6),
    "cosp paper rms": (21.5, 58.1, 171, 77.5, 36.2),
    "cosp+varp on wanda": (21.5, 58.7, 219, 77.1, 34.2),
}
SHORT: dict[str, tuple[float, ...]] = {
    "wanda": (24.3, 63.1, 157, 74.0, 39.8),
    "varp on wanda": (24.6, 61.7, 137, 72.0, 39.4),
    "ria": (23.3, 73.2, 236, 85.2, 47.4),
    "varp on ria": (23.4, 62.6, 226, 88.8, 47.5),
    "cosp paper rms": (23.8, 60.5, 174, 74.4, 42.3),
    "cosp+varp on wanda": (24.3, 61.5, 156, 75.2, 42.7),
}


PROTOCOLS: dict[str, Callable[[Stories], tuple[Tensor, Tensor]]] = {
    "usual": lambda stories: (windows(stories.first)[:96], windows(stories.second)),
    "swapped": lambda stories: (windows(stories.second)[:96], windows(stories.first)),
    "short": lambda stories: (windows(stories.first, 16)[:128], windows(stories.second)),
}
"""Calibration and test windows."""


@pytest.fixture(scope="module")
def cell(stories: Stories) -> Callable[[str, str, str], float]:
    """`cell(name, pattern, protocol)`: a perplexity of the tables, measured once however many tests look at it."""

    @functools.cache
    def measure(name: str, pattern: str, protocol: str) -> float:
        return pruned(stories, *PROTOCOLS[protocol](stories), **TABLE[name][0], **PATTERNS[pattern])

    return measure


def check(
    cell: Callable[[str, str, str], float],
    name: str,
    row: tuple[float, ...],
    protocol: str,
    patterns: list[str],
) -> None:
    expected = [row[list(PATTERNS).index(pattern)] for pattern in patterns]
    found = [cell(name, pattern, protocol) for pattern in patterns]
    print(
        f"\n{name:20}",
        *(
            f"{pattern}: {value:.4g} ({other:.4g})  "
            for pattern, value, other in zip(patterns, found, expected, strict=True)
        ),
    )
    # Other kernels flip near ties, and a flipped weight moves an exploded perplexity by a few per cent.
    assert found == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "varp on wanda"])
def test_half_of_the_weights(cell: Callable[[str, str, str], float], name: str) -> None:
    check(cell, name, TABLE[name][1], "usual", ["50 %"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE)
def test_all_patterns(cell: Callable[[str, str, str], float], name: str) -> None:
    check(cell, name, TABLE[name][1], "usual", COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWAPPED)
def test_halves_swapped(cell: Callable[[str, str, str], float], name: str) -> None:
    check(cell, name, SWAPPED[name], "swapped", OTHER_COLUMNS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHORT)
def test_sixteen_token_calibration(cell: Callable[[str, str, str], float], name: str) -> None:
    check(cell, name, SHORT[name], "short", OTHER_COLUMNS)


@pytest.mark.slow
def test_exact_form_is_near_wanda_and_ahead_at_two_of_four(stories: Stories) -> None:
    calibration, test = windows(stories.first)[:96], windows(stories.second)
    assert pruned(stories, calibration, test, metric="cosp") == pytest.approx(22.95, rel=0.05)
    assert pruned(stories, calibration, test, metric="cosp", pattern="2:4") == pytest.approx(67.0, rel=0.05)


def test_signed_aggregation_is_clearly_wrong(stories: Stories, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the signed mean over tokens is not offered: it loses three times as much as the mean of absolute values."""

    def signed(self: CosineMoments, x: Tensor, a: Tensor) -> None:
        assert self.product is not None
        self.product.addmm_((a / a.square().sum(1, keepdim=True)).T, x)

    def loss(self: CosineMoments, inputs: InputMoments) -> Tensor:
        assert self.product is not None
        return (self.product / inputs.tokens).abs()

    monkeypatch.setattr(CosineMoments, "_update", signed)
    monkeypatch.setattr(CosineMoments, "loss", loss)
    found = pruned(stories, windows(stories.first)[:96], windows(stories.second), **PAPER)
    assert found == pytest.approx(82.8, rel=0.05)


def test_structured_cut_and_refit(stories: Stories) -> None:
    calibration, test = windows(stories.first)[:96], windows(stories.second)
    options = {"pattern": "structured", "ffn_sparsity": 0.5}
    cut, refitted = (
        pruned(stories, calibration, test, **options, reconstruct=flag) for flag in (False, True)
    )
    print(f"\nstructured, half of the FFN channels: {cut:.4g}, refitted: {refitted:.4g}")
    assert 30 < cut < 45
    assert refitted < 0.65 * cut
