"""MaxK for planish: ReLU before graph aggregation becomes "keep the k largest entries of every row".

This module stays light: it imports neither torch nor triton.
"""

from __future__ import annotations

from planish import Benchmark, Builder, Method, hookimpl

__version__ = "0.1.0"


@hookimpl
def rewriters() -> list[Method]:
    return [
        Method(
            name="maxk",
            kind="rewriter",
            summary="ReLU before graph aggregation becomes top-k with compressed rows; then trained on",
            config="planish_maxk.config:MaxKConfig",
            target="planish_maxk.wiring:apply",
            accepts=("torch",),
            needs=("training",),
            check="planish_maxk.wiring:look",
            paper="Peng, Xie, Shivdikar et al.: MaxK-GNN, ASPLOS 2024, arXiv 2312.08656",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="maxk",
            kind="torch",
            target="planish_maxk.builder:MaxKBuilder",
            summary="graph networks rewritten by maxk: the network underneath, and k",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="maxk",
            target="planish_maxk.benchmark:rows",
            summary="accuracy over k beside ReLU, saved activations, epoch time beside ReLU and torch CSR",
        )
    ]
