"""Data references: where data comes from, and a fingerprint by which a resumed run knows that it is the same."""

from __future__ import annotations

import gzip
import lzma
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from planish import digest
from planish.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

_OPENERS = {".xz": lzma.open, ".gz": gzip.open}


class Text(BaseModel):
    """Text in a file (plain, ``.xz`` or ``.gz``) or in memory, as a list of documents."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Path | None = Field(None, description="file with UTF-8 text, optionally compressed (.xz, .gz)")
    text: str | None = Field(None, description="the text itself, instead of a file")
    separator: str = Field("", description="string between documents; empty: the whole text is one document")
    before: str = Field(
        "", description="string put before each document when it is tokenised, such as a special token"
    )
    documents: str = Field("", description="which documents, as 'first:last' like a Python slice; empty: all")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.text is None):
            raise ValueError("give either path or text")
        _slice(self.documents)
        return self

    def read(self) -> list[str]:
        """The documents chosen, without empty ones and without white space around them.

        Raises:
            DataError: the file is missing, unreadable or not UTF-8, or no document is left.
        """
        text = self._raw() if self.text is None else self.text
        parts = text.split(self.separator) if self.separator else [text]
        documents = [part.strip() for part in parts if part.strip()]
        chosen = documents[_slice(self.documents)]
        if not chosen:
            raise DataError(
                f"text {self.path or 'in memory'}: no document in {self.documents or 'it'!r} of {len(documents)}"
            )
        return chosen

    def fingerprint(self) -> str:
        return digest.of_json([self.before, self.read()])

    def _raw(self) -> str:
        assert self.path is not None
        opener: Any = _OPENERS.get(self.path.suffix, open)
        try:
            with opener(self.path, "rt", encoding="utf-8") as stream:
                return str(stream.read())
        except (OSError, EOFError, lzma.LZMAError, zlib.error, UnicodeDecodeError) as error:
            raise DataError(f"text {self.path}: {error}") from None


class Tensors(BaseModel):
    """Named arrays in memory, or in a ``.npz`` file without pickles: ``train_x``, ``train_y``, ``test_x``, ``test_y``."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    path: Path | None = Field(None, description=".npz file with the arrays")
    values: dict[str, Any] | None = Field(None, description="the tensors themselves, instead of a file")

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.values is None):
            raise ValueError("give either path or values")
        return self

    def read(self, *names: str) -> list[Tensor]:
        """The tensors of these names.

        Raises:
            DataError: the file is missing or damaged, holds pickles, lacks a name, or something is no array of numbers.
        """
        values = self._raw() if self.values is None else self.values
        for name in names:
            if name not in values:
                raise DataError(
                    f"data {self.path or 'in memory'}: no array {name!r} (has: {', '.join(sorted(values))})"
                )
        return [self._tensor(name, values[name]) for name in names]

    def fingerprint(self) -> str:
        """Raises DataError as `read` does."""
        import torch

        values = self._raw() if self.values is None else self.values
        parts: list[bytes] = []
        for name in sorted(values):
            tensor = self._tensor(name, values[name]).detach().cpu()
            content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            parts += [f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode(), content]
        return digest.of_bytes(*parts)

    def _tensor(self, name: str, value: Any) -> Tensor:
        import torch

        try:
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"data {self.path or 'in memory'}: {name!r} is no array of numbers ({reason})"
            ) from None

    def _raw(self) -> dict[str, Any]:
        import numpy as np

        assert self.path is not None
        try:
            archive = np.load(self.path, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError(
                    f"data {self.path}: holds one array; an .npz file with named arrays is needed"
                )
            with archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"data {self.path}: {error}") from None


def _slice(text: str) -> slice:
    if not text:
        return slice(None)
    first, colon, last = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        raise ValueError(f"documents must read 'first:last', not {text!r}") from None
