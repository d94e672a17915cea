"""A small BERT-style encoder and the GLUE tasks it is trained on, from scratch and from text files alone.

Tokens are lower-cased words. Their embedding is a table row for frequent words plus hashed character n-grams, so that rare and
unseen words share parts; positions, segments and "this word is in the other segment too" have tables of their own. All tables,
norms and the classifier stay digital; what goes on crossbars are the six matrices of each layer.
"""

from __future__ import annotations

import collections
import copy
import gzip
import json
import lzma
import math
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PAD, UNKNOWN, CLS, SEP, MASK = range(5)
WORD = re.compile(r"\w+|[^\w\s]")
VOCABULARY, BUCKETS, GRAMS = 16000, 16000, 16


@dataclass(frozen=True)
class Task:
    """One GLUE task: files, columns, metric, and how training and evaluation rows are told apart."""

    name: str
    train: str
    test: str
    pair: bool
    metric: str
    classes: int = 2
    note: str = ""


TASKS = (
    Task("sst2", "sst2.train20k", "sst2.dev", False, "accuracy"),
    Task("cola", "cola.train", "cola.dev", False, "Matthews correlation"),
    Task("mrpc", "mrpc.train", "mrpc.test", True, "accuracy", note="original training and test files"),
    Task("rte", "rte.train", "rte.dev", True, "accuracy"),
    Task("stsb", "stsb.train", "stsb.dev", True, "Pearson correlation", 1),
    Task("wnli", "wnli.train", "wnli.dev", True, "accuracy"),
    Task(
        "qqp", "qqp.train8k", "qqp.dev2k", True, "accuracy", note="a slice of the training file, cut in two"
    ),
    Task(
        "qnli", "qnli.dev", "qnli.dev", True, "accuracy", note="dev file only: even rows train, odd rows test"
    ),
)


