"""The metrics core ships."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from planish.errors import PlanishError
from planish.measure import Measurement

if TYPE_CHECKING:
    from planish.model import Model
    from planish.tasks import Classification, LanguageModelling, NodeClassification


def perplexity(model: Model, task: LanguageModelling, batch_size: int = 8) -> list[Measurement]:
    """Perplexity and bits per byte over non-overlapping windows.

    The loss is the cross entropy of window-1 predictions a window, in float32, averaged over all windows; windows are
    of equal length, so this is the plain mean over predictions. The spread is one standard error over windows.

    Raises:
        PlanishError: the logits hold NaN or infinity.
    """
    import torch

    windows = task.evaluation_windows(model.tokenizer)
    losses: list[float] = []
    for start in range(0, len(windows), batch_size):
        rows = windows[start : start + batch_size]
        logits = model({"input_ids": rows})
        targets = rows[:, 1:].to(logits.device)
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none"
        )
        losses += loss.view(len(rows), -1).mean(dim=1).tolist()
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise PlanishError(
            f"perplexity: the model's loss is {mean}; its weights or logits hold NaN or infinity"
        )
    error = _standard_error(losses, mean)
    value = math.exp(min(mean, 700.0))
    how = f"{len(losses)} windows of {task.window} tokens, spread is one standard error"
    bits = 1.0 / math.log(2.0) / task.bytes_a_token(model.tokenizer)
    return [
        Measurement("perplexity", value, "", len(losses), value * error, model.runtime, how, True),
        Measurement("bits per byte", mean * bits, "bit", len(losses), error * bits, model.runtime, how, True),
    ]


def accuracy(model: Model, task: Classification | NodeClassification) -> list[Measurement]:
    """Share of right answers in per cent, with its sample size; the spread is one binomial standard error.

    Raises:
        PlanishError: there is no test sample, the logits hold NaN, or labels and answers differ in shape.
    """
    right = total = 0
    for logits, labels in task.answers(model):
        if logits.isnan().any():
            raise PlanishError("accuracy: the model's logits hold NaN")
        answers = logits.cpu().argmax(dim=-1)
        if answers.shape != labels.shape:
            raise PlanishError(
                f"accuracy: labels have the shape {tuple(labels.shape)}, answers {tuple(answers.shape)}"
            )
        right += int((answers == labels).sum())
        total += len(labels)
    if total == 0:
        raise PlanishError(f"accuracy: task {task.kind} has no test sample")
    share = right / total
    error = math.sqrt(share * (1 - share) / total)
    how = f"{total} test samples, spread is one standard error"
    return [Measurement("accuracy", 100 * share, "%", total, 100 * error, model.runtime, how, False)]


def _standard_error(values: list[float], mean: float) -> float:
    if len(values) < 2:
        return 0.0
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
