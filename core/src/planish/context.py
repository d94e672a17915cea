"""What a method is given beside the model and its options: data, seed, progress, and units that survive a kill."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import weights
from planish.artifact import write_json
from planish.errors import DataError
from planish.record import Chart

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from planish.tasks import Task


class Unit:
    """A piece of a stage (a layer, an epoch, a generated module) whose result is kept if the run is killed later."""

    def __init__(self, folder: Path, name: str) -> None:
        readable = re.sub(r"[^\w.-]+", "-", name)[:60]
        stem = f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        self._tensors = folder / f"{stem}.safetensors"
        self._facts = folder / f"{stem}.json"

    @property
    def done(self) -> bool:
        return self._tensors.is_file()

    def load(self) -> dict[str, Tensor] | None:
        """The tensors saved earlier, or None when the unit has still to be done."""
        return weights.read(self._tensors) if self.done else None

    @property
    def facts(self) -> dict[str, Any]:
        """The facts saved with the tensors."""
        if not self._facts.is_file():
            return {}
        saved: dict[str, Any] = json.loads(self._facts.read_text(encoding="utf-8"))
        return saved

    def save(self, tensors: dict[str, Tensor], **facts: Any) -> None:
        """Keep the unit's result. The tensors are written last: their file is what marks the unit as done."""
        self._tensors.parent.mkdir(parents=True, exist_ok=True)
        if facts:
            write_json(self._facts, facts)
        weights.write(self._tensors, tensors)


@dataclass(slots=True)
class Context:
    """Handed to a method by the runner.

    Attributes:
        task: data, loss and metric; None where the run has no task.
        seed: the run's seed.
        device: where to compute.
        folder: the stage's own folder while it is incomplete; nothing may be written outside it.
        facts: what the stage wants in its record (JSON); methods add to it.
        charts: what the stage wants drawn in the report; see `chart`.
        resumed_units: units that an earlier process had done when this one first asked for them. seen: units asked for.
    """

    task: Task | None
    seed: int
    device: str
    folder: Path
    report: Callable[[int, int, str], None] = lambda done, total, text: None
    facts: dict[str, Any] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)
    resumed_units: int = 0
    seen: set[str] = field(default_factory=set, repr=False)

    @property
    def out(self) -> Path:
        """Folder of the resulting model's files, for methods that write them (backends, generators)."""
        path = self.folder / "model"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def need_task(self) -> Task:
        """The task.

        Raises:
            DataError: the run has none.
        """
        if self.task is None:
            raise DataError("this method needs a task, and neither the recipe nor the source brings one")
        return self.task

    def unit(self, name: str) -> Unit:
        """The unit of that name: ``load()`` gives what an earlier, killed process saved, or None."""
        unit = Unit(self.folder / "units", name)
        if name not in self.seen:
            self.seen.add(name)
            self.resumed_units += unit.done
        return unit

    def generator(self, name: str) -> torch.Generator:
        """A CPU random generator for one unit: the same numbers whichever units were resumed before it."""
        import torch

        seed = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)

    def chart(self, title: str, bars: Sequence[tuple[str, float, str]]) -> None:
        """Ask for a bar chart in the report.

        Args:
            title: what is drawn, with its unit and where the figures come from.
            bars: (label, value, text beside the bar).
        """
        self.charts.append((title, [(label, float(value), text) for label, value, text in bars]))

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Tell how far the stage has come."""
        self.report(done, total, text)