def rows(folder: Path, name: str, limit: int | None) -> list[list[str]]:
    """Rows of a tab-separated file, without its header."""
    text = gzip.decompress((folder / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t") for line in text.rstrip("\n").split("\n")[1:]][:limit]


def split(folder: Path, task: Task, limit: int | None) -> tuple[list[list[str]], list[list[str]]]:
    """Training and evaluation rows; the two never share one."""
    train, test = rows(folder, task.train, limit), rows(folder, task.test, limit)
    if task.train == task.test:
        train, test = train[::2], test[1::2]
    return train, test


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def unlabelled(folder: Path) -> Iterator[str]:
    """Passages that no label belongs to, for the pre-training."""
    for path in sorted(folder.glob("superglue_*.jsonl.gz")):
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            passage = json.loads(line).get("passage", "")
            yield passage if isinstance(passage, str) else passage.get("text", "")
    for path in sorted(folder.glob("*.txt.xz")):
        if path.name.startswith(("wiki", "tinystories")):
            yield from lzma.decompress(path.read_bytes()).decode().split("\n")


class Vocabulary:
    """Word numbers, and for every word that occurs its table row and its hashed character n-grams."""

    def __init__(self, frequent: Sequence[str], every: Sequence[str]) -> None:
        """``frequent`` words have a table row, in this order; ``every`` word that occurs has a number."""
        row = {w: i + 5 for i, w in enumerate(frequent)}
        self.number = {w: i + 5 for i, w in enumerate(every)}
        self.rows = torch.tensor([PAD, UNKNOWN, CLS, SEP, MASK] + [row.get(w, UNKNOWN) for w in every])
        grams = torch.zeros(len(every) + 5, GRAMS, dtype=torch.long)
        for w, i in self.number.items():
            marked = f"<{w}>"
            found = [marked[s : s + n] for n in (3, 4, 5) for s in range(len(marked) - n + 1)][:GRAMS]
            grams[i, : len(found)] = torch.tensor([1 + zlib.crc32(g.encode()) % (BUCKETS - 1) for g in found])
        self.grams = grams

    @classmethod
    def of(cls, training: Sequence[Sequence[str]], others: Sequence[Sequence[str]]) -> Vocabulary:
        """Words that occur twice in the training text are frequent, as many as the table holds."""
        counts = collections.Counter(w for sentence in training for w in sentence)
        frequent = [w for w, n in counts.most_common(VOCABULARY - 5) if n > 1]
        return cls(frequent, [*counts, *sorted({w for sentence in others for w in sentence} - counts.keys())])

    def encode(self, first: list[str], second: list[str] | None, length: int) -> tuple[list[int], list[int]]:
        """(word numbers, kinds): kind 0 and 1 are the segments, plus 2 where the word is in the other one too."""
        if second is None:
            return [CLS] + [self.number[w] for w in first[: length - 1]], [0] * min(len(first) + 1, length)
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
    """Tensors of one task's rows: ids and kinds [N, T] padded, target [N], and the lengths."""

    ids: Tensor
    kinds: Tensor
    target: Tensor
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = (self.ids != PAD).sum(1)

    @classmethod
    def of(
        cls, task: Task, found: list[list[str]], vocabulary: Vocabulary, device: str, length: int = 96
    ) -> Split:
        ids = torch.zeros(len(found), length, dtype=torch.long)
        kinds = torch.zeros_like(ids)
        target = torch.zeros(len(found), dtype=torch.float if task.classes == 1 else torch.long)
        for i, row in enumerate(found):
            parts = [words(text) for text in row[:-1]]
            a, b = vocabulary.encode(parts[0], parts[1] if task.pair else None, length)
            ids[i, : len(a)], kinds[i, : len(b)] = torch.tensor(a), torch.tensor(b)
            target[i] = float(row[-1]) if task.classes == 1 else int(row[-1])
        return cls(ids.to(device), kinds.to(device), target.to(device))

    def batches(self, size: int, seed: int) -> list[Tensor]:
        """Row numbers of one epoch: random, but rows of one batch have similar lengths."""
        generator = torch.Generator().manual_seed(seed)
        lengths = self.lengths.cpu()
        order = torch.randperm(len(lengths), generator=generator)
        parts = [part[lengths[part].argsort(stable=True)] for part in order.split(50 * size)]
        found = [batch for part in parts for batch in part.split(size)]
        random.Random(seed).shuffle(found)
        return found


class _Self(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Output(nn.Module):
    def __init__(self, inner: int, width: int, dropout: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm, self.dropout = (
            nn.Linear(inner, width),
            nn.LayerNorm(width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(residual + self.dropout(self.dense(x)))
        return normed


class Layer(nn.Module):
    """One layer of BERT: attention and feed-forward, each followed by the residual and a norm."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = _Self(width, heads)
        self.attention.output = _Output(width, width, dropout)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, inner)
        self.output = _Output(inner, width, dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention.output(self.attention.self(x, mask), x)
        out: Tensor = self.output(F.gelu(self.intermediate.dense(x)), x)
        return out


class Encoder(nn.Module):
    """ids, kinds [N, T] to logits [N, classes]; a head on means over tokens, of both segments where there are two."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        dropout: float = 0.2,
        length: int = 96,
    ) -> None:
        super().__init__()
        self.register_buffer("rows", vocabulary.rows, persistent=False)
        self.register_buffer("grams", vocabulary.grams, persistent=False)
        self.words = nn.Embedding(VOCABULARY, width, padding_idx=PAD)
        self.parts = nn.EmbeddingBag(BUCKETS, width, mode="sum", padding_idx=0)
        self.positions, self.kinds = nn.Embedding(length, width), nn.Embedding(4, width)
        for table in (self.words, self.parts, self.positions, self.kinds):
            nn.init.normal_(table.weight, 0, 0.05)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width, heads, 4 * width, dropout) for _ in range(depth))
        self.dropout = nn.Dropout(0.3)
        self.words_dropped = 0.2
        self.blocks = True

    def set_task(self, task: Task) -> None:
        width = self.norm.normalized_shape[0]
        self.pair = task.pair
        self.head = nn.Linear(3 * width if task.pair else width, task.classes).to(self.norm.weight.device)

    def hidden(self, ids: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
        """States [N, T, width], and which positions hold a token."""
        if self.training:
            lost = (torch.rand(ids.shape, device=ids.device) < self.words_dropped) & (ids > MASK)
            ids = ids.masked_fill(lost, UNKNOWN)
        grams = self.grams[ids].flatten(0, 1)
        parts = self.parts(grams).view(*ids.shape, -1) / (grams > 0).sum(1).clamp_min(1).sqrt().view(
            *ids.shape, 1
        )
        x = self.words(self.rows[ids]) + parts + self.kinds(kinds) + self.positions.weight[: ids.shape[1]]
        x, present = self.dropout(self.norm(x)), ids != PAD
        if self.blocks:
            for layer in self.layers:
                x = layer(x, present[:, None, None, :])
        return x, present

    def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
        x, present = self.hidden(ids, kinds)
        means = [_mean(x, present)]
        if self.pair:
            a, b = _mean(x, present & (kinds % 2 == 0)), _mean(x, present & (kinds % 2 == 1))
            means += [(a - b).abs(), a * b]
        logits: Tensor = self.head(torch.cat(means, 1))
        return logits


def _mean(x: Tensor, chosen: Tensor) -> Tensor:
    return (x * chosen[..., None]).sum(1) / chosen.sum(1, keepdim=True).clamp_min(1)


def task_loss(model: Encoder, task: Task, data: Split, batch: Tensor) -> Tensor:
    """Cross entropy with smoothed labels, or the squared error of a score from 0 to 5."""
    length = int(data.lengths[batch].max())
    logits = model(data.ids[batch, :length], data.kinds[batch, :length])
    if task.classes == 1:
        return F.mse_loss(logits[:, 0] + 2.5, data.target[batch]) / 2
    return F.cross_entropy(logits, data.target[batch], label_smoothing=0.1)


@torch.no_grad()
def score(model: Encoder, task: Task, data: Split, size: int = 1024) -> float:
    """The task's metric, in per cent; by length, so that little padding is computed."""
    model.eval()
    order = data.lengths.argsort(stable=True)
    found = []
    for batch in order.split(size):
        length = int(data.lengths[batch[-1]])
        found.append(model(data.ids[batch, :length], data.kinds[batch, :length]))
    return metric(task, torch.cat(found), data.target[order])


def metric(task: Task, logits: Tensor, target: Tensor) -> float:
    if task.classes == 1:
        pair = torch.stack([logits[:, 0].double(), target.double()])
        return 100 * float(torch.nan_to_num(torch.corrcoef(pair)[0, 1]))
    guess = logits.argmax(1)
    if task.metric == "accuracy":
        return 100 * float((guess == target).double().mean())
    pair = torch.stack([guess.double(), target.double()])
    return 100 * float(torch.nan_to_num(torch.corrcoef(pair)[0, 1]))  # of two binary variables: Matthews'


def pretrain(
    model: Encoder, sentences: list[list[str]], vocabulary: Vocabulary, seconds: float, size: int = 256
) -> dict[str, Any]:
    """Masked words (15 %), predicted with the word table itself; stops when the time is over."""
    device = model.norm.weight.device
    pieces = [s[i : i + 40] for s in sentences for i in range(0, len(s), 40) if len(s) - i > 3 or i == 0]
    ids = torch.zeros(len(pieces), 41, dtype=torch.long)
    for i, piece in enumerate(pieces):
        ids[i, : len(piece) + 1] = torch.tensor([CLS] + [vocabulary.number[w] for w in piece])
    data = Split(ids.to(device), torch.zeros_like(ids).to(device), torch.zeros(len(ids), device=device))
    bias = nn.Parameter(torch.zeros(VOCABULARY, device=device))
    mix = nn.Linear(model.norm.normalized_shape[0], model.norm.normalized_shape[0]).to(device)
    parameters = [*model.parameters(), bias, *mix.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=device.type == "cuda")
    model.train()
    model.words_dropped, begin, losses, epoch = 0.0, time.time(), [], 0
    while (passed := time.time() - begin) < seconds:
        for batch in data.batches(size, epoch):
            passed = time.time() - begin
            if passed >= seconds:
                break
            warm = min(1.0, (len(losses) + 1) / 100)
            optimizer.param_groups[0]["lr"] = 1e-3 * warm * max(0.02, 1 - passed / seconds)
            true = data.ids[batch, : int(data.lengths[batch].max())]
            hidden = (torch.rand(true.shape, device=device) < 0.15) & (true > MASK)
            x, _ = model.hidden(true.masked_fill(hidden, MASK), torch.zeros_like(true))
            logits = F.linear(mix(x[hidden]), model.words.weight, bias)
            loss = F.cross_entropy(logits, model.rows[true[hidden]])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses.append(loss.detach())
        epoch += 1
    model.words_dropped = 0.2
    last = torch.stack(losses[-50:]).mean() if losses else torch.tensor(math.nan)
    return {"pieces": len(pieces), "steps": len(losses), "loss of the last steps": float(last)}


def train(model: Encoder, task: Task, data: Split, epochs: int, lr: float, seed: int, size: int = 64) -> None:
    """Fine-tune with a moving average of the weights, which is what stays in ``model``."""
    torch.manual_seed(seed)
    cuda = data.ids.is_cuda
    tables = [
        p for n, p in model.named_parameters() if n.startswith(("words.", "parts.", "positions.", "kinds."))
    ]
    others = [p for p in model.parameters() if not any(p is table for table in tables)]
    groups = [{"params": tables, "rate": 2 * lr}, {"params": others, "rate": lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05, fused=cuda)
    average = [p.detach().clone() for p in model.parameters()]
    total, done = epochs * -(-len(data.ids) // size), 0
    for epoch in range(epochs):
        model.train()
        for batch in data.batches(size, seed + epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * min(1.0, done / (0.1 * total) + 0.01) * (1 - done / total)
            loss = task_loss(model, task, data, batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            done += 1
            keep = min(0.995, (1 + done) / (10 + done))
            torch._foreach_lerp_(average, [p.detach() for p in model.parameters()], 1 - keep)
    with torch.no_grad():
        for parameter, smooth in zip(model.parameters(), average, strict=True):
            parameter.copy_(smooth)
    model.eval()


def averaged(models: Sequence[Encoder]) -> Encoder:
    """A model whose weights are the mean of several that were fine-tuned from one start."""
    mean = copy.deepcopy(models[0])
    with torch.no_grad():
        for parameter, *others in zip(mean.parameters(), *(m.parameters() for m in models), strict=True):
            parameter.copy_(torch.stack(others).mean(0))
    return mean


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    begin = time.time()
    return function(), time.time() - begin
