"""GLUE tasks from text files: rows, words, what is held out for choosing a recipe, and tensors.

Tokens are lower-cased words. A frequent word has a row in a table; every word has hashed character n-grams, so that rare and
unseen words share parts.
"""

from __future__ import annotations

import collections
import gzip
import random
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

PAD, UNKNOWN, CLS, SEP = range(4)
SPECIAL = 4
WORD = re.compile(r"\w+|[^\w\s]")
VOCABULARY, BUCKETS, GRAMS = 16000, 16000, 16
LENGTHS = (16, 32, 48, 64, 96)
"""Lengths that a batch is padded to: few, because each has a CUDA graph of its own."""


@dataclass(frozen=True)
class Task:
    """One GLUE task: files, columns, metric, and how training and evaluation rows are told apart."""

    name: str
    train: str
    test: str
    pair: bool
    metric: str
    classes: int = 2
    phrases: bool = False
    note: str = ""


TASKS = (
    Task("sst2", "sst2.train20k", "sst2.dev", False, "accuracy", phrases=True),
    Task("cola", "cola.train", "cola.dev", False, "Matthews correlation"),
    Task("mrpc", "mrpc.train", "mrpc.test", True, "accuracy", note="original training and test files"),
    Task("rte", "rte.train", "rte.dev", True, "accuracy"),
    Task("stsb", "stsb.train", "stsb.dev", True, "Pearson correlation", 1),
    Task("wnli", "wnli.train", "wnli.dev", True, "accuracy"),
    Task("qqp", "qqp.train8k", "qqp.dev2k", True, "accuracy", note="a slice of the training file, in two"),
    Task("qnli", "qnli.dev", "qnli.dev", True, "accuracy", note="dev file only: even rows train, odd test"),
)

Rows = list[list[str]]


def rows(folder: Path, name: str, limit: int | None) -> Rows:
    """Rows of a tab-separated file, without its header."""
    text = gzip.decompress((folder / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]][:limit]


def split(folder: Path, task: Task, limit: int | None = None) -> tuple[Rows, Rows]:
    """Training and evaluation rows; the two never share one."""
    train, test = rows(folder, task.train, limit), rows(folder, task.test, limit)
    if task.train == task.test:
        train, test = train[::2], test[1::2]
    return train, test


def hold_out(task: Task, train: Rows, share: float = 0.1) -> tuple[Rows, Rows]:
    """Training rows in two: what recipes are fitted on, and what they are chosen on.

    SST-2's training rows are mostly phrases, cut from sentences that are rows too, while its evaluation rows are whole
    sentences. Held out there are sentences of 16 words and more; a row that has half its trigrams in them is dropped.
    """
    order = list(range(len(train)))
    random.Random(0).shuffle(order)
    if not task.phrases:
        cut = round(share * len(order))
        return [train[i] for i in order[cut:]], [train[i] for i in order[:cut]]
    split_up = [words(row[0]) for row in train]
    long = [i for i in order if len(split_up[i]) >= 16]
    held = set(long[: round(0.5 * share * len(order))])
    seen = {gram for i in held for gram in _trigrams(split_up[i])}
    fit = []
    for i in order:
        grams = _trigrams(split_up[i])
        if i not in held and 2 * len(grams & seen) <= len(grams):
            fit.append(train[i])
    return fit, [train[i] for i in sorted(held)]


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def _trigrams(found: list[str]) -> set[tuple[str, ...]]:
    return {tuple(found[i : i + 3]) for i in range(len(found) - 2)}


class Vocabulary:
    """Word numbers, and for every word that occurs its table row and its hashed character n-grams."""

    def __init__(self, training: Rows, others: Rows) -> None:
        """Words that occur twice in ``training`` are frequent; ``others`` only add words that have n-grams alone."""
        counts = collections.Counter(w for row in training for text in row[:-1] for w in words(text))
        row = {w: i + SPECIAL for i, (w, n) in enumerate(counts.most_common(VOCABULARY - SPECIAL)) if n > 1}
        unseen = {w for row in others for text in row[:-1] for w in words(text)} - counts.keys()
        every = [*counts, *sorted(unseen)]
        self.number = {w: i + SPECIAL for i, w in enumerate(every)}
        self.rows = torch.tensor([*range(SPECIAL), *(row.get(w, UNKNOWN) for w in every)])
        self.grams = torch.zeros(len(every) + SPECIAL, GRAMS, dtype=torch.long)
        for w, i in self.number.items():
            marked = f"<{w}>"
            found = [marked[s : s + n] for n in (3, 4, 5) for s in range(len(marked) - n + 1)][:GRAMS]
            hashes = [1 + zlib.crc32(gram.encode()) % (BUCKETS - 1) for gram in found]
            self.grams[i, : len(hashes)] = torch.tensor(hashes)

    def encode(self, texts: Sequence[list[str]], length: int) -> tuple[list[int], list[int]]:
        """(word numbers, kinds) of a row; kinds 0 and 1 are the segments, plus 2 where the other one has the word too."""
        if len(texts) == 1:
            ids = [CLS] + [self.number[w] for w in texts[0][: length - 1]]
            return ids, [0] * len(ids)
        first, second = texts
        half = (length - 3) // 2
        first, second = (
            first[: max(half, length - 3 - len(second))],
            second[: max(half, length - 3 - len(first))],
        )
        a, b = set(first), set(second)
        ids = [CLS] + [self.number[w] for w in first] + [SEP] + [self.number[w] for w in second] + [SEP]
        kinds = [0] + [2 * (w in b) for w in first] + [0] + [1 + 2 * (w in a) for w in second] + [1]
        return ids, kinds


@dataclass
class Split:
    """Tensors of one task's rows: ids and kinds [N, T] padded, target [N], and the lengths (on the CPU)."""

    ids: Tensor
    kinds: Tensor
    target: Tensor
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = (self.ids != PAD).sum(1).cpu()

    @classmethod
    def of(cls, task: Task, found: Rows, vocabulary: Vocabulary, device: str) -> Split:
        longest = LENGTHS[-1]
        ids = torch.zeros(len(found), longest, dtype=torch.long)
        kinds = torch.zeros_like(ids)
        target = torch.zeros(len(found), dtype=torch.float if task.classes == 1 else torch.long)
        for i, row in enumerate(found):
            a, b = vocabulary.encode([words(text) for text in row[:-1]][: 1 + task.pair], longest)
            ids[i, : len(a)], kinds[i, : len(b)] = torch.tensor(a), torch.tensor(b)
            target[i] = float(row[-1]) if task.classes == 1 else int(row[-1])
        return cls(ids.to(device), kinds.to(device), target.to(device))

    def part(self, chosen: Tensor) -> Split:
        return Split(self.ids[chosen], self.kinds[chosen], self.target[chosen])

    def padded(self, batch: Tensor) -> int:
        """The length that a batch of these rows is padded to."""
        longest = int(self.lengths[batch].max())
        return next(length for length in LENGTHS if length >= longest)

    def batches(self, size: int, seed: int) -> list[Tensor]:
        """Row numbers of one epoch in batches of one size; random, but rows of a batch have similar lengths."""
        size = min(size, len(self.lengths))
        order = torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed))
        parts = [part[self.lengths[part].argsort(stable=True)] for part in order.split(50 * size)]
        found = [batch for part in parts for batch in part.split(size) if len(batch) == size]
        random.Random(seed).shuffle(found)
        return found

    def sorted_batches(self, size: int) -> list[Tensor]:
        """All row numbers, by length, so that little padding is computed."""
        return list(self.lengths.argsort(stable=True).split(size))
