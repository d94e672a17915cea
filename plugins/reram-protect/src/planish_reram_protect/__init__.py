"""Fault protection of ReRAM crossbars for planish, after "Zero-Space Cost Fault Tolerance for Transformers on ReRAM"."""

from __future__ import annotations

from planish import Benchmark, Builder, Method, hookimpl

__version__ = "0.1.0"


@hookimpl
def pruners() -> list[Method]:
    return [
        Method(
            name="reram-protect",
            kind="pruner",
            summary="rows and columns pruned by trainable gates, top bit slices copied into the freed ReRAM cells, voting",
            config="planish_reram_protect.config:ReramProtectConfig",
            target="planish_reram_protect.wiring:apply",
            check="planish_reram_protect.wiring:look",
            paper="Li et al.: Zero-Space Cost Fault Tolerance for Transformer-based Language Models on ReRAM, arXiv 2401.11664",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="reram-protect",
            kind="torch",
            target="planish_reram_protect.model:ProtectedBuilder",
            summary="a torch model of any other builder, with the protection plan beside its files",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="reram-protect",
            target="planish_reram_protect.benchmark:rows",
            summary="accuracy of the digits MLP on ten faulty chips, unprotected and protected without extra crossbars",
        )
    ]
