"""A plugin with one record of every kind, for the tests of core. Light: it imports neither torch nor typer."""

from __future__ import annotations

import os
from typing import Any

from planish import Benchmark, Builder, Command, Method, Requirement, hookimpl

EVENTS: list[Any] = []


@hookimpl
def pruners() -> list[Method]:
    return [
        Method(
            name="zero",
            kind="pruner",
            summary="sets the smallest weights of every layer to zero",
            config="planish_fake.config:ZeroConfig",
            target="planish_fake.methods:zero",
            check="planish_fake.methods:look",
            paper="none",
        ),
        Method(
            name="absent",
            kind="pruner",
            summary="needs a module that is not there",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:same",
            requires=(Requirement("planish_no_such_module", "pip install no-such-module"),),
        ),
        Method(
            name="programme",
            kind="pruner",
            summary="needs a program that is not there",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:same",
            requires=(Requirement("planish-no-such-program", "apt-get install nothing", program=True),),
        ),
    ]


@hookimpl
def optimizers() -> list[Method]:
    return [
        Method(
            name="jitter",
            kind="optimizer",
            summary="adds seeded noise to every layer, one unit a layer",
            config="planish_fake.config:JitterConfig",
            target="planish_fake.methods:jitter",
            needs=("calibration",),
        ),
    ]


@hookimpl
def rewriters() -> list[Method]:
    return [
        Method(
            name="fail",
            kind="rewriter",
            summary="raises half-way",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:fail",
        ),
        Method(
            name="on-cuda",
            kind="rewriter",
            summary="needs a GPU",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:same",
            needs=("cuda",),
        ),
        Method(
            name="reads",
            kind="rewriter",
            summary="needs a tokenizer",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:same",
            needs=("tokenizer",),
        ),
    ]


@hookimpl
def backends() -> list[Method]:
    return [
        Method(
            name="pack",
            kind="backend",
            summary="another engine",
            config="planish_fake.config:NoConfig",
            target="planish_fake.methods:pack",
            yields="packed",
        )
    ]


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder("layers", "torch", "planish_fake.models:LayersBuilder"),
        Builder("packed", "packed", "planish_fake.models:PackedBuilder"),
    ]


@hookimpl
def benchmarks() -> list[Benchmark]:
    return [Benchmark("duel", "planish_fake.methods:duel", "one figure against another")]


@hookimpl
def commands() -> list[Command]:
    return [Command("greet", "planish_fake.greeting:app", "says hello")]


@hookimpl
def open_artifact(uri: str) -> Any:
    if uri != "fake:mlp":
        return None
    from planish_fake.models import source

    return source()


@hookimpl
def executor(name: str) -> Any:
    return "the executor" if name == "fake" else None


@hookimpl
def stage_started(event: Any) -> None:
    EVENTS.append(event)
    if os.environ.get("FAKE_OBSERVER") == "raises":
        raise ValueError("observer's own trouble")


@hookimpl
def stage_failed() -> None:
    """An observer may take no argument."""
    EVENTS.append("failed")
