"""ACE for planish: one-shot pruning of language models by activation variance (VarP) and cosine similarity (CosP)."""

from __future__ import annotations

from planish import Benchmark, Method, hookimpl

__version__ = "0.1.0"


@hookimpl
def pruners() -> list[Method]:
    return [
        Method(
            name="ace",
            kind="pruner",
            summary="one-shot pruning of language models: magnitude, Wanda, RIA, CosP, VarP; masks or smaller tensors",
            config="planish_ace.config:AceConfig",
            target="planish_ace.wiring:apply",
            accepts=("torch",),
            check="planish_ace.wiring:look",
            paper="Mi, Kong, Yuan, Huang: ACE, arXiv 2505.21987",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="ace",
            target="planish_ace.benchmark:rows",
            summary="perplexity of each metric beside Wanda, and pruning time beside the public loop",
        )
    ]
