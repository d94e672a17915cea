"""``planish verilog``: generate, evaluate, resume, replay, report; and the harness's own commands."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from planish.config import validate
from planish.errors import ConfigError, PlanishError
from planish_promptv.cli_harness import mount
from planish_promptv.cli_options import cancellable, given_options, pairs, watched
from planish_promptv.config import EvaluationConfig, GenerationConfig

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the run; repeating the command continues there.")
]
Options = Annotated[
    Path | None, typer.Option("--config", help="YAML file of options; command line options win.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any option as NAME=VALUE, e.g. max_rounds=2 or models.teacher=big."),
]
Mode = Annotated[str | None, typer.Option(help="promptv, coopetitive or single_agent.")]
Provider = Annotated[str | None, typer.Option(help="openai, transformers or scripted.")]
BaseUrl = Annotated[str | None, typer.Option(help="Endpoint, for instance http://localhost:11434/v1.")]
Model = Annotated[str | None, typer.Option(help="Model for every role.")]
KeyEnv = Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")]
Script = Annotated[Path | None, typer.Option(help="Provider scripted: YAML file of replies.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Generate Verilog with several agents, and judge it in a sandbox.",
)


@app.command()
def gen(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|TASK|MODEL",
            help="A text file with the description, BENCHMARK:TASK, or a model (planish folder, testbed:NAME) for its hardware.",
        ),
    ],
    out: Out = Path("runs/verilog"),
    top: Annotated[str | None, typer.Option(help="Name of the module, where no header gives it.")] = None,
    header: Annotated[
        Path | None, typer.Option(help="File with the module header, up to and including ');'.")
    ] = None,
    bench: Annotated[
        Path | None, typer.Option(help="A testbench of your own that prints the verdict line.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    mode: Mode = None,
    provider: Provider = None,
    base_url: BaseUrl = None,
    model: Model = None,
    key_env: KeyEnv = None,
    script: Script = None,
    config: Options = None,
    option: Set = None,
    as_json: Json = False,
) -> None:
    """Generate one design, or the hardware of a model."""
    from planish_promptv import sources

    given = given_options(config, option, mode, provider, base_url, model, key_env, script)
    if sources.is_model(source):
        _hardware(source, out, seed, given, as_json)
        return
    from planish_promptv.agents.generate import generate

    task = sources.task_of(source, top, header, bench)
    if bench is not None:
        given.setdefault("bench_source", "provided")
    chosen = validate(GenerationConfig, given, "gen")
    result = cancellable(lambda cancel: generate(task, chosen, seed=seed, out=out, cancel=cancel))
    _print(
        result.model_dump(mode="json"),
        f"{result.state}: {result.calls} calls, {result.prompt_tokens + result.completion_tokens:,} tokens, "
        f"{result.rounds} rounds in {len(result.attempts)} attempts\n{out}",
        as_json,
    )
    if not result.succeeded:
        raise typer.Exit(1)


@app.command(name="eval")
def evaluate_command(
    benchmark: Annotated[str, typer.Argument(help="verilogeval-v2, rtllm-v2, …, or a folder.")],
    out: Out = Path("runs/verilog-eval"),
    samples: Annotated[int | None, typer.Option("--samples", "-n", help="Samples of each task.")] = None,
    k: Annotated[list[int] | None, typer.Option("--k", "-k", help="k of pass@k; may be repeated.")] = None,
    only: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")] = None,
    estimate_only: Annotated[bool, typer.Option("--estimate", help="Only tell what it may cost.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before the first call.")] = False,
    mode: Mode = None,
    provider: Provider = None,
    base_url: BaseUrl = None,
    model: Model = None,
    key_env: KeyEnv = None,
    script: Script = None,
    config: Options = None,
    option: Set = None,
    as_json: Json = False,
) -> None:
    """Evaluate a benchmark: pass@k with intervals, calls, tokens and cost. Killed or stopped, repeat it to continue."""
    given = given_options(config, option, mode, provider, base_url, model, key_env, script)
    if samples is not None:
        given["samples"] = samples
    if k:
        given["k"] = k
    elif "k" not in given and "samples" in given:
        given["k"] = [n for n in (1, 5, 10) if n <= int(given["samples"])] or [1]
    chosen = validate(EvaluationConfig, given, "eval")
    if Path(benchmark).exists():
        benchmark = str(Path(benchmark).resolve())  # so that it can be resumed from anywhere
    _evaluate(benchmark, chosen, out, only or [], estimate_only, yes, as_json)


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    as_json: Json = False,
) -> None:
    """Continue an evaluation with the options it was started with; nothing that was paid for is paid again."""
    from planish_promptv.evaluate.folder import RunFolder

    settings = RunFolder(folder).settings()
    _evaluate(settings.benchmark, settings.config, folder, settings.tasks, False, True, as_json)


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders of evaluations, side by side.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; report.html in the first folder by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of one or more evaluations."""
    from planish_promptv.evaluate.report import write_report

    path = write_report(folders, out)
    _print({"report": str(path)}, str(path), as_json)


