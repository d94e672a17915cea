"""The order of operations: block by block, collect, score, select, zero, and send the hidden states on."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from planish.errors import DataError, PlanishError
from planish_ace.block import Masked, Observer, Step, Structured
from planish_ace.config import SEQLEN, AceConfig
from planish_ace.metrics import Metric
from planish_sdk.blocks import BlockWalker, WeightView, find_blocks, weight_views
from planish_sdk.calibrate import windows as draw
from planish_sdk.surgery import Changes, update_config


class Unit(Protocol):
    """Where one block's result is kept, so that a killed run resumes after it (`planish.context.Unit` is one)."""

    def load(self) -> dict[str, Tensor] | None: ...
    def save(self, tensors: dict[str, Tensor]) -> None: ...


@dataclass
class PruneReport:
    """What was done, in figures counted from the pruned weights.

    options: the full config: metric, base, readings, propagation. samples, seqlen: of the calibration set, 0 where none was read.
    layers: full name of every matrix -> its share of zeros. zeros, weights: over all of them.
    removed: parameters that structured pruning cut out. kept: block -> FFN channels and key-value groups, (before, after).
    changes: integer attributes set by the surgery, by module path. uniform: whether the model's own config says the sizes,
    so that plain ``from_pretrained`` opens the result.
    fallbacks: matrices of experts that no token reached, scored by magnitude. skipped: tied matrices, left alone.
    resumed: blocks taken from an earlier, killed run.
    seconds: calibration (forward passes and statistics), scoring (scores, masks, surgery), loading (``load`` and units).
    """

    options: dict[str, Any]
    seed: int
    samples: int = 0
    seqlen: int = 0
    zeros: int = 0
    weights: int = 0
    removed: int = 0
    uniform: bool = True
    layers: dict[str, float] = field(default_factory=dict)
    kept: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    fallbacks: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Calibration tokens that ran through the model."""
        return self.samples * self.seqlen

    @property
    def sparsity(self) -> float:
        """Share of zeros in all listed matrices."""
        return self.zeros / self.weights if self.weights else 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON types only."""
        return {**asdict(self), "tokens": self.tokens, "sparsity": self.sparsity}

    def add(self, worker: Masked) -> None:
        """Count one pruned block."""
        block = worker.step.name
        views = worker.targets
        counts = torch.stack([(view.read() == 0).sum() for view in views.values()]).tolist() if views else []
        for (name, view), zeros in zip(views.items(), counts, strict=True):
            size = view.shape[0] * view.shape[1]
            self.layers[f"{block}.{name}"] = zeros / size
            self.zeros += zeros
            self.weights += size
        self.fallbacks += [f"{block}.{name}" for name in worker.fallbacks]
        self.skipped += [f"{block}.{name}" for name in worker.step.views if name not in views]
        if isinstance(worker, Structured):
            self.kept[block] = worker.cut.sizes
            self.changes |= worker.cut.changes
            self.removed += worker.cut.removed


