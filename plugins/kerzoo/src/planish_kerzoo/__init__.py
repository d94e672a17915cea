"""KerZOO for planish: zeroth-order fine-tuning at the memory of inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planish import Benchmark, Method, hookimpl
from planish.method import Requirement

if TYPE_CHECKING:
    from planish_kerzoo.capture import CapturedLoss as CapturedLoss
    from planish_kerzoo.log import RunLog as RunLog
    from planish_kerzoo.log import average as average
    from planish_kerzoo.log import replay as replay
    from planish_kerzoo.optimizer import KerZOO as KerZOO

__version__ = "0.1.0"
_HOMES = {
    "KerZOO": "optimizer",
    "CapturedLoss": "capture",
    "RunLog": "log",
    "replay": "log",
    "average": "log",
}


def __getattr__(name: str) -> object:
    """The optimizer and what belongs to it, imported on first use: this module itself does without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


@hookimpl
def optimizers() -> list[Method]:
    return [
        Method(
            name="kerzoo",
            kind="optimizer",
            summary="zeroth-order fine-tuning with forward passes only: MeZO, KerZOO and our own estimators",
            config="planish_kerzoo.config:KerZOOConfig",
            target="planish_kerzoo.wiring:apply",
            accepts=("torch",),
            needs=("training",),
            check="planish_kerzoo.wiring:look",
            paper="Mi, Tan, Yu, Zhu, Yuan, Huang: KerZOO, arXiv 2505.18886",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="kerzoo",
            target="planish_kerzoo.benchmark:rows",
            summary="loss and accuracy of each estimator beside MeZO at equal forward passes, both tuned",
            requires=(Requirement("planish_testbed", "pip install planish-testbed"),),
        )
    ]
