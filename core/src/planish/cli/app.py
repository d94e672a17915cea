"""The command line: thin wrappers around what Python offers. Each command imports what it needs when it is called."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from planish.errors import PlanishError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of the run; repeating the command continues there.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


class Group(TyperGroup):
    """Core's commands, and the groups that plugins add; a plugin's group is imported when it is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *sorted(_plugin_commands(own))]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        record = _plugin_command(cmd_name)
        if record is None:
            return None
        if ctx.resilient_parsing or "--help" in sys.argv[1:2]:
            return TyperGroup(name=cmd_name, help=record.summary)
        from planish.method import resolve

        group = resolve(record.target)
        if not isinstance(group, typer.Typer):
            raise PlanishError(f"command {cmd_name!r}: {record.target!r} is no typer application")
        return typer.main.get_command(group)


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make trained models smaller, cheaper and runnable on unusual hardware, and prove what was gained.",
)


def main() -> None:
    """Entry point: a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except PlanishError as error:
        typer.echo(f"planish: {error}", err=True)
        raise SystemExit(2) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        if error.filename is None:
            raise
        typer.echo(f"planish: {error.filename}: {error.strerror}", err=True)
        raise SystemExit(2) from None


def _version(show: bool) -> None:
    if show:
        from planish import __version__

        typer.echo(f"planish {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def plugins(as_json: Json = False) -> None:
    """List installed plugins, what they offer, and which are broken and why."""
    from planish.cli import listing

    _print(listing.plugins(), listing.plugins_text, as_json)


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="METHOD|RUN", help="A method's name, or a run folder.")],
    as_json: Json = False,
) -> None:
    """Show a method with its options, or a run with its figures."""
    from planish.cli import listing

    if listing.is_run(what):
        _print(listing.run_folder(Path(what)), listing.run_text, as_json)
    else:
        _print(listing.method(what), listing.method_text, as_json)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe file (YAML).")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; runs/RECIPE by default.")
    ] = None,
    source: Annotated[str | None, typer.Option(help="Model to start from, instead of the recipe's.")] = None,
    device: Device = "auto",
    measure: Annotated[str, typer.Option(help="ends, stages or none.")] = "ends",
    check: Annotated[bool, typer.Option("--check", help="Only look for problems; compute nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Run a recipe. Killed or stopped, the same command continues where it was."""
    from planish import recipe as recipes
    from planish import runner
    from planish.cli.progress import progress

    pipeline, named = recipes.read(recipe)
    source = source or named
    if source is None:
        raise PlanishError(f"recipe {recipe}: no source; add one, or give --source")
    out = out or Path("runs") / recipe.stem
    if check:
        problems = [*runner.mistakes(device, measure), *pipeline.check(source, out=out)]
        _print({"problems": problems}, lambda data: "\n".join(data["problems"]) or "ready to run", as_json)
        raise typer.Exit(2 if problems else 0)
    with progress() as listen:
        result = pipeline.run(source, out, device=device, measure=measure, listeners=(listen,))
    _print(
        result.as_dict(),
        lambda data: f"{result.table()}\n\nmodel   {result.stages[-1]}\nreport  {result.report}",
        as_json,
    )


@app.command()
def watch(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    follow: Annotated[bool, typer.Option(help="Wait for more until the run ends.")] = True,
    as_json: Json = False,
) -> None:
    """Follow a run that another process is working on."""
    from dataclasses import asdict

    from planish.cli.progress import line
    from planish.cli.watching import follow as events

    for event in events(folder, follow):
        typer.echo(json.dumps(asdict(event), ensure_ascii=False) if as_json else line(event))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="One or more run folders.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File to write; report.html in the first folder by default."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the HTML report of finished runs."""
    from planish.cli import listing

    path = listing.report(folders, out)
    _print({"report": str(path)}, lambda data: str(data["report"]), as_json)


@app.command()
def bench(
    name: Annotated[
        str | None, typer.Argument(help="A benchmark; without it, the installed ones are listed.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes, fewer repeats.")] = False,
    as_json: Json = False,
) -> None:
    """Measure a plugin beside its peers: our figure, theirs, the bar, and whether it holds."""
    from planish.cli import listing

    if name is None:
        _print(listing.benchmarks(), listing.benchmarks_text, as_json)
    else:
        _print(listing.bench(name, quick), listing.bench_text, as_json)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Tell what this machine offers, what is missing, and how to get it."""
    from planish.cli import diagnosis

    found = diagnosis.diagnose()
    _print(found, diagnosis.text, as_json)
    raise typer.Exit(1 if found["problems"] else 0)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the plugin, for instance my-pruner.")],
    kind: Annotated[str, typer.Option(help="pruner, optimizer, rewriter, backend or codegen.")] = "pruner",
    folder: Annotated[Path, typer.Option(help="Where to put it.")] = Path(),
    as_json: Json = False,
) -> None:
    """Start a plugin from the tested template."""
    with _sdk("new"):
        from planish_sdk.scaffold import create
    path = create(name, folder, kind)
    _print(
        {"folder": str(path)},
        lambda data: f"{path}\nnext: pip install -e {shlex.quote(str(path))} && planish check {path.name}",
        as_json,
    )


@app.command()
def check(
    package: Annotated[str, typer.Argument(help="A plugin's distribution, for instance planish-ace.")],
    as_json: Json = False,
) -> None:
    """Run the conformance kit on an installed plugin."""
    with _sdk("check"):
        from planish_sdk.testing.command import check_package
    outcome = check_package(package, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(outcome, indent=1))
    raise typer.Exit(0 if outcome["passed"] else 1)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    as_json: Json = False,
) -> None:
    """Prune, export, quantise and measure the embedded language model."""
    from planish import demo as story
    from planish.cli.progress import progress

    with progress() as listen:
        outcome = story.run(out, listen)
    _print(outcome.as_dict(), lambda data: outcome.text(), as_json)


def _plugin_commands(own: list[str]) -> list[str]:
    """What a user types: a group's name, or its address where core or another plugin has a command of that name."""
    from collections import Counter

    from planish.method import Command
    from planish.registry import host

    found = list(host().records(Command))
    times = Counter([*own, *(owned.record.name for owned in found)])
    return [owned.record.name if times[owned.record.name] == 1 else owned.address for owned in found]


def _plugin_command(name: str) -> Any:
    """The record of the group that ``name`` stands for; None when no plugin has one.

    Raises:
        PlanishError: two plugins have one of that name.
    """
    from planish.method import Command
    from planish.registry import host

    if not any(name in (owned.record.name, owned.address) for owned in host().records(Command)):
        return None
    return host().find(Command, name).record


def _print(data: Any, text: Any, as_json: bool) -> None:
    typer.echo(json.dumps(_finite(data), indent=1, ensure_ascii=False) if as_json else text(data))


def _finite(data: Any) -> Any:
    """``data`` with null for NaN and infinity, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@contextmanager
def _sdk(command: str) -> Iterator[None]:
    """Turn a missing SDK into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("planish_sdk", "pytest"):
            raise
        raise PlanishError(f"'planish {command}' needs the SDK: pip install 'planish-sdk[testing]'") from None


if __name__ == "__main__":
    main()
