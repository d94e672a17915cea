"""What a user may name on the command line, as tasks."""

from __future__ import annotations

from pathlib import Path

from planish.errors import DataError
from planish_promptv.evaluate.selection import load
from planish_promptv.harness import BENCHMARKS, verilog
from planish_promptv.types import Bench, Task

LARGEST = 1 << 20


def is_model(source: str) -> bool:
    """Whether ``source`` names a model rather than a description or a benchmark's task."""
    if Path(source).is_dir():
        return True
    scheme, colon, _ = source.partition(":")
    return (
        bool(colon) and not Path(source).exists() and scheme not in BENCHMARKS and not Path(scheme).exists()
    )


def task_of(
    source: str, top: str | None = None, header: Path | None = None, bench: Path | None = None
) -> Task:
    """The task behind a description file, or behind ``BENCHMARK:TASK``.

    Raises:
        DataError: no such file or task, an empty description, or no module name.
    """
    if not Path(source).is_file():
        benchmark, colon, name = source.rpartition(":")
        if not colon:
            raise DataError(
                f"source {source!r}: no such file; give a description file, BENCHMARK:TASK, or a model"
            )
        for task in load(benchmark):
            if task.id == name:
                return task
        raise DataError(f"source {source!r}: {benchmark} has no task {name!r}")
    description = _text(Path(source))
    if not description.strip():
        raise DataError(f"source {source!r}: the description is empty")
    head = _text(header).strip() if header else None
    if head is not None:
        found = verilog.modules(head)
        if not found:
            raise DataError(f"header {str(header)!r}: holds no module header")
        top = top or found[0].name
    if not top:
        raise DataError("top: give the module's name (--top), or a header (--header)")
    return Task(
        id=Path(source).stem,
        description=description,
        header=head,
        top_name=top,
        ports=verilog.ports(head, top) if head else None,
        provided_testbench=Bench(text=_text(bench)) if bench else None,
    )


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: longer than {LARGEST >> 20} MiB")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
