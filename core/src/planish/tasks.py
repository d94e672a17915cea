"""Tasks: what "still works" means for a model. Data, loss, metric, and a typical input to time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from planish import digest, registry
from planish.config import validate
from planish.data import Tensors, Text
from planish.errors import ConfigError, DataError
from planish.measure import Measurement
from planish.method import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from planish.model import Model


class Task(BaseModel, ABC):
    """Base of all tasks. A task is data as well: `planish.recipe` writes it to a file and reads it back."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: ClassVar[str]

    @property
    def offers(self) -> set[str]:
        """Which of ``"calibration"`` and ``"training"`` it has data for; methods name what they need."""
        return set()

    @property
    def axes(self) -> dict[str, dict[int, str]] | None:
        """Axes of the example whose size may vary, by input and position, with a name each.

        None stands for the usual: axis 0 is the batch, and axis 1 of a matrix of token ids the sequence.
        """
        return None

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of everything that decides the figures: data and settings."""

    @abstractmethod
    def example(self, model: Model, size: int | None = None) -> dict[str, Tensor]:
        """One typical input, of ``size`` samples or the task's own batch size: for timing, export and checks."""

    def loss(self, model: Any, batch: dict[str, Tensor], target: Tensor) -> Tensor:
        """Training loss of one batch, a scalar with its graph."""
        import torch

        output = model.module(**batch)
        logits = getattr(output, "logits", output)
        return torch.nn.functional.cross_entropy(logits.float(), target)

    def evaluate(self, model: Model) -> list[Measurement]:
        """Every registered metric for this kind of task."""
        found: list[Measurement] = []
        for owned in registry.host().evaluators(self.kind):
            found += resolve(owned.record.target)(model, self)
        return found


