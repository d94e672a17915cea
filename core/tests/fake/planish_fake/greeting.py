from __future__ import annotations

import typer

app = typer.Typer()


@app.command()
def hello(name: str) -> None:
    typer.echo(f"hello {name}")


@app.command()
def wave() -> None:
    typer.echo("waves")
