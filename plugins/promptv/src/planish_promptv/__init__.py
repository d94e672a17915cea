"""PromptV for planish: multi-agent Verilog generation over a sandboxed simulation harness."""

from __future__ import annotations

from planish import Benchmark, Builder, Command, Method, Requirement, hookimpl

__version__ = "0.1.0"


@hookimpl
def codegens() -> list[Method]:
    return [
        Method(
            name="promptv",
            kind="codegen",
            summary="Verilog for a model's hardware, written by agents or by hand, checked against torch bit for bit",
            config="planish_promptv.config:PromptvConfig",
            target="planish_promptv.wiring:apply",
            accepts=("torch",),
            yields="verilog",
            requires=(Requirement("iverilog", "apt-get install iverilog", program=True),),
            check="planish_promptv.wiring:look",
            paper="Mi, Zheng, Zhong, Sun, Huang: PromptV / CoopetitiveV, arXiv 2412.11014",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="verilog",
            kind="verilog",
            target="planish_promptv.wiring:VerilogBuilder",
            summary="designs with their benches, and the report of their simulation",
        )
    ]


@hookimpl
def commands() -> list[Command]:
    return [
        Command(
            name="verilog",
            target="planish_promptv.cli:app",
            summary="generate Verilog with agents, evaluate, replay; golden, mutants, doctor",
        )
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [
        Benchmark(
            name="promptv",
            target="planish_promptv.benchmark:rows",
            summary="golden verdicts, sandbox cost, mutants caught, and cells of a sparse unit beside the dense one",
        ),
        Benchmark(
            name="promptv-modes",
            target="planish_promptv.evaluate.rehearsal:rows",
            summary="pass@k of the three modes beside its closed form, with a model made of mutants",
            requires=(Requirement("iverilog", "apt-get install iverilog", program=True),),
        ),
    ]