class LanguageModelling(Task):
    """Predict the next token. Documents are tokenised one by one as the tokenizer does by default, then joined."""

    kind: ClassVar[str] = "language-modelling"

    evaluation: Text = Field(description="text whose perplexity is measured")
    calibration: Text | None = Field(
        None, description="text that methods may look at; never the evaluation text"
    )
    window: int = Field(256, ge=2, description="tokens a window; windows do not overlap, the tail is dropped")
    windows: int | None = Field(None, ge=1, description="at most so many windows; all by default")
    batch: int = Field(1, ge=1, description="sequences in the input that is timed")
    length: int = Field(128, ge=2, description="tokens a sequence in the input that is timed")

    @property
    def offers(self) -> set[str]:
        return {"calibration", "training"} if self.calibration else set()

    def fingerprint(self) -> str:
        calibration = self.calibration.fingerprint() if self.calibration else None
        settings = [self.window, self.windows, self.batch, self.length]
        return digest.of_json([self.kind, self.evaluation.fingerprint(), calibration, settings])

    def tokens(self, part: str, tokenizer: Any) -> Tensor:
        """Token ids [T] of ``"evaluation"`` or ``"calibration"`` text.

        Raises:
            DataError: the model has no tokenizer, or the task has no such text.
        """
        import torch

        text: Text | None = getattr(self, part)
        if text is None:
            raise DataError(f"task {self.kind}: no {part} text is given")
        if tokenizer is None:
            raise DataError(
                f"task {self.kind}: the model has no tokenizer (its folder holds no tokenizer.json)"
            )
        ids = [
            i
            for document in text.read()
            for i in tokenizer(text.before + document, verbose=False)["input_ids"]
        ]
        return torch.tensor(ids, dtype=torch.long)

    def evaluation_windows(self, tokenizer: Any) -> Tensor:
        """Token ids [N, window] of the evaluation text.

        Raises:
            DataError: the text is shorter than one window.
        """
        ids = self.tokens("evaluation", tokenizer)
        count = len(ids) // self.window
        if count == 0:
            raise DataError(
                f"task {self.kind}: evaluation text has {len(ids)} tokens, fewer than window = {self.window}"
            )
        rows = ids[: count * self.window].view(count, self.window)
        return rows[: self.windows] if self.windows else rows

    def bytes_a_token(self, tokenizer: Any) -> float:
        """UTF-8 bytes of evaluation text for each of its tokens: turns a loss a token into bits a byte."""
        size = sum(len(document.encode()) for document in self.evaluation.read())
        return size / len(self.tokens("evaluation", tokenizer))

    def example(self, model: Model, size: int | None = None) -> dict[str, Tensor]:
        """``input_ids`` [batch, length] from the evaluation text."""
        ids = self.tokens("evaluation", model.tokenizer)
        batch = size or self.batch
        if len(ids) < self.length:
            raise DataError(
                f"task {self.kind}: evaluation text has {len(ids)} tokens, fewer than length = {self.length}"
            )
        rows = ids[: len(ids) // self.length * self.length].view(-1, self.length)
        return {"input_ids": rows.repeat(-(-batch // len(rows)), 1)[:batch]}

    def loss(self, model: Any, batch: dict[str, Tensor], target: Tensor) -> Tensor:
        """Cross entropy of ``target`` [N, T] one position ahead of the logits."""
        import torch

        logits = model.module(**batch, use_cache=False).logits.float()
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


class Classification(Task):
    """One label a sample: images, vectors, skeleton sequences."""

    kind: ClassVar[str] = "classification"

    data: Tensors = Field(description="train_x, train_y, test_x, test_y")
    input: str = Field("x", description="name of the model's input")
    batch: int = Field(64, ge=1, description="samples a batch, in evaluation and in the input that is timed")

    @property
    def offers(self) -> set[str]:
        return {"calibration", "training"}

    def fingerprint(self) -> str:
        return digest.of_json([self.kind, self.data.fingerprint(), self.input, self.batch])

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Inputs and labels of ``"train"`` or ``"test"`` in stored order."""
        x, y = self.data.read(f"{split}_x", f"{split}_y")
        for start in range(0, len(x), self.batch):
            yield {self.input: x[start : start + self.batch]}, y[start : start + self.batch]

    def example(self, model: Model, size: int | None = None) -> dict[str, Tensor]:
        (x,) = self.data.read("test_x")
        return {self.input: x[: size or self.batch]}

    def answers(self, model: Model) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits, labels) over the test split."""
        for batch, labels in self.batches("test"):
            yield model(batch), labels


class SkeletonAction(Classification):
    """One action a sequence of skeletons [N, C, T, V, M]: coordinates, frames, joints, bodies."""

    kind: ClassVar[str] = "skeleton-action"


class NodeClassification(Task):
    """One label a node of a single graph: x [N, F], edge_index [2, E], y [N], and boolean masks of the splits."""

    kind: ClassVar[str] = "node-classification"

    data: Tensors = Field(description="x, edge_index, y, train_mask, val_mask, test_mask")

    @property
    def offers(self) -> set[str]:
        return {"calibration", "training"}

    def fingerprint(self) -> str:
        return digest.of_json([self.kind, self.data.fingerprint()])

    @property
    def axes(self) -> dict[str, dict[int, str]]:
        return {"x": {0: "nodes"}, "edge_index": {1: "edges"}}

    def example(self, model: Model, size: int | None = None) -> dict[str, Tensor]:
        """The whole graph; ``size`` has no meaning here."""
        x, edge_index = self.data.read("x", "edge_index")
        return {"x": x, "edge_index": edge_index}

    def answers(self, model: Model) -> Iterator[tuple[Tensor, Tensor]]:
        """(logits, labels) of the nodes in the test split."""
        y, mask = self.data.read("y", "test_mask")
        logits = model(self.example(model)).cpu()
        yield logits[mask], y[mask]


TASKS: dict[str, type[Task]] = {
    task.kind: task for task in (LanguageModelling, Classification, SkeletonAction, NodeClassification)
}


def make_task(options: dict[str, Any]) -> Task:
    """The task that a recipe describes: ``{"kind": …, …}``.

    Raises:
        ConfigError: the kind is unknown or a field does not fit.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    if not isinstance(kind, str) or kind not in TASKS:
        raise ConfigError(f"task: kind = {kind!r} is not one of {', '.join(TASKS)}")
    return validate(TASKS[kind], options, f"task {kind}")
