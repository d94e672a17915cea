"""``planish bench ace``: each metric beside Wanda, and our pruning time beside the public Wanda loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from planish import measure
from planish.bench import Row
from planish.errors import PlanishError
from planish.source import Source, open_source
from planish.tasks import LanguageModelling
from planish.timing import Quartiles
from planish_ace.config import AceConfig
from planish_ace.peer import wanda_loop
from planish_ace.prune import prune
from planish_sdk.calibrate import windows as draw

COMMAND = "planish bench ace"
METRICS: dict[str, dict[str, Any]] = {
    "magnitude": {"metric": "magnitude"},
    "ria": {"metric": "ria"},
    "cosp, exact": {"metric": "cosp"},
    "cosp, paper": {"metric": "cosp", "cosp_form": "paper"},
    "varp on wanda": {"metric": "varp"},
    "varp on ria": {"metric": "varp", "base": "ria"},
    "cosp+varp": {"metric": "cosp+varp", "cosp_form": "paper"},
}
PATTERNS: dict[str, dict[str, Any]] = {"50 %": {"sparsity": 0.5}, "2:4": {"pattern": "2:4"}}


def rows(*, quick: bool = False) -> Iterator[Row]:
    """Quality on the embedded language model, then speed; ``quick`` takes fewer calibration samples and repeats."""
    source = open_source("testbed:lm")
    task = source.task
    if source.artifact is None or not isinstance(task, LanguageModelling):
        raise PlanishError("benchmark ace: the source testbed:lm is not a language model with its text")
    tokens = task.tokens("calibration", source.artifact.load().tokenizer)
    calibration = draw(tokens, 64 if quick else 256, 16 if quick else 96, 0)
    yield from _quality(source, task, calibration)
    yield from _speed(source, calibration, repeats=3 if quick else 5)


def _quality(source: Source, task: LanguageModelling, calibration: Tensor) -> Iterator[Row]:
    for pattern, how in PATTERNS.items():
        peer, _ = _perplexity(source, task, calibration, {"metric": "wanda", **how})
        for name, options in METRICS.items():
            value, error = _perplexity(source, task, calibration, {**options, **how})
            yield Row(
                metric=f"perplexity at {pattern}, {name}",
                value=value,
                unit="",
                peer="Wanda",
                peer_value=peer,
                bar=None,
                device=measure.device_name(),
                command=COMMAND,
                spread=error,
            )


def _perplexity(
    source: Source, task: LanguageModelling, calibration: Tensor, options: dict[str, Any]
) -> tuple[float, float]:
    assert source.artifact is not None
    model = source.artifact.load()
    prune(model.module, calibration, AceConfig(**options))
    found = next(m for m in task.evaluate(model) if m.name == "perplexity")
    return found.value, found.spread or 0.0


def _speed(source: Source, calibration: Tensor, repeats: int) -> Iterator[Row]:
    """Seconds to prune the whole model with metric wanda to 50 %, both ways in turns, and how far the masks agree."""
    assert source.artifact is not None
    config = AceConfig(metric="wanda", sparsity=0.5)
    ours: Callable[[Any], Any] = lambda model: prune(model.module, calibration, config)  # noqa: E731
    loop: Callable[[Any], Any] = lambda model: wanda_loop(model.module, calibration, 0.5)  # noqa: E731
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    masks: dict[str, Tensor] = {}
    for _ in range(repeats):
        for name, work in (("ours", ours), ("loop", loop)):
            model = source.artifact.load()
            start = time.perf_counter()
            work(model)
            seconds[name].append(time.perf_counter() - start)
            masks[name] = torch.cat([p.flatten() == 0 for p in model.module.parameters() if p.dim() == 2])
    spread = Quartiles.of(seconds["ours"])
    samples, length = calibration.shape
    yield Row(
        metric=f"seconds to prune, wanda 50 %, {samples} x {length} tokens",
        value=spread.median,
        unit="s",
        peer="public Wanda loop, re-stated",
        peer_value=Quartiles.of(seconds["loop"]).median,
        bar=("<=", 1.0),
        device=measure.device_name(),
        command=COMMAND,
        spread=(spread.high - spread.low) / 2,
    )
    yield Row(
        metric="weights on which the masks agree",
        value=100 * float((masks["ours"] == masks["loop"]).float().mean()),
        unit="%",
        peer="public Wanda loop, re-stated",
        peer_value=100.0,
        bar=(">=", 0.999),
        device=measure.device_name(),
        command=COMMAND,
    )
