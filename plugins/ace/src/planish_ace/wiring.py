"""ACE as a stage of a pipeline."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from planish.context import Context
from planish.errors import DataError, PlanishError
from planish.model import TorchModel
from planish.tasks import LanguageModelling
from planish_ace.config import AceConfig
from planish_ace.prune import prune
from planish_ace.structured import Plan
from planish_sdk.blocks import find_blocks, weight_views


def apply(model: TorchModel, config: AceConfig, ctx: Context) -> TorchModel:
    """Prune ``model`` in place; every finished block is kept as a unit, so a killed run resumes after it."""
    report = prune(
        model.module,
        _tokens(model, config, ctx),
        config,
        seed=ctx.seed,
        device=ctx.device,
        unit=ctx.unit,
        progress=ctx.progress,
    )
    if not report.uniform:
        model.patch(report.changes)
    ctx.facts.update(report.as_dict())
    return model


def look(model: TorchModel, config: AceConfig) -> Iterator[str]:
    """What can be seen wrong from the shapes alone, one line each."""
    path, blocks = find_blocks(model.module)
    for index, block in enumerate(blocks):
        name = f"{path}.{index}"
        views = [view for view in weight_views(block, model=model.module).values() if not view.tied]
        if not views:
            yield f"{name} holds no linear weight of its own to prune"
        if config.group:
            for view in views:
                if config.group.pruned_of(view.shape[1]) == 0:
                    yield f"{name}.{view.name} has {view.shape[1]} columns, too few for pattern {config.pattern}"
        if config.pattern == "structured":
            try:
                Plan.of(block, *config.shares, config.multiple)
            except PlanishError as error:
                yield f"{name}: {error}"


def _tokens(model: TorchModel, config: AceConfig, ctx: Context) -> Tensor | None:
    """The calibration token stream [T], or None where scores need no data."""
    if not config.reads_data:
        return None
    task = ctx.need_task()
    if not isinstance(task, LanguageModelling):
        raise DataError(f"task {task.kind}: ace prunes language models; it needs a language-modelling task")
    return task.tokens("calibration", model.tokenizer)
