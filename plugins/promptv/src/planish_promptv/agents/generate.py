"""``generate``: one design from one description."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from planish.artifact import write_json
from planish.errors import MissingRequirement, PlanishError, RunError
from planish_promptv import hooks
from planish_promptv.agents.budget import Spending
from planish_promptv.agents.loop import Generation
from planish_promptv.agents.prompts import load_pack
from planish_promptv.agents.result import GenerationResult
from planish_promptv.agents.trace import Trace
from planish_promptv.config import GenerationConfig
from planish_promptv.harness import Simulator
from planish_promptv.models.ledger import Ledger, RecordingProvider
from planish_promptv.models.opening import open_provider
from planish_promptv.models.protocol import Provider
from planish_promptv.types import Task


async def generate(
    task: Task,
    config: GenerationConfig | None = None,
    *,
    provider: Provider | None = None,
    simulator: Any = None,
    seed: int = 0,
    sample: int = 0,
    out: Path | None = None,
    cancel: asyncio.Event | None = None,
) -> GenerationResult:
    """Generate a design.

    Args:
        task: what is wanted.
        config: how; the defaults need a provider.
        provider: instead of the one that ``config`` describes; the caller closes it.
        simulator: instead of one made for this call; the caller closes it.
        seed, sample: decide the seeds that models are given.
        out: folder for ``calls.jsonl`` (every paid reply, so that a repeated call continues), ``trace.jsonl``,
            ``result.json``, and the design and bench as Verilog.
        cancel: once set, no further call begins and the state is ``cancelled``.

    Raises:
        PlanishError: options, endpoint, key or tools do not serve. Whatever a model answers ends in a state instead.
    """
    config = config or GenerationConfig()
    if config.bench_source == "provided" and task.provided_testbench is None:
        raise PlanishError(f"task {task.id!r}: bench_source = 'provided', and the task brings no testbench")
    pack = load_pack(config.prompt_pack)
    async with _provider(config, provider, out) as source, _simulator(config, simulator) as sim:
        trace = Trace(out / "trace.jsonl" if out else None)
        try:
            spending = Spending(config.budget, stopping=cancel.is_set if cancel else lambda: False)
            run = Generation(task, config, source, sim, pack, trace, seed, sample, spending)
            result = await run.run()
        finally:
            trace.close()
    if out is not None:
        _write(out, task, result)
    return result


def generate_sync(task: Task, config: GenerationConfig | None = None, **options: Any) -> GenerationResult:
    """`generate` for code that is not asynchronous."""
    return asyncio.run(generate(task, config, **options))


def open_simulator(config: GenerationConfig) -> Any:
    """The simulator that ``config`` describes; the caller closes it.

    Raises:
        MissingRequirement: Icarus Verilog is not installed; found before anything is paid for.
        PlanishError: no sandbox works here.
    """
    found = hooks.simulator(config)
    if found is not None:
        return found
    made = Simulator(
        slots=config.slots,
        lint=config.lint,
        allow_unsandboxed=config.allow_unsandboxed,
        strict_timeout=getattr(config, "strict_timeout", False),
    )
    if "iverilog" not in made.tools:
        made.close()
        raise MissingRequirement("simulation needs the program 'iverilog': apt-get install iverilog")
    return made


@contextlib.asynccontextmanager
async def _provider(
    config: GenerationConfig, given: Provider | None, out: Path | None
) -> AsyncIterator[Provider]:
    ledger = None
    inner = given or open_provider(config)
    try:
        if out is None:
            yield inner
        else:
            ledger = Ledger(out / "calls.jsonl")
            yield RecordingProvider(ledger, inner)
    finally:
        if ledger is not None:
            ledger.close()
        if given is None:
            await inner.aclose()


@contextlib.asynccontextmanager
async def _simulator(config: GenerationConfig, given: Any) -> AsyncIterator[Any]:
    made = given or open_simulator(config)
    try:
        yield made
    finally:
        if given is None:
            made.close()


def _write(out: Path, task: Task, result: GenerationResult) -> None:
    try:
        write_json(out / "result.json", result.model_dump(mode="json"))
        if result.code is not None:
            (out / f"{task.top_name}.sv").write_text(result.code, encoding="utf-8")
        if result.bench is not None:
            (out / f"{task.top_name}_tb.sv").write_text(result.bench, encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror}); repeat the command when it is mended"
        ) from None
