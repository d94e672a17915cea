"""What happens to one block: what is observed, what goes, and what a killed run needs to put it back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_ace.config import AceConfig
from planish_ace.metrics import Metric, Statistics, scores
from planish_ace.select import lowest_per_group, lowest_per_row
from planish_ace.structured import Kept, Plan, choose, cut, refit
from planish_sdk.blocks import WeightView
from planish_sdk.surgery import Changes


class Step(Protocol):
    """One block of the walk: `planish_sdk.blocks.BlockStep`, or a block that no data passes."""

    index: int
    name: str
    block: nn.Module
    views: dict[str, WeightView]

    def collect(
        self, factory: Callable[[tuple[WeightView, ...]], Observer], *, outputs: bool = False
    ) -> dict[str, Observer]: ...

    def forward_dense(self) -> None: ...


@dataclass
class Observer(Statistics):
    """Statistics of the layers ``wanted``, of all positions or without the first of every sample.

    seqlen: tokens a sample where the first is left out, else 0. gram [d_in, d_in]: sum_t x_t x_t^T where asked for.
    """

    wanted: frozenset[str] = frozenset()
    seqlen: int = 0
    with_gram: bool = False
    gram: Tensor | None = None

    def update(self, x: Tensor, outputs: Mapping[str, Tensor]) -> None:
        if not self.wanted:
            return
        super().update(
            self._rest(x), {name: self._rest(a) for name, a in outputs.items() if name in self.wanted}
        )
        if self.with_gram:
            rows = self._rest(x).float()
            self.gram = rows.T @ rows if self.gram is None else self.gram.addmm_(rows.T, rows)

    def _rest(self, rows: Tensor) -> Tensor:
        if not self.seqlen:
            return rows
        return rows.reshape(-1, self.seqlen, rows.shape[-1])[:, 1:].flatten(0, 1)


class Masked:
    """Zeroes the lowest weights of every matrix that is not tied."""

    def __init__(self, step: Step, metric: Metric, config: AceConfig) -> None:
        self.step = step
        self.metric = metric
        self.config = config
        self.targets = {name: view for name, view in step.views.items() if not view.tied}
        self.fallbacks: list[str] = []

    def observer(self, seqlen: int) -> Callable[[tuple[WeightView, ...]], Observer]:
        """A factory of observers for calibration samples of ``seqlen`` tokens."""

        def make(views: tuple[WeightView, ...]) -> Observer:
            if self.config.skip_bos and any(view.routed_by is not None for view in views):
                raise PlanishError(
                    f"skip_bos = true: {views[0].name} is an expert, whose tokens carry no position; set it to false"
                )
            wanted = frozenset(view.name for view in views) & self.wanted()
            return Observer(
                self.metric,
                wanted=wanted,
                seqlen=seqlen if self.config.skip_bos else 0,
                with_gram=self.config.reconstruct,
            )

        return make

    def wanted(self) -> frozenset[str]:
        """Names of the matrices whose scores are read."""
        return frozenset(self.targets)

    def prune(self, statistics: Mapping[str, Observer], *, calibrated: bool) -> None:
        """Zero in place. An expert that no token reached in calibration is scored by magnitude."""
        self.fallbacks = [name for name in self.targets if calibrated and name not in statistics]
        group = self.config.group
        for name, view in self.targets.items():
            score = self.score(name, statistics)
            view.zero_(
                lowest_per_row(score, self.config.row_sparsity)
                if group is None
                else lowest_per_group(score, group)
            )

    def finish(self) -> None:
        """Called once after ``prune`` or ``restore``."""

    def score(self, name: str, statistics: Mapping[str, Observer]) -> Tensor:
        """Scores of one matrix, [d_out, d_in]; without statistics by magnitude."""
        weight, layer = self.step.views[name].read(), f"{self.step.name}.{name}"
        if name in statistics:
            return statistics[name].scores(weight, name, layer)
        return scores(weight, Metric("magnitude"), layer=layer)

    def result(self) -> dict[str, Tensor]:
        """What a unit keeps: the pruned parameters, and which matrices fell back."""
        flags = torch.tensor([name in self.fallbacks for name in self.targets], dtype=torch.uint8)
        return {"fallbacks": flags, **{key: p.detach().cpu() for key, p in self._parameters().items()}}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Put back what ``result`` gave."""
        for key, parameter in self._parameters().items():
            parameter.data.copy_(saved[key])
        self.fallbacks = [
            name for name, flag in zip(self.targets, saved["fallbacks"].tolist(), strict=True) if flag
        ]

    def _parameters(self) -> dict[str, nn.Parameter]:
        """The stored parameters behind the views, each once: a fused one under its first expert's name."""
        found: dict[int, tuple[str, nn.Parameter]] = {}
        for name, view in self.targets.items():
            found.setdefault(id(view.parameter), (name, view.parameter))
        return dict(found.values())


