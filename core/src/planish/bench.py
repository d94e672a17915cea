"""Benchmarks: our figure and the peer's from the same run, the bar, and whether it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from planish import registry
from planish.method import Benchmark, demand, resolve


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a benchmark.

    Attributes:
        metric: what is compared, in the field's standard term.
        value, unit, spread: our figure.
        peer, peer_value: whom it is compared with, and their figure in the same run and unit.
        bar: what the ratio (ours over the peer's) must reach, as ``(">=", x)`` or ``("<=", x)``; None sets no bar.
        device, command: where it was taken, and how to take it again.
    """

    metric: str
    value: float
    unit: str
    peer: str
    peer_value: float
    bar: tuple[str, float] | None
    device: str
    command: str
    spread: float | None = None

    @property
    def ratio(self) -> float:
        """Ours over the peer's."""
        return self.value / self.peer_value if self.peer_value else float("nan")

    @property
    def holds(self) -> bool | None:
        """Whether the ratio reaches the bar; None when there is none."""
        if self.bar is None:
            return None
        sign, limit = self.bar
        return self.ratio >= limit if sign == ">=" else self.ratio <= limit

    def as_dict(self) -> dict[str, Any]:
        bar = f"ratio {self.bar[0]} {self.bar[1]:g}" if self.bar else None
        return {**asdict(self), "ratio": self.ratio, "bar": bar, "holds": self.holds}


def run(name: str, quick: bool = False) -> Iterable[Row]:
    """The rows of one installed benchmark, as they are measured."""
    record = registry.host().find(Benchmark, name).record
    demand(f"benchmark {name!r}", record.requires)
    return resolve(record.target)(quick=quick)  # type: ignore[no-any-return]