@app.command()
def replay(
    folder: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    as_json: Json = False,
) -> None:
    """Run an evaluation again from its recorded replies, without any network, and compare the verdicts."""
    from planish_promptv.evaluate.replay import replay as again

    with watched("replay") as listen:
        found = asyncio.run(again(folder, progress=listen))
    lines = [f"{d.task} #{d.sample}: {d.what} was {d.recorded}, is {d.replayed}" for d in found.differences]
    lines.append(
        f"{found.samples} samples replayed, {found.same_traces} traces identical, "
        f"{len(found.differences)} differences"
    )
    _print(found.model_dump(mode="json"), "\n".join(lines), as_json)
    if not found.same:
        raise typer.Exit(1)


@app.command(name="serve-scripted")
def serve_scripted(
    script: Annotated[Path | None, typer.Argument(help="YAML or JSON file of replies by role.")] = None,
    mutating: Annotated[
        str | None,
        typer.Option(help="Instead of a script: a benchmark whose references are served with mistakes."),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--task", help="Only this task; may be repeated.")] = None,
    skill: Annotated[
        list[str] | None,
        typer.Option("--skill", help="Probability of the mutating model, e.g. right_first=0.3."),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8901,
    key_env: Annotated[
        str | None, typer.Option(help="Refuse requests without the key in this environment variable.")
    ] = None,
) -> None:
    """Serve an OpenAI-compatible endpoint without any model, to rehearse: a script, or references with mistakes."""
    from planish_promptv.models.secrets import Key
    from planish_promptv.models.server import Answerer, ScriptedServer

    if (script is None) == (mutating is None):
        raise ConfigError("serve-scripted: give a script, or --mutating BENCHMARK")
    key = Key.read(key_env)
    answers: Answerer
    if script is not None:
        from planish_promptv.models.scripted import Script

        answers = Script.read(script)
    else:
        answers = _mutating(str(mutating), only or [], pairs(skill, "--skill"))
    try:
        server = ScriptedServer(answers, port=port, key=key)
    except OSError as error:
        raise PlanishError(f"port {port}: cannot be opened ({error.strerror})") from None
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    with server:
        typer.echo(server.url)
        sys.stdout.flush()
        ended.wait()


mount(app)


def _evaluate(
    benchmark: str,
    config: EvaluationConfig,
    out: Path,
    only: Any,
    estimate_only: bool,
    yes: bool,
    as_json: bool,
) -> None:
    from planish_promptv.evaluate.estimate import estimate
    from planish_promptv.evaluate.report import write_report
    from planish_promptv.evaluate.run import evaluate
    from planish_promptv.evaluate.selection import load, select
    from planish_promptv.evaluate.text import report_text
    from planish_promptv.models.opening import check
    from planish_promptv.models.protocol import ModelError

    check(config)
    tasks = select(load(benchmark, config.errata), only)
    cost = estimate([task for task in tasks if not task.excluded], config)
    if estimate_only:
        _print(cost.model_dump(mode="json"), "\n".join(cost.lines()), as_json)
        return
    typer.echo("\n".join(cost.lines()), err=True)
    if not yes and sys.stdin.isatty() and config.provider == "openai":
        typer.confirm("Begin?", abort=True, err=True)
    try:
        with watched("eval") as listen:
            found = cancellable(
                lambda cancel: evaluate(benchmark, config, out, only=only, progress=listen, cancel=cancel)
            )
    except ModelError as error:
        raise ModelError(f"{error} (what was finished is kept: planish verilog resume {out})") from None
    path = write_report([out])
    _print(found.model_dump(mode="json"), f"{report_text(found)}\n\nreport  {path}", as_json)
    if not found.complete:
        typer.echo(f"planish: stopped ({found.stopped}): planish verilog resume {out}", err=True)
        raise typer.Exit(130 if found.stopped == "cancelled" else 1)


def _hardware(source: str, out: Path, seed: int, given: dict[str, Any], as_json: bool) -> None:
    import planish
    from planish.cli.progress import progress

    with progress() as listen:
        result = (
            planish.Pipeline(seed=seed)
            .then("promptv", **given)
            .run(source, out, measure="none", listeners=(listen,))
        )
    facts = result.records[-1].facts
    _print(facts, f"{json.dumps(facts, indent=1)}\n{result.stages[-1]}", as_json)


def _mutating(benchmark: str, only: list[str], skill: dict[str, Any]) -> Any:
    from planish_promptv.evaluate.selection import load, select
    from planish_promptv.harness import Simulator
    from planish_promptv.models.mutating import MutatingModel, Skill, caught_mutants

    chosen = validate(Skill, skill, "--skill")
    tasks = select(load(benchmark), only)
    with Simulator() as simulator:
        wrong = asyncio.run(caught_mutants(tasks, simulator))
    if not wrong:
        raise PlanishError(f"benchmark {benchmark!r}: no task has mutants enough that its bench catches")
    if left := [task.id for task in tasks if task.id not in wrong]:
        typer.echo(f"left out, too few mutants are caught: {', '.join(left)}", err=True)
    return MutatingModel([task for task in tasks if task.id in wrong], wrong, chosen)


def _print(data: Any, text: str, as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=1, ensure_ascii=False) if as_json else text)