@dataclass(frozen=True)
class Cut:
    """What structured pruning left of a block: (before, after) by kind, and the integer attributes that were set."""

    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    changes: Changes = field(default_factory=dict)
    removed: int = 0


class Structured(Masked):
    """Cuts FFN channels and key-value groups out of the block, and refits what reads them if asked to."""

    def __init__(self, step: Step, metric: Metric, config: AceConfig) -> None:
        super().__init__(step, metric, config)
        self.plan = Plan.of(step.block, *config.shares, config.multiple)
        self.kept = Kept([], [])
        self.cut = Cut()

    def wanted(self) -> frozenset[str]:
        return frozenset(self.plan.paths)

    def prune(self, statistics: Mapping[str, Observer], *, calibrated: bool) -> None:
        kept = choose(self.plan, {path: self.score(path, statistics) for path in self.plan.paths})
        self._write(kept, {path: self._refitted(path, kept, statistics) for path in self.plan.paths})

    def finish(self) -> None:
        """Cut. Hidden states pass first: some families read sizes from the config, which holds the old ones until the end."""
        if self.config.propagate == "pruned":
            self.step.forward_dense()
        block = self.step.block
        before = sum(p.numel() for p in block.parameters())
        changes = cut(block, self.kept, self.step.name)
        removed = before - sum(p.numel() for p in block.parameters())
        sizes = {
            "ffn_channels": (self.plan.channels, len(self.kept.channels)),
            "kv_groups": (self.plan.groups, len(self.kept.groups)),
        }
        self.cut = Cut({kind: size for kind, size in sizes.items() if size[0]}, changes, removed)

    def result(self) -> dict[str, Tensor]:
        """What a unit keeps: which structures stay, and the outgoing projections after the cut."""
        weights = {path: self.step.views[path].read().contiguous().cpu() for path in self.plan.paths}
        kept = {"channels": self.kept.channels, "groups": self.kept.groups}
        return {
            **weights,
            **{f"kept.{kind}": torch.tensor(index, dtype=torch.long) for kind, index in kept.items()},
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        kept = Kept(saved["kept.channels"].tolist(), saved["kept.groups"].tolist())
        self._write(kept, {path: saved[path] for path in self.plan.paths})

    def _refitted(self, path: str, kept: Kept, statistics: Mapping[str, Observer]) -> Tensor:
        weight = self.step.views[path].read()
        stays = self.plan.columns(path, kept, weight.shape[1]).to(weight.device)
        if not self.config.reconstruct:
            return weight[:, stays]
        gram = statistics[path].gram
        assert gram is not None
        return refit(weight, gram, stays, self.config.ridge)

    def _write(self, kept: Kept, columns: Mapping[str, Tensor]) -> None:
        """Put ``columns`` [d_out, k] in the columns that stay and zeros in the others: what the cut block will compute."""
        self.kept = kept
        for path, values in columns.items():
            weight = self.step.views[path].read()
            stays = self.plan.columns(path, kept, weight.shape[1]).to(weight.device)
            weight[:, ~stays] = 0
            weight[:, stays] = values.to(weight)
