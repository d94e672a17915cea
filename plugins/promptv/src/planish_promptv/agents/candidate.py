"""A pair of code and bench that was simulated, and which of two is the better one."""

from __future__ import annotations

from dataclasses import dataclass

from planish_promptv.types import Artifact, BenchQuality, SimResult


@dataclass(frozen=True, slots=True)
class Candidate:
    """Code and bench with what the simulator said. ``bench`` is None where the task brings its own."""

    code: Artifact
    bench: Artifact | None
    sim: SimResult
    quality: BenchQuality | None
    attempt: int
    round: int

    @property
    def accepted(self) -> bool:
        """Passed at least one check, under a bench that is able to fail."""
        return self.sim.passed and not (self.quality and self.quality.vacuous)

    @property
    def order(self) -> tuple[int, bool, bool, float, int, int]:
        """Lowest is best: the stage reached, then whether it passed, mismatch ratio, and the earlier round."""
        vacuous = bool(self.quality and self.quality.vacuous)
        return (
            -self.sim.stage.rank,
            not self.sim.passed,
            vacuous,
            self.sim.mismatch_ratio,
            self.attempt,
            self.round,
        )
