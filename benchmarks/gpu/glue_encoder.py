"""A small BERT-style encoder, trained from scratch on one task.

Embeddings (words, hashed character n-grams, positions, segments), norms and the classifier stay digital; what goes on
crossbars are the six matrices of each layer. The classifier reads the state of the first token, as BERT's does, so that all
it knows has passed through the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from glue_data import BUCKETS, LENGTHS, PAD, SPECIAL, UNKNOWN, VOCABULARY, Split, Task, Vocabulary
from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """What is chosen on held-out training rows."""

    lr: float = 1e-3
    epochs: int = 4
    depth: int = 4
    width: int = 128
    dropout: float = 0.1
    words_dropped: float = 0.2
    readout: Literal["first", "mean"] = "first"
    norm: Literal["layer", "rms"] = "layer"
    embeddings: Literal["trained", "random"] = "trained"
    start: Literal["normal", "uniform"] = "normal"
    batch: int = 64


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
    def __init__(self, inner: int, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(inner, width), _norm(width, recipe)
        self.dropout = nn.Dropout(recipe.dropout)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(residual + self.dropout(self.dense(x)))
        return normed


class Layer(nn.Module):
    """One layer of BERT: attention and feed-forward, each followed by the residual and a norm."""

    def __init__(self, width: int, recipe: Recipe) -> None:
        super().__init__()
        self.attention = nn.Module()
        self.attention.self = _Self(width, max(1, width // 32))
        self.attention.output = _Output(width, width, recipe)
        self.intermediate = nn.Module()
        self.intermediate.dense = nn.Linear(width, 4 * width)
        self.output = _Output(4 * width, width, recipe)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention.output(self.attention.self(x, mask), x)
        out: Tensor = self.output(F.gelu(self.intermediate.dense(x)), x)
        return out


class Encoder(nn.Module):
    """ids, kinds [N, T] to logits [N, classes]."""

    def __init__(self, vocabulary: Vocabulary, classes: int, recipe: Recipe) -> None:
        super().__init__()
        width = recipe.width
        self.recipe = recipe
        self.register_buffer("rows", vocabulary.rows, persistent=False)
        self.register_buffer("grams", vocabulary.grams, persistent=False)
        self.words, self.parts = nn.Embedding(VOCABULARY, width), nn.Embedding(BUCKETS, width)
        self.positions, self.kinds = nn.Embedding(LENGTHS[-1], width), nn.Embedding(4, width)
        for table in self.tables:
            nn.init.normal_(table, 0, 0.05)
            table.requires_grad_(recipe.embeddings == "trained")
        self.norm = _norm(width, recipe)
        self.layers = nn.ModuleList(Layer(width, recipe) for _ in range(recipe.depth))
        self.dropout, self.last = nn.Dropout(0.3), nn.Dropout(0.1)
        if recipe.start == "normal":  # as BERT's
            for module in self.layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, 0, 0.02)
                    nn.init.zeros_(module.bias)
        self.head = nn.Linear(width, classes)
        self.blocks = True

    @property
    def tables(self) -> list[nn.Parameter]:
        return [table.weight for table in (self.words, self.parts, self.positions, self.kinds)]

    def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
        if self.training:
            lost = torch.rand(ids.shape, device=ids.device) < self.recipe.words_dropped
            ids = ids.masked_fill(lost & (ids >= SPECIAL), UNKNOWN)
        x = self.states(ids, kinds)
        if self.recipe.readout == "mean":
            present = ids != PAD
            x = (x * present[..., None]).sum(1) / present.sum(1, keepdim=True)
        else:
            x = x[:, 0]
        logits: Tensor = self.head(self.last(x))
        return logits

    def states(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """What the last layer gives, [N, T, width]."""
        x = self.dropout(self.norm(self.embedded(ids, kinds)))
        if self.blocks:
            for layer in self.layers:
                x = layer(x, (ids != PAD)[:, None, None, :])
        return x

    def embedded(self, ids: Tensor, kinds: Tensor) -> Tensor:
        """Sums of table rows [N, T, width]; rows are picked in a way whose gradient a CUDA graph can hold."""
        grams = self.grams[ids.flatten()]
        parts = self.parts.weight.index_select(0, grams.flatten()).view(*grams.shape, -1)
        known = (grams > 0)[..., None]
        parts = (parts * known).sum(1) / known.sum(1).clamp_min(1).sqrt()
        found = self.words.weight.index_select(0, self.rows[ids.flatten()]) + parts
        found = found + self.kinds.weight.index_select(0, kinds.flatten())
        return found.view(*ids.shape, -1) + self.positions.weight[: ids.shape[1]]


def _norm(width: int, recipe: Recipe) -> nn.Module:
    return nn.LayerNorm(width) if recipe.norm == "layer" else nn.RMSNorm(width, eps=1e-5)


def loss_of(model: nn.Module, task: Task, ids: Tensor, kinds: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with smoothed labels, or half the squared error of a score from 0 to 5."""
    logits = model(ids, kinds)
    if task.classes == 1:
        return F.mse_loss(logits[:, 0] + 2.5, target) / 2
    return F.cross_entropy(logits, target, label_smoothing=0.1)


@torch.no_grad()
def score(model: nn.Module, task: Task, data: Split, size: int = 0) -> float:
    """The task's metric, in per cent."""
    model.eval()
    batches = data.sorted_batches(size or (1024 if data.ids.is_cuda else 128))
    logits = [model(data.ids[b, : data.padded(b)], data.kinds[b, : data.padded(b)]) for b in batches]
    return metric(task, torch.cat(logits), data.target[torch.cat(batches)])


def metric(task: Task, logits: Tensor, target: Tensor) -> float:
    guess = logits[:, 0] if task.classes == 1 else logits.argmax(1)
    if task.metric == "accuracy":
        return 100 * float((guess == target).double().mean())
    pair = torch.stack([guess.double(), target.double()])
    return 100 * float(torch.nan_to_num(torch.corrcoef(pair)[0, 1]))  # of two binary variables: Matthews'


def fitted(task: Task, vocabulary: Vocabulary, data: Split, recipe: Recipe, seed: int = 0) -> Encoder:
    """An encoder trained on a task."""
    torch.manual_seed(seed)
    model = Encoder(vocabulary, task.classes, recipe).to(data.ids.device)
    fit(model, lambda *batch: loss_of(model, task, *batch), data, recipe, seed)
    return model


def fit(
    model: nn.Module, loss: Callable[[Tensor, Tensor, Tensor], Tensor], data: Split, recipe: Recipe, seed: int
) -> None:
    """Train in place; the weights are a moving average over the last steps in the end."""
    device = data.ids.device
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = torch.zeros((), device=device)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=rate,
        betas=(0.9, 0.98),
        weight_decay=0.05,
        fused=True,
        capturable=device.type == "cuda",
    )
    average = [p.detach().clone() for p in parameters]

    def step(ids: Tensor, kinds: Tensor, target: Tensor) -> None:
        loss(ids, kinds, target).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    run = _Graphs(step, optimizer) if device.type == "cuda" else _plain(step, optimizer)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    epochs = [data.batches(recipe.batch, 1000 * seed + epoch) for epoch in range(recipe.epochs)]
    total, done = sum(map(len, epochs)), 0
    model.train()
    for batches in epochs:
        for batch, chosen in zip(batches, torch.stack(batches).to(device), strict=True):
            length = data.padded(batch)
            now = recipe.lr * min(1.0, done / (0.1 * total) + 0.01) * (1 - done / total)
            run(data.ids[chosen, :length], data.kinds[chosen, :length], data.target[chosen], rate, now)
            done += 1
            keep = min(0.995, (1 + done) / (10 + done))
            torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - keep)
    torch.backends.cuda.matmul.allow_tf32 = before
    with torch.no_grad():
        for parameter, smooth in zip(parameters, average, strict=True):
            parameter.copy_(smooth)
            parameter.grad = None
    model.eval()


Step = Callable[[Tensor, Tensor, Tensor], None]


def _plain(step: Step, optimizer: torch.optim.Optimizer) -> Callable[..., None]:
    def run(ids: Tensor, kinds: Tensor, target: Tensor, rate: Tensor, now: float) -> None:
        rate.fill_(now)
        optimizer.zero_grad()
        step(ids, kinds, target)

    return run


class _Graphs:
    """A step as one CUDA graph a length: hundreds of small kernels that a busy host would start one by one."""

    def __init__(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        self.step, self.optimizer = step, optimizer
        self.held: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Sequence[Tensor]]] = {}

    def __call__(self, ids: Tensor, kinds: Tensor, target: Tensor, rate: Tensor, now: float) -> None:
        if ids.shape not in self.held:
            rate.zero_()  # the steps that warm up move nothing
            self.held[ids.shape] = self._captured(ids, kinds, target)
        graph, inputs = self.held[ids.shape]
        for place, value in zip(inputs, (ids, kinds, target), strict=True):
            place.copy_(value)
        rate.fill_(now)
        graph.replay()

    def _captured(self, *values: Tensor) -> tuple[torch.cuda.CUDAGraph, Sequence[Any]]:
        inputs = [value.clone() for value in values]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.optimizer.zero_grad()
                self.step(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(*inputs)
        return graph, inputs