def prune(
    model: nn.Module,
    calibration: Tensor | None,
    config: AceConfig,
    *,
    seed: int = 0,
    device: torch.device | str | None = None,
    unit: Callable[[str], Unit] | None = None,
    load: Callable[[str, nn.Module], None] | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> PruneReport:
    """Prune the linear layers in the decoder blocks of ``model``, in place.

    calibration: token ids [T], of which ``config`` draws windows with ``seed``, or windows [N, S] taken as they are;
        None is enough for magnitude.
    device: where blocks are worked on; None leaves each where it is.
    unit: gives the place where a block's result is kept; a block found there is restored, not pruned again.
    load: called with the name and module of each block before anything else, to fill blocks that are on the meta device.
    progress: called as ``progress(done, total, block name)`` after every block.

    Raises PlanishError (one line) for calibration that is missing or too short, for NaN or infinity, naming the layer,
    and for a model without decoder blocks or without a weight to prune.
    """
    metric = Metric(
        config.metric,
        config.base,
        config.cosp_form,
        config.aggregation,
        config.varp_reading,
        config.separable,
        config.ria_exponent,
    )
    windows = calibration_windows(model, calibration, config, seed) if config.reads_data else None
    report = PruneReport(config.model_dump(), seed)
    if windows is not None:
        report.samples, report.seqlen = windows.shape
    work = Structured if config.pattern == "structured" else Masked
    clock = _Clock()
    total = len(find_blocks(model)[1])
    for step in _steps(model, windows, config, device):
        with clock("loading"):
            if load is not None:
                load(step.name, step.block)
            place = unit(step.name) if unit is not None else None
            saved = place.load() if place is not None else None
        worker = work(step, metric, config)
        if saved is not None:
            if config.propagate == "dense":
                step.forward_dense()
            with clock("loading"):
                worker.restore(saved)
            worker.finish()
            report.resumed.append(step.name)
        else:
            statistics: Mapping[str, Observer] = {}
            if windows is not None:
                statistics = step.collect(worker.observer(windows.shape[1]), outputs=metric.needs_cosine)
            with clock("scoring"):
                worker.prune(statistics, calibrated=windows is not None)
            worker.finish()
            if place is not None:
                place.save(worker.result())
        report.add(worker)
        if progress is not None:
            progress(step.index + 1, total, step.name)
    if not report.layers:
        raise PlanishError(
            f"{type(model).__name__}: its decoder blocks hold no linear weight of their own to prune"
        )
    if config.pattern == "structured":
        report.uniform = update_config(model)
    report.seconds = clock.seconds()
    return report


def calibration_windows(model: nn.Module, tokens: Tensor | None, config: AceConfig, seed: int) -> Tensor:
    """``nsamples`` windows [N, S] of a token stream [T], S by ``seqlen`` or the preset; windows [N, S] stay as they are.

    Raises DataError if there are no tokens, fewer than one window, ids that the model has no embedding for, or a window
    is longer than the model's context.
    """
    if tokens is None or tokens.numel() == 0:
        raise DataError(
            f'calibration: metric "{config.metric}" needs token ids, got none (only magnitude needs none)'
        )
    _check_ids(model, tokens)
    context = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    preset = SEQLEN[config.calibration]
    seqlen = tokens.shape[1] if tokens.ndim == 2 else config.seqlen or min(preset, context or preset)
    if context is not None and seqlen > context:
        raise DataError(f"seqlen = {seqlen}: the model's context is {context} tokens")
    if config.skip_bos and seqlen == 1:
        raise DataError("seqlen = 1 with skip_bos = true: no position is left")
    if tokens.ndim == 2:
        return tokens
    if len(tokens) < seqlen:
        raise DataError(f"calibration: {len(tokens)} tokens, fewer than one sample of seqlen = {seqlen}")
    return draw(tokens, seqlen, config.nsamples, seed, mode=config.sampling)


def _check_ids(model: nn.Module, tokens: Tensor) -> None:
    if tokens.is_floating_point() or tokens.ndim not in (1, 2):
        raise DataError(
            f"calibration: {tokens.dtype} of shape {tuple(tokens.shape)}, must be integer token ids [T] or windows [N, S]"
        )
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    size = getattr(embeddings, "num_embeddings", None)
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or (size is not None and high >= size):
        known = "" if size is None else f", the model knows 0 to {size - 1}"
        raise DataError(
            f"calibration: token ids from {low} to {high}{known}; is the tokenizer another model's?"
        )


def _steps(
    model: nn.Module, windows: Tensor | None, config: AceConfig, device: torch.device | str | None
) -> Iterator[Step]:
    if windows is not None:
        walker = BlockWalker(
            model, windows, device=device, propagate=config.propagate, batch_size=config.batch_size
        )
        # Its collect returns what our factory made.
        with closing(cast("Generator[Step]", iter(walker))) as steps:
            for step in steps:
                yield step
                if step.index + 1 == len(walker):
                    return  # nobody reads what leaves the last block
        return
    path, blocks = find_blocks(model)
    for index, block in enumerate(blocks):
        yield _Still(index, f"{path}.{index}", block, weight_views(block, model=model))


@dataclass
class _Still:
    """A block that no data passes."""

    index: int
    name: str
    block: nn.Module
    views: dict[str, WeightView]

    def collect(
        self, factory: Callable[[tuple[WeightView, ...]], Observer], *, outputs: bool = False
    ) -> dict[str, Observer]:
        return {}

    def forward_dense(self) -> None:
        """Nothing travels."""


class _Clock:
    """Seconds a kind of work; what no section claims is calibration."""

    def __init__(self) -> None:
        self._spent = {"scoring": 0.0, "loading": 0.0}
        self._start = self._now()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        try:
            yield
        finally:
            self._spent[part] += self._now() - start

    def seconds(self) -> dict[str, float]:
        return {"calibration": self._now() - self._start - sum(self._spent.values()), **self._spent}

    def _now(self) -> float:
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.synchronize()
        return time.perf_counter()
