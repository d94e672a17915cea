"""The estimator: laws of r with their kernels, and what one step draws and combines.

    g = sum_i a_i d_i u_i,   d_i = [L(theta + eps r_i u_i) - L(theta - eps r_i u_i)] / (2 eps),   a_i = C K(r_i) / n

L(theta + eps r u) - L(theta - eps r u) = 2 eps r <grad, u> + eps^3 r^3 D3 / 3 + ..., so E[r K] = 1 keeps the gradient and
E[r^3 K] = 0 removes the cubic term. The price is the second moment E[(r K)^2], by which the variance grows over MeZO's.

The uniform laws are those of KerZOO (arXiv 2505.18886) after an optimizer catalogue; `Nodes` is our own.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import torch
from torch import Tensor

from planish_kerzoo.noise import MASK, PLANS, RADII, philox, uniform

KernelName = Literal["mezo", "order1", "order3", "order5", "order5-printed", "nodes3", "nodes5"]
Sampling = Literal["random", "stratified", "fixed"]
Baseline = Literal["mean", "unperturbed"]


class Law(Protocol):
    """A law of x = r / rho on (0, 1] or [-1, 1] with a kernel K on it."""

    def quantile(self, v: float) -> float:
        """x at the position v in [0, 1) of its distribution."""
        ...

    def kernel(self, x: float) -> float:
        """K(x)."""
        ...

    def moment(self, power: int) -> Fraction:
        """E[x^power K(x)], exactly."""
        ...

    def second(self) -> Fraction:
        """E[(x K(x))^2], exactly: the factor on MeZO's second moment."""
        ...


@dataclass(frozen=True)
class Uniform:
    """x uniform on [-1, 1], K(x) = sum_j coefficients[j] x^(2 j + 1)."""

    coefficients: tuple[Fraction, ...]

    def quantile(self, v: float) -> float:
        return 2 * v - 1

    def kernel(self, x: float) -> float:
        return sum(float(c) * x ** (2 * j + 1) for j, c in enumerate(self.coefficients))

    def moment(self, power: int, rho: Fraction = Fraction(1)) -> Fraction:
        """With ``rho`` < 1: of r in [-rho, rho] under the kernel of [-1, 1], as the authors' code has it."""
        even = [(c, 2 * j + 1 + power) for j, c in enumerate(self.coefficients)]
        return sum((c * rho**k / (k + 1) for c, k in even if k % 2 == 0), Fraction(0))

    def second(self) -> Fraction:
        terms = list(enumerate(self.coefficients))
        return sum((a * b / (2 * (i + j) + 5) for i, a in terms for j, b in terms), Fraction(0))


@dataclass(frozen=True)
class Nodes:
    """x on a few nodes (our own). The weights w_j = x_j K(x_j) P(x_j) are those that keep the first moment and remove
    as many odd ones as there are further nodes; P(x_j) = |w_j| / sum |w| has the least second moment of all
    probabilities, (sum |w|)^2, and makes x K = +- sum |w|.

    Nodes 1/4 and 1 have w = 16/15 and -1/15: a second moment of 1.284, where the uniform law of order 3 has 6.25.
    One node is MeZO.
    """

    nodes: tuple[Fraction, ...]

    @functools.cached_property
    def weights(self) -> tuple[Fraction, ...]:
        """Lagrange's weights at 0 of polynomials in x^2."""
        return tuple(
            math.prod((y * y / (y * y - x * x) for y in self.nodes if y != x), start=Fraction(1))
            for x in self.nodes
        )

    @functools.cached_property
    def total(self) -> Fraction:
        """sum |w|."""
        return sum(map(abs, self.weights), Fraction(0))

    def quantile(self, v: float) -> float:
        return self._by_position[min(bisect.bisect(self._upto, v), len(self.nodes) - 1)]

    def kernel(self, x: float) -> float:
        return self._kernel[x]

    def moment(self, power: int) -> Fraction:
        pairs = zip(self.nodes, self.weights, strict=True)
        return sum((w * x ** (power - 1) for x, w in pairs), Fraction(0))

    def second(self) -> Fraction:
        return self.total**2

    @functools.cached_property
    def _by_position(self) -> list[float]:
        return [float(node) for node in self.nodes]

    @functools.cached_property
    def _upto(self) -> list[float]:
        """Cumulative probabilities of the nodes."""
        return [float(part / self.total) for part in itertools.accumulate(map(abs, self.weights))]

    @functools.cached_property
    def _kernel(self) -> dict[float, float]:
        pairs = zip(self.nodes, self.weights, strict=True)
        return {float(x): math.copysign(float(self.total / x), w) for x, w in pairs}


