"""Masked words: the task that a BERT is pre-trained on, with the small encoder and the text at hand.

Classifying a sentence needs one direction out of 128; telling which of thousands of words is missing needs many.
"""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from glue_data import CLS, TASKS, UNKNOWN, VOCABULARY, Rows, Split, Vocabulary, split, words
from glue_encoder import Encoder, Recipe
from torch import Tensor, nn

PIECE, HIDDEN = 31, 4
"""Words of a piece of text, and how many of them are hidden."""


class Words(Encoder):
    """ids, kinds [N, T] to logits [N * HIDDEN, VOCABULARY] of the words where kinds is 1, in their order."""

    def __init__(self, vocabulary: Vocabulary, recipe: Recipe) -> None:
        super().__init__(vocabulary, recipe.width, recipe)
        self.bias = nn.Parameter(torch.zeros(VOCABULARY))

    def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
        places = kinds.topk(HIDDEN).indices.sort(dim=1).values
        x = self.states(ids, kinds).gather(1, places[..., None].expand(-1, -1, self.recipe.width))
        return F.linear(self.head(x.flatten(0, 1)), self.words.weight, self.bias)


def pieces(folder: Path, limit: int | None) -> tuple[list[list[str]], list[list[str]]]:
    """Pieces of text of 31 words for training and for the test; no label is read."""
    train, test = [], []
    for text in _texts(folder):
        found = words(text)
        target = test if text.startswith("\0") else train
        target += [found[i : i + PIECE] for i in range(0, len(found) - PIECE + 1, PIECE)]
    return train[:limit], test[:limit]


def _texts(folder: Path) -> Iterator[str]:
    """Long texts, so that few pieces are lost; those for the test start with a zero byte."""
    for task in TASKS:
        rows, _ = split(folder / "glue", task)
        yield " ".join(text for row in rows for text in row[:-1])
    for path in sorted((folder / "text").glob("superglue_*.jsonl.gz")):
        lines = map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines())
        passages = (line.get("passage", "") for line in lines)
        yield " ".join(p if isinstance(p, str) else p.get("text", "") for p in passages)
    yield lzma.decompress((folder / "text" / "tinystories_sample.txt.xz").read_bytes()).decode()
    yield lzma.decompress((folder / "text" / "wiki.valid.txt.xz").read_bytes()).decode()
    wiki = lzma.decompress((folder / "text" / "wiki.test.txt.xz").read_bytes()).decode()
    cut = len(wiki) * 4 // 5
    yield wiki[:cut]
    yield "\0" + wiki[cut:]


def rows_of(found: list[list[str]]) -> Rows:
    return [[" ".join(piece), ""] for piece in found]


def tensors(found: list[list[str]], vocabulary: Vocabulary, device: str, hide: bool) -> Split:
    """Pieces as they are, or with the same words hidden each time; the target is then their rows in the word table."""
    ids = torch.tensor([[CLS] + [vocabulary.number[w] for w in piece] for piece in found]).to(device)
    if not hide:
        return Split(ids, torch.zeros_like(ids), ids)
    draws = torch.rand(len(ids), PIECE, generator=torch.Generator().manual_seed(0))
    return Split(*_hidden(ids, draws.to(device), vocabulary.rows.to(device)))


def loss_of(model: Words, ids: Tensor) -> Tensor:
    """Cross entropy of words that are drawn anew each time."""
    seen, kinds, target = _hidden(ids, torch.rand(len(ids), PIECE, device=ids.device), model.rows)
    return F.cross_entropy(model(seen, kinds), target.flatten(), ignore_index=UNKNOWN)


def _hidden(ids: Tensor, draws: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(ids as the model sees them, kinds, rows of the hidden words in the table)."""
    places = 1 + draws.topk(HIDDEN).indices.sort(dim=1).values
    kinds = torch.zeros_like(ids).scatter_(1, places, 1)
    return ids.masked_fill(kinds == 1, UNKNOWN), kinds, rows[ids.gather(1, places)]


def accuracy(guess: Tensor, target: Tensor) -> float:
    """Share of hidden words found, in per cent, among those that have a row of their own."""
    known = target != UNKNOWN
    return 100 * float((guess.view_as(target) == target)[known].double().mean())
