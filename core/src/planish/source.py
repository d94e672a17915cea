"""Where a run starts: a model behind a URI, in a folder, or in memory, with the task it comes with."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import registry, weights
from planish.artifact import MANIFEST, Artifact
from planish.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn

    from planish.tasks import Task

# What belongs to a model in a transformers folder; everything else in it (readmes, other formats) is not part of it.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """The model a run starts from.

    Attributes:
        uri: how the user named it.
        artifact: the model on disk; None for a module in memory, which the run saves first.
        module: the module in memory, also what rebuilds artifacts of the builder ``module``.
        tokenizer: tokenizer of a module in memory.
        task: what "still works" means for it, where the source knows.
    """

    uri: str
    artifact: Artifact | None = None
    module: nn.Module | None = None
    tokenizer: Any = None
    task: Task | None = None

    def with_task(self, task: Task | None) -> Source:
        return self if task is None else replace(self, task=task)


def open_source(target: Source | Artifact | str | Path | nn.Module, tokenizer: Any = None) -> Source:
    """The source that ``target`` stands for.

    Raises:
        ArtifactError: nothing is there, it cannot be read, or nobody knows the scheme.
    """
    if isinstance(target, Source):
        return target
    if isinstance(target, Artifact):
        return Source(str(target.root), target)
    if not isinstance(target, str | Path):
        from torch import nn

        if not isinstance(target, nn.Module):
            raise ArtifactError(
                f"source {target!r} is neither a folder, a hub id, an artifact nor a torch module"
            )
        return Source(type(target).__name__, module=target, tokenizer=tokenizer)
    if not is_text(str(target)):
        raise ArtifactError(f"source {str(target)!r}: the name is not UTF-8, which safetensors files need")
    try:
        found: Source | None = registry.host().open_artifact(str(target))
    except OSError as error:
        raise ArtifactError(
            f"source {str(target)!r}: cannot be read ({error.strerror}: {error.filename})"
        ) from None
    if found is None:
        raise ArtifactError(
            f"source {str(target)!r}: no such folder, and no installed plugin knows it "
            "(a folder, a hub id like 'org/name', or a scheme like 'testbed:lm')"
        )
    return found


def is_text(name: str) -> bool:
    """Whether a name is text. Python holds the bytes of one that is no UTF-8 as lone surrogates."""
    return not any("\ud800" <= sign <= "\udfff" for sign in name)


def open_folder_or_hub(uri: str) -> Source | None:
    """Core's own resolver: an artifact, a transformers folder, or a hub id."""
    folder = Path(uri)
    if len(folder.name) > 255:
        return None  # no file system has such a name; asking would raise
    if folder.is_dir():
        if (folder / MANIFEST).is_file():
            return Source(uri, Artifact.open(folder))
        return Source(uri, describe_folder(folder))
    if folder.exists():
        raise ArtifactError(
            f"source {uri!r} is a file; a model is a folder with config.json and model.safetensors"
        )
    if uri.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(uri):
        return None
    return Source(uri, describe_folder(_download(uri)))


def describe_folder(folder: Path) -> Artifact:
    """A transformers folder as an artifact, in place: nothing is copied or written."""
    from planish.builders import transformers

    architecture = transformers.describe(folder)
    shards = {path.name for path in weights.files(folder)}
    names = [
        path.name
        for path in folder.iterdir()
        if any(fnmatch.fnmatch(path.name, pattern) for pattern in MODEL_FILES)
        and (path.suffix != ".safetensors" or path.name in shards)
    ]
    return Artifact.of(folder, "torch", "transformers", architecture, names=names)


def _download(uri: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        raise ArtifactError(f"source {uri!r} is a hub id, which needs: pip install huggingface-hub") from None
    try:
        return Path(snapshot_download(uri, allow_patterns=list(MODEL_FILES)))
    except (
        Exception
    ) as error:  # no network, no such model, no permission: all end here, each with its own class
        raise ArtifactError(
            f"source {uri!r}: not a local folder, and the hub gave no model ({type(error).__name__})"
        ) from None