def _uniform(factor: Fraction, *coefficients: int) -> Uniform:
    return Uniform(tuple(factor * c for c in coefficients))


LAWS: dict[KernelName, Uniform | Nodes] = {
    "mezo": Nodes((Fraction(1),)),
    "order1": _uniform(Fraction(1), 3),
    "order3": _uniform(Fraction(15, 4), 5, -7),
    "order5": _uniform(Fraction(105, 64), 35, -126, 99),
    "order5-printed": _uniform(Fraction(195, 64), 35, -126, 99),
    "nodes3": Nodes((Fraction(1, 4), Fraction(1))),
    "nodes5": Nodes((Fraction(1, 8), Fraction(1, 2), Fraction(1))),
}
"""order5 has the constant that makes E[r K] = 1; the printed one makes it 13/7."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One direction of a step: its 64-bit seed, r, and the weight a of d u in the gradient."""

    seed: int
    r: float
    weight: float


@dataclass(frozen=True)
class Estimator:
    """What one step draws and how losses become differences.

    Attributes:
        kernel: the law of r. rho: half-width of its interval. scale: C, which only rescales the learning rate.
        n: directions a step.
        sampling: radii drawn independently; one from each of n equal strata of the law; or, for laws on nodes, every
            node n / nodes times with its weight, so that the moments hold in every single step.
        sides: 2, or 1 for L(theta + eps r u) against ``baseline``, as FZOO does: the mean of the n losses (leave-one-out,
            so that the estimate stays unbiased), or the loss of the unperturbed weights.
        normalize: divide by the standard deviation of the n losses, relative to eps, as FZOO does.
        fixed_argument: the kernel's argument is r, whatever rho, as in the authors' code.
        shrink: steps over which rho falls linearly to 1e-4 of itself; 0 keeps it.
    """

    kernel: KernelName = "order3"
    n: int = 1
    sampling: Sampling = "random"
    rho: float = 1.0
    scale: float = 1.0
    sides: Literal[1, 2] = 2
    baseline: Baseline = "mean"
    normalize: bool = False
    fixed_argument: bool = False
    shrink: int = 0

    @property
    def forwards(self) -> int:
        """Losses a step."""
        return self.n * self.sides + self.unperturbed

    @property
    def unperturbed(self) -> bool:
        """Whether the loss of the unperturbed weights is needed."""
        return self.sides == 1 and self.baseline == "unperturbed"

    def samples(self, seed: int, step: int) -> list[Sample]:
        """The n directions of a step: a function of (run seed, step)."""
        drawn = []
        for i in range(self.n):
            a, b, c, d = philox((step & MASK, step >> 32, PLANS, i), seed)
            r, weight = self._radius(uniform(c, d), i, step)
            drawn.append(Sample(a << 32 | b, r, weight))
        return drawn

    def per_tensor(self, sample: Sample, step: int, tensors: int) -> list[Sample]:
        """One r a tensor for the direction of ``sample``, as in the authors' code."""
        drawn = []
        for index in range(tensors):
            a, b, _, _ = philox((index, 0, RADII, 0), sample.seed)
            drawn.append(Sample(sample.seed, *self._radius(uniform(a, b), 0, step)))
        return drawn

    def _radius(self, v: float, i: int, step: int) -> tuple[float, float]:
        law = LAWS[self.kernel]
        if self.sampling == "fixed" and isinstance(law, Nodes):
            node = i % len(law.nodes)
            x, share = float(law.nodes[node]), len(law.nodes) / self.n
            return self.rho * x, self.scale * share * float(law.weights[node]) / (self.rho * x)
        x = law.quantile((i + v) / self.n if self.sampling == "stratified" else v)
        rho = self.rho * max(1 - step / self.shrink, 1e-4) if self.shrink else self.rho
        kernel = law.kernel(rho * x) if self.fixed_argument else law.kernel(x) / rho
        return rho * x, self.scale * kernel / self.n

    def differences(self, losses: Tensor, eps: float) -> Tensor:
        """d [n, ...] in float32 from the losses of a step, float64 [forwards, ...]: for each direction + then -, or,
        one-sided, the unperturbed loss first where there is one. Stays on the device."""
        if self.sides == 2:
            return ((losses[::2] - losses[1::2]) / (2 * eps)).float()
        probes = losses[1:] if self.unperturbed else losses
        if self.unperturbed:
            d = (probes - losses[0]) / eps
        else:  # dividing by n - 1 instead of n makes up for each loss's share in its own baseline
            d = (probes - probes.mean(0)) * (self.n / (self.n - 1)) / eps
        if self.normalize:
            d = d / (probes.std(0) / eps).clamp_min(torch.finfo(torch.float64).tiny)
        return d.float()
