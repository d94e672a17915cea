"""Noise and drift of a cell: named models, each with its source.

A conductance g is a share of the largest one: level l of ``top`` is g = l / top.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from planish.errors import ConfigError

Line = tuple[float, float, float, float]
DAY = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Device:
    """Statistics of a cell that is not stuck.

    Attributes:
        name, source: which model, and where its figures come from.
        program_noise: (seconds, coefficients) pairs: so long after programming the standard deviation of a conductance is
            c0 + c1 g + c2 g^2 + ...; between two times it is interpolated in the logarithm of time, our choice.
        drift: the mean exponent nu of g(t) = g (t / t0)^-nu, as (slope, intercept, low, high): slope ln g + intercept,
            held between low and high.
        drift_spread: its standard deviation from cell to cell, likewise.
        t0: seconds after programming at which drift starts.
        read_noise: standard deviation of one read.
    """

    name: str
    source: str
    program_noise: tuple[tuple[float, tuple[float, ...]], ...] = ()
    drift: Line = (0.0, 0.0, 0.0, 0.0)
    drift_spread: Line = (0.0, 0.0, 0.0, 0.0)
    t0: float = 1.0
    read_noise: float = 0.0

    @property
    def alters_levels(self) -> bool:
        """Whether a programmed level is anything but the one asked for."""
        return bool(self.program_noise) or max(self.drift[3], self.drift_spread[3]) > 0

    def program(self, levels: Tensor, top: int, seconds: float, seeds: Sequence[int], where: str) -> Tensor:
        """Levels float32 [chips, ...] as found ``seconds`` after programming; drawn on the CPU, one stream a chip."""
        found = []
        for chip, seed in zip(levels.cpu(), seeds, strict=True):
            draws = generator(f"{seed}/{where}/{self.name}")
            g = chip.float() / top
            if self.program_noise:
                g = (g + self.spread(g, seconds) * torch.randn(g.shape, generator=draws)).clamp_(min=0)
            if max(self.drift[3], self.drift_spread[3]) > 0 and seconds > self.t0:
                nu = _line(self.drift, g) + _line(self.drift_spread, g) * torch.randn(
                    g.shape, generator=draws
                )
                g = g * (seconds / self.t0) ** -nu.clamp_(min=0)
            found.append(g * top)
        return torch.stack(found).to(levels.device)

    def spread(self, g: Tensor, seconds: float) -> Tensor:
        """Standard deviation of conductances g, ``seconds`` after programming."""
        known = [(math.log(max(t, 1e-9)), _polynomial(c, g)) for t, c in self.program_noise]
        now = math.log(max(seconds, 1e-9))
        if now <= known[0][0]:
            return known[0][1].clamp(min=0)
        for (t0, low), (t1, high) in itertools.pairwise(known):
            if now <= t1:
                return (low + (high - low) * (now - t0) / (t1 - t0)).clamp(min=0)
        return known[-1][1].clamp(min=0)


def custom(program_noise: float, read_noise: float, drift: float, t0: float = 1.0) -> Device:
    """The user's own figures: equal noise at every level, one exponent for all cells."""
    written = ((0.0, (program_noise,)),) if program_noise else ()
    return Device(
        "custom", "given by the user", written, (0.0, drift, drift, drift), t0=t0, read_noise=read_noise
    )


DEVICES: dict[str, Device] = {
    "pcm-2019": Device(
        "pcm-2019",
        "Nandakumar et al., ICECS 2019: fits to a million phase-change cells, largest conductance 25 uS",
        program_noise=((0.0, (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)),),
        drift=(-0.0155, 0.0244, 0.049, 0.1),
        drift_spread=(-0.0125, -0.0059, 0.008, 0.045),
        t0=20.0,
        read_noise=0.01,
    ),
    "reram-2022": Device(
        "reram-2022",
        "Wan et al., Nature 2022, read noise about 1 %; fourth-order fits of aihwkit 1.1 to its figure, largest "
        "conductance 40 uS, at 1 s, 1 day and 2 days",
        program_noise=(
            (1.0, (0.348 / 40, 16.030 / 40, -43.853 / 40, 45.393 / 40, -16.815 / 40)),
            (DAY, (0.701 / 40, 22.086 / 40, -50.773 / 40, 47.095 / 40, -16.458 / 40)),
            (2 * DAY, (0.782 / 40, 20.274 / 40, -43.507 / 40, 37.062 / 40, -11.934 / 40)),
        ),
        read_noise=0.01,
    ),
}  # fmt: skip


def device(name: str) -> Device | None:
    """The model of that name; None for ``"ideal"``.

    Raises:
        ConfigError: there is none.
    """
    if name == "ideal":
        return None
    if name not in DEVICES:
        raise ConfigError(f"device = {name!r} is not one of ideal, custom, {', '.join(DEVICES)}")
    return DEVICES[name]


def generator(stream: str) -> torch.Generator:
    """A CPU generator for the stream of that name."""
    key = hashlib.sha256(stream.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)


def _polynomial(coefficients: tuple[float, ...], g: Tensor) -> Tensor:
    total = torch.zeros_like(g)
    for c in reversed(coefficients):
        total = total * g + c
    return total


def _line(line: Line, g: Tensor) -> Tensor:
    slope, intercept, low, high = line
    return (slope * g.clamp(min=1e-7).log() + intercept).clamp_(low, high)
