"""Does the ONNX graph compute what the torch model computes, at sizes that the export did not see?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_onnx.export import Dims, default_dims, on_cpu, run_torch
from planish_onnx.session import OnnxModel

TOLERANCE = 1e-4
"""Largest error allowed in float32, as a share of the largest logit. Right graphs were seen near 1e-6."""

HALF_TOLERANCE = 1e-2
"""The same for a graph that computes in float16, against torch in float32."""

INT8_BOUND = 0.5
"""Root-mean-square error allowed in int8, as a share of the spread of the logits. It catches garbage, no more:
unrelated logits of the same spread reach 1.41, right int8 graphs of trained models were seen below 0.1."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Error of the ONNX logits against the torch logits.

    Attributes:
        shapes: sizes of the inputs of the comparison.
        largest_logit: largest absolute logit of the torch model.
        max_error: largest absolute difference.
        relative_error: `max_error` / `largest_logit`.
        rms_error: root mean square of the difference / standard deviation of the torch logits.
        top1: share of positions whose largest logit is the same.
    """

    shapes: dict[str, tuple[int, ...]]
    largest_logit: float
    max_error: float
    relative_error: float
    rms_error: float
    top1: float


def verify(
    model: nn.Module,
    folder: Path,
    inputs: Mapping[str, Tensor],
    *,
    dynamic: Dims | None = None,
    tolerance: float = TOLERANCE,
    int8: bool = False,
    threads: int | None = None,
) -> Verification:
    """Compare `folder` with `model`, in float32 on the CPU.

    Args:
        inputs, dynamic: as given to `export`; the comparison uses other sizes of the dynamic axes.
        tolerance: bound on `relative_error` of a float graph.
        int8: bound `rms_error` by :data:`INT8_BOUND` instead, and report the errors.

    Raises:
        PlanishError: the error is above the bound or not a number; the text has error and bound.
    """
    batch = at_other_sizes(inputs, dynamic or default_dims(inputs))
    wanted = run_torch(on_cpu(model, "float32"), batch)
    found = OnnxModel(folder, threads=threads)(**batch)
    result = compare(wanted, torch.as_tensor(found).float(), batch)
    if int8 and not result.rms_error <= INT8_BOUND:
        raise PlanishError(
            f"{folder.name}: the int8 graph does not compute the torch model: root-mean-square error "
            f"{result.rms_error:.3g} of the logits' spread, bound {INT8_BOUND}"
        )
    if not int8 and not result.relative_error <= tolerance:
        raise PlanishError(
            f"{folder.name}: the ONNX graph does not compute the torch model: largest error {result.max_error:.3g} "
            f"at logits up to {result.largest_logit:.3g}, relative {result.relative_error:.3g}, tolerance {tolerance:g}"
        )
    return result


def compare(wanted: Tensor, found: Tensor, batch: Mapping[str, Tensor]) -> Verification:
    """Error statistics of two logit tensors of one shape; classes lie along the last axis."""
    if wanted.shape != found.shape:
        raise PlanishError(
            f"logits: torch gives shape {tuple(wanted.shape)}, ONNX gives {tuple(found.shape)}"
        )
    if not wanted.isfinite().all():
        raise PlanishError(
            "logits: the torch model itself returns values that are not finite; nothing to compare"
        )
    error = (wanted - found).double()
    largest, worst = wanted.abs().max().item(), error.abs().max().item()
    spread = wanted.double().std(correction=0).item()
    return Verification(
        shapes={name: tuple(tensor.shape) for name, tensor in batch.items()},
        largest_logit=largest,
        max_error=worst,
        relative_error=_ratio(worst, largest),
        rms_error=_ratio(error.square().mean().sqrt().item(), spread),
        top1=(wanted.argmax(-1) == found.argmax(-1)).double().mean().item(),
    )


def at_other_sizes(inputs: Mapping[str, Tensor], dims: Dims) -> dict[str, Tensor]:
    """The same inputs with three more rows along the first named axis and about half the length along the others.

    Positions are picked, never invented, so token ids stay valid and no sequence outgrows the model. Inputs that
    share an axis name are picked alike.
    """
    picks: dict[str, Tensor] = {}
    result = {}
    for name, tensor in inputs.items():
        for axis, label in sorted(dims.get(name, {}).items()):
            if label not in picks:
                picks[label] = _pick(tensor.shape[axis], first=not picks)
            tensor = tensor.index_select(axis, picks[label].to(tensor.device))
        result[name] = tensor
    return result


def _pick(size: int, first: bool) -> Tensor:
    if first or size < 4:
        return torch.arange(size + 3) % size
    return torch.arange(size // 2 + 1)


def _ratio(value: float, scale: float) -> float:
    return value / scale if scale else (0.0 if value == 0 else float("inf"))
