"""ReRAM for planish: a crossbar simulator as the backend ``reram``."""

from __future__ import annotations

from planish import Benchmark, Builder, Evaluator, Method, Requirement, hookimpl

__version__ = "0.1.0"


@hookimpl
def backends() -> list[Method]:
    return [
        Method(
            name="reram",
            kind="backend",
            summary="simulated ReRAM crossbars: stuck cells, converters, noise; accuracy over chips, energy, area",
            config="planish_reram.config:ReramConfig",
            target="planish_reram.wiring:apply",
            accepts=("torch", "onnx"),
            yields="reram",
            check="planish_reram.wiring:look",
            paper="Li et al.: Zero-Space Cost Fault Tolerance for Transformer-based Language Models on ReRAM, arXiv 2401.11664",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="reram",
            kind="reram",
            target="planish_reram.builder:ReramBuilder",
            summary="networks on simulated crossbars, with the first chip's fault maps and the converters' ranges",
        )
    ]


@hookimpl
def evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="reram-chips",
            target="planish_reram.evaluation:over_chips",
            tasks=("classification", "node-classification", "skeleton-action", "language-modelling"),
            summary="every metric of the task over the chips of a simulated model: mean, standard deviation, worst",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="reram",
            target="planish_reram.benchmark:rows",
            summary="composed and sliced products beside torch's linear layer and beside a loop over tiles",
        ),
        Benchmark(
            name="reram-accuracy",
            target="planish_reram.study:rows",
            summary="digits on ten chips: mappings, cell widths, scales and bias correction beside no faults",
            requires=(Requirement("planish_testbed", "pip install planish-testbed"),),
        ),
    ]
