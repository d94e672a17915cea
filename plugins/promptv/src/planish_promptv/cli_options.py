"""What the commands of ``planish verilog`` share: reading options, Ctrl-C, progress."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import typer
import yaml

from planish.errors import ConfigError

T = TypeVar("T")


def given_options(
    path: Path | None,
    settings: list[str] | None,
    mode: str | None,
    provider: str | None,
    base_url: str | None,
    model: str | None,
    key_env: str | None,
    script: Path | None,
) -> dict[str, Any]:
    """Options of a file, then of ``--set``, then of the command line.

    Raises:
        ConfigError: the file or a pair cannot be read.
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"--config {path}: {' '.join(str(error).split())}") from None
        if not isinstance(given, dict):
            raise ConfigError(f"--config {path}: needs a mapping of options")
    for name, value in pairs(settings, "--set").items():
        place = given
        *outer, last = name.split(".")
        for part in outer:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {name}={value}: {part!r} has no parts")
        place[last] = value
    named = {"mode": mode, "provider": provider, "base_url": base_url, "model": model, "api_key_env": key_env}
    given.update({name: value for name, value in named.items() if value is not None})
    if script is not None:
        given.update(script=script, provider=provider or "scripted")
    return given


def pairs(given: list[str] | None, option: str) -> dict[str, Any]:
    """``NAME=VALUE`` options; values as in YAML."""
    found: dict[str, Any] = {}
    for pair in given or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"{option} {pair!r}: give NAME=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            found[name] = value
    return found


def cancellable(start: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run; the first Ctrl-C lets calls in flight finish, the second ends at once."""

    async def main() -> T:
        cancel = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupted() -> None:
            typer.echo("planish: finishing the calls in flight; Ctrl-C again ends at once", err=True)
            cancel.set()
            loop.remove_signal_handler(signal.SIGINT)

        loop.add_signal_handler(signal.SIGINT, interrupted)
        return await start(cancel)

    return asyncio.run(main())


@contextmanager
def watched(stage: str) -> Iterator[Callable[[int, int, str], None]]:
    from planish.cli.progress import progress
    from planish.events import Event

    with progress() as listen:
        yield lambda done, total, text: listen(Event("stage_progress", stage, done, total, text))
