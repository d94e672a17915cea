"""The offline default of planish: a small language model, digits, a graph and skeleton actions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planish import Builder, hookimpl

if TYPE_CHECKING:
    from planish import Source

__version__ = "0.1.0"


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="testbed",
            kind="torch",
            target="planish_testbed.builder:NetBuilder",
            summary="the reference networks for digits, graphs and skeletons",
        )
    ]


@hookimpl
def open_artifact(uri: str) -> Source | None:
    scheme, colon, name = uri.partition(":")
    if scheme != "testbed" or not colon:
        return None
    from planish_testbed.sources import open_source

    return open_source(name)
