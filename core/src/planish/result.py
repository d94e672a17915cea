"""What a run leaves behind: folders, artifacts, measured rows, a table and a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish.artifact import Artifact
from planish.compare import NOT_MEASURED, Row
from planish.errors import RunError
from planish.record import Record

if TYPE_CHECKING:
    from torch import nn

    from planish.pipeline import Pipeline

RUN = "run.json"
MEASUREMENTS = "measurements.json"
REPORT = "report.html"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished run.

    Attributes:
        folder: the run's folder.
        pipeline: what was run.
        source: how the source was named. start: its artifact.
        stages: folder of every stage, in order.
        artifact: the final artifact.
        rows: everything measured, side by side.
    """

    folder: Path
    pipeline: Pipeline
    source: str
    start: Artifact
    stages: list[Path]
    artifact: Artifact
    rows: list[Row]

    @property
    def report(self) -> Path:
        return self.folder / REPORT

    @property
    def records(self) -> list[Record]:
        return [Record.read(folder) for folder in self.stages]

    def load(self, device: str = "cpu", module: nn.Module | None = None) -> Any:
        """The final model, live. ``module`` is needed again when the run started from a module in memory."""
        return self.artifact.load(device, module)

    def table(self) -> str:
        """Before and after, as text."""
        return text_table(self.rows)

    def write_report(self) -> None:
        from planish.report import write_report

        write_report(
            self.report,
            f"{self.source} through {', '.join(stage.method for stage in self.pipeline.stages)}",
            self.rows,
            [(folder.name, Record.read(folder)) for folder in self.stages],
        )

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "folder": str(self.folder),
            "source": self.source,
            "digest": self.artifact.digest,
            "stages": [str(folder) for folder in self.stages],
            "report": str(self.report),
            "rows": [row.as_dict() for row in self.rows],
        }


def read(path: Path, *fields: str) -> dict[str, Any]:
    """What an earlier process wrote to a file of the run folder.

    Raises:
        RunError: it is damaged, or lacks one of ``fields``.
    """
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if missing := [name for name in fields if name not in data]:
            raise ValueError(f"no {missing[0]}")
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path}: damaged ({error}); remove it or choose another folder") from None
    return data


def read_rows(folder: Path, key: str | None = None) -> list[Row]:
    """The measured rows of a run folder; empty when nothing was measured yet, or not what ``key`` stands for.

    Raises:
        RunError: the file that holds them is damaged.
    """
    path = folder / MEASUREMENTS
    if not path.is_file():
        return []
    found = read(path, "key", "rows")
    if key not in (None, found["key"]):
        return []
    try:
        return [Row.from_dict(row) for row in found["rows"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path}: damaged ({error}); remove it or choose another folder") from None


def columns(rows: Sequence[Row]) -> list[str]:
    """Headings of the table of ``rows``."""
    metrics = list(dict.fromkeys(m.name for row in rows for m in row.quality))
    return [
        "model",
        "runs in",
        "size on disk",
        "parameters",
        "non-zero",
        *metrics,
        "latency",
        "speed",
        "verdict",
    ]


def cells(row: Row, headings: Sequence[str]) -> list[str]:
    """One row of the table, every figure as text; what was not measured says so."""
    quality = {m.name: m for m in row.quality}
    fixed = {
        "model": row.label,
        "runs in": row.runtime,
        "size on disk": megabytes(row.size),
        "parameters": f"{row.counts.parameters:,}",
        "non-zero": f"{100 * (1 - row.counts.sparsity):.1f} %",
        "latency": milliseconds(row),
        "speed": NOT_MEASURED if row.latency is None else speed(row),
        "verdict": row.verdict if row.latency is not None else NOT_MEASURED,
    }
    return [
        fixed.get(name) or (metric(quality[name]) if name in quality else NOT_MEASURED) for name in headings
    ]


def text_table(rows: Sequence[Row]) -> str:
    """A plain table that needs no terminal."""
    if not rows:
        return NOT_MEASURED
    headings = columns(rows)
    lines = [headings, *(cells(row, headings) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def metric(m: Any) -> str:
    """``value ± spread unit (n = sample size)``."""
    digits = 3 if abs(m.value) < 10 else 2
    spread = f" ± {m.spread:.{digits}f}" if m.spread is not None else ""
    return f"{m.value:.{digits}f}{spread}{' ' + m.unit if m.unit else ''} (n = {m.repeats})"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"


def milliseconds(row: Row) -> str:
    if row.latency is None:
        return NOT_MEASURED
    return f"{1e3 * row.latency.value:.2f} ± {1e3 * (row.latency.spread or 0):.2f} ms"


def speed(row: Row) -> str:
    if row.speedup is None:
        return "1 x"
    middle, low, high = row.speedup
    return f"{middle:.2f} x ({low:.2f} to {high:.2f})"
