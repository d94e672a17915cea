"""What the suite runs a method on: tiny decoders with a tokenizer that fits them, and a text made on the spot."""

from __future__ import annotations

import functools
import random
import string
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from planish.model import TorchModel
    from planish.tasks import LanguageModelling

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
_ABSENT = "`^~|"  # left out so that the vocabulary has the 96 entries of the tiny models
CHARACTERS = "\n" + "".join(chr(code) for code in range(32, 127) if chr(code) not in _ABSENT)

_WORDS = tuple(
    "hammer anvil sheet metal copper brass rivet edge curve light even blow smooth thin shape keep turn heat cool "  # noqa: SIM905
    "press bend hold mark fold line the a and of to in on with by as it is was one two three".split()
)


@functools.cache
def character_tokenizer() -> Any:
    """A tokenizer with one token a character: 96 in all, ids 0 to 3 for padding, begin, end and unknown."""
    from tokenizers import (  # type: ignore[import-untyped]
        Regex,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
    )
    from transformers import PreTrainedTokenizerFast

    pad, bos, eos, unk = SPECIAL
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, unk_token=unk
    )


@functools.cache
def text(characters: int, seed: int) -> str:
    """Sentences of common words, at least so many characters long; the same for the same seed."""
    draw = random.Random(seed)
    sentences: list[str] = []
    while sum(map(len, sentences)) < characters:
        words = draw.choices(_WORDS, k=draw.randint(4, 12))
        sentences.append(string.capwords(words[0]) + " " + " ".join(words[1:]) + ". ")
    return "".join(sentences)


def tiny_task(characters: int = 8192) -> LanguageModelling:
    """Language modelling on different texts for evaluation and calibration, in windows of 32 tokens."""
    from planish.tasks import LanguageModelling

    return LanguageModelling.model_validate(
        {
            "evaluation": {"text": text(1024, 1)},
            "calibration": {"text": text(characters, 2)},
            "window": 32,
            "batch": 2,
            "length": 16,
        }
    )


def tiny_model(name: str) -> TorchModel:
    """The model of `planish_sdk.fixtures.tiny` with its tokenizer, ready to be saved."""
    from planish.model import TorchModel
    from planish_sdk.fixtures import tiny

    return TorchModel(tiny(name), "transformers", character_tokenizer())


def without_layers() -> nn.Module:
    """A network in which no method finds a layer to work on: a table and a norm."""
    from torch import nn

    return nn.Sequential(nn.Embedding(96, 32), nn.LayerNorm(32))
