"""SST-2 and six SuperGLUE tasks as prompts whose next token is one of a few label words, as MeZO trains them.

SuperGLUE comes as 32 + 32 examples and the official validation set. The first half of the validation set joins the
training examples, the second half is the test set; sizes stand in `Prompts`.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from planish.errors import DataError

Example = tuple[str, int]
NLI = {"entailment": 0, "not_entailment": 1, "contradiction": 1, "neutral": 2}


@dataclass(frozen=True)
class Prompts:
    """Token ids [N, T] padded on the right, position [N] of the last token, label [N], and the label words' ids [K]."""

    ids: Tensor
    last: Tensor
    label: Tensor
    words: Tensor
    train: int

    def to(self, device: torch.device | str) -> Prompts:
        ids, last, label, words = (t.to(device) for t in (self.ids, self.last, self.label, self.words))
        return Prompts(ids, last, label, words, self.train)


def _pair(row: dict[str, Any]) -> Iterator[Example]:
    yield f"{row['premise']} Question: {row['hypothesis']} Yes or no? Answer:", NLI[row["label"]]


def _wsc(row: dict[str, Any]) -> Iterator[Example]:
    target = row["target"]
    question = f'In this text, does "{target["span2_text"]}" mean "{target["span1_text"]}"? Answer:'
    yield f"{row['text']} {question}", int(not row["label"])


def _copa(row: dict[str, Any]) -> Iterator[Example]:
    link = "because" if row["question"] == "cause" else "so"
    choices = f"first: {row['choice1']} second: {row['choice2']}"
    yield f"{row['premise']} {link} {choices} Answer:", int(row["label"])


def _boolq(row: dict[str, Any]) -> Iterator[Example]:
    yield f"{row['passage']} Question: {row['question']}? Answer:", int(not row["label"])


def _multirc(row: dict[str, Any]) -> Iterator[Example]:
    for question in row["passage"]["questions"]:
        for answer in question["answers"]:
            text = f"{row['passage']['text']} Question: {question['question']} {answer['text']} Is that right? Answer:"
            yield text, int(not answer["label"])


TASKS: dict[str, tuple[Callable[[dict[str, Any]], Iterator[Example]] | None, tuple[str, ...]]] = {
    "sst2": (None, ("great", "terrible")),
    "cb": (_pair, ("yes", "no", "maybe")),
    "rte": (_pair, ("yes", "no")),
    "wsc": (_wsc, ("yes", "no")),
    "copa": (_copa, ("first", "second")),
    "boolq": (_boolq, ("yes", "no")),
    "multirc": (_multirc, ("yes", "no")),
}
"""name -> (row of the file -> examples, label words)."""


def load(
    name: str, data: Path, tokenizer: Any, length: int = 64, train: int = 1000, test: int = 256
) -> Prompts:
    """At most ``train`` and ``test`` examples, cut at the left to ``length`` tokens.

    Raises DataError where the file is missing or damaged, or label words begin with one token.
    """
    make, words = TASKS[name]
    try:
        if make is None:
            examples = list(_sst2(data / "glue" / "sst2.train20k.tsv.gz"))[:train]
            examples += list(_sst2(data / "glue" / "sst2.dev.tsv.gz"))[:test]
            count = train
        else:
            with gzip.open(data / "text" / f"superglue_{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
                rows = [json.loads(line) for line in stream]
            given = list(_all(make, (row for row in rows if row["split"] in ("train", "dev"))))
            official = list(_all(make, (row for row in rows if row["split"] not in ("train", "dev"))))
            half = len(official) // 2
            known = (given + official[:half])[:train]
            examples, count = known + official[half:][:test], len(known)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"task {name}: {data} cannot be read ({type(error).__name__}: {error})") from None
    before = len(_tokens(tokenizer, "It"))
    first = [_tokens(tokenizer, f"It {word}")[before] for word in words]
    if len(set(first)) < len(first):
        raise DataError(f"task {name}: the label words {', '.join(words)} begin with the same token")
    ids = torch.zeros(len(examples), length, dtype=torch.long)
    last = torch.zeros(len(examples), dtype=torch.long)
    for row, (text, _) in enumerate(examples):
        tokens = _tokens(tokenizer, text)[-length:]
        ids[row, : len(tokens)] = torch.tensor(tokens)
        last[row] = len(tokens) - 1
    return Prompts(ids, last, torch.tensor([label for _, label in examples]), torch.tensor(first), count)


def _all(
    make: Callable[[dict[str, Any]], Iterator[Example]], rows: Iterable[dict[str, Any]]
) -> Iterator[Example]:
    for row in rows:
        yield from make(row)


def _sst2(path: Path) -> Iterator[Example]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            sentence, label = line.rstrip("\n").split("\t")
            yield f"{sentence.strip()} It was", 1 - int(label)


def _tokens(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids
