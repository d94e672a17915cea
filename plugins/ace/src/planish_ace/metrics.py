"""The numerics of ACE (arXiv 2505.21987): streaming statistics of a linear layer, and a score for every weight.

Notation, for one linear layer:

    W [d_out, d_in]   its weight            X [T, d_in]   its calibration inputs, padding removed
    A [T, d_out]      X W^T, without bias   a_t, x_t      one token of A and X

Statistics and scores are fp32 whatever the dtype of the model. A score ranks the weights of one row, so a positive
constant in n, q or e changes nothing.

Removing W_ij moves component i of a_t by d = -W_ij x_tj. The angle between the old and the new output is, exactly,

    1 - cos = 1 - (|a|^2 + a_i d) / (|a| sqrt(|a|^2 + 2 a_i d + d^2))
            = d^2 / (2 |a|^2) * (1 - a_i^2 / |a|^2) + O(d^3)

The first-order terms cancel, because the norm changes too. The expression published for CosP, a_i W_ij x_j / |a|^2, keeps
the first-order term of the numerator alone. ``cosp_form="exact"`` is the expansion above (our derivation),
``cosp_form="paper"`` the published expression.

What is the paper's and what is ours. The CosP score |W| |X_j| (1 - cos), its first-order loss and the VarP expectation
E[1 / (1 - |X_j|^2)] are the paper's, read at second hand (digests and reviews; its full text was not at hand). How a loss is aggregated over tokens, the clamp inside VarP and its reading for a
token of unit length (reading A), the reading of "higher variance is more important" as a factor of the standard
deviation (reading B), and the combination of CosP and VarP as a product are our choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from planish.errors import PlanishError

MetricName = Literal["magnitude", "wanda", "ria", "cosp", "varp", "cosp+varp"]
Base = Literal["weight", "wanda", "ria"]
CospForm = Literal["exact", "paper"]
Aggregation = Literal["rms", "mean_abs", "sqrt"]
VarpReading = Literal["A", "B"]

TINY = torch.finfo(torch.float32).tiny
VARP_FLOOR = 1e-3  # a feature that carries all of a token's energy counts 1000, not infinity
CHUNK = 8192  # tokens brought to fp32 at a time: bounds the temporaries


@dataclass(frozen=True)
class Metric:
    """Which score, and in which reading. The fields are those of ``AceConfig``."""

    name: MetricName = "varp"
    base: Base = "wanda"
    cosp_form: CospForm = "exact"
    aggregation: Aggregation = "rms"
    varp_reading: VarpReading = "A"
    separable: bool = False
    ria_exponent: float = 0.5

    @property
    def needs_inputs(self) -> bool:
        """Whether any activation statistic is read (magnitude reads none)."""
        return self.name != "magnitude"

    @property
    def needs_cosine(self) -> bool:
        """Whether the layer's outputs are read too."""
        return self.name in ("cosp", "cosp+varp")

    @property
    def needs_energy(self) -> bool:
        return self.name in ("varp", "cosp+varp") and self.varp_reading == "A"

    @property
    def needs_spread(self) -> bool:
        return self.name in ("varp", "cosp+varp") and self.varp_reading == "B"


# ---------------------------------------------------------------------------------------------- statistics of the inputs


@dataclass
class InputMoments:
    """Sums over the tokens of one input. Layers that share an input (q, k, v; gate, up) share the work of ``of``.

    tokens: T. square [d_in]: sum_t x^2. energy [d_in]: sum_t 1 / max(1 - x^2/|x_t|^2, 1e-3).
    mean, m2 [d_in]: mean over t, and sum_t (x - mean)^2. ``energy``, ``mean`` and ``m2`` exist only if the metric reads them.
    """

    tokens: int
    square: Tensor
    energy: Tensor | None = None
    mean: Tensor | None = None
    m2: Tensor | None = None

    @classmethod
    def zeros(cls, d_in: int, metric: Metric, device: torch.device) -> InputMoments:
        def vector(wanted: bool) -> Tensor | None:
            return torch.zeros(d_in, device=device) if wanted else None

        spread = metric.needs_spread
        return cls(
            0, torch.zeros(d_in, device=device), vector(metric.needs_energy), vector(spread), vector(spread)
        )

    @classmethod
    def of(cls, x: Tensor, metric: Metric) -> InputMoments:
        """Moments of x [T, d_in], T >= 0, any floating dtype."""
        total = cls.zeros(x.shape[-1], metric, x.device)
        for chunk in torch.split(x, CHUNK):
            total.add(cls._of_chunk(chunk.float(), metric))
        return total

    @classmethod
    def _of_chunk(cls, x: Tensor, metric: Metric) -> InputMoments:
        tokens = x.shape[0]
        square = x.square()
        part = cls(tokens, square.sum(0))
        if metric.needs_energy:
            # A token of norm 0 has no direction: every feature's share is 0 and counts 1.
            share = square / square.sum(1, keepdim=True).clamp_min(TINY)
            part.energy = (1 - share).clamp_min_(VARP_FLOOR).reciprocal_().sum(0)
        if metric.needs_spread:
            if tokens:
                variance, part.mean = torch.var_mean(x, dim=0, correction=0)
                part.m2 = variance * tokens
            else:
                part.mean, part.m2 = torch.zeros_like(part.square), torch.zeros_like(part.square)
        return part

    def add(self, other: InputMoments) -> None:
        """Merge the moments of further tokens. Mean and m2 merge by Chan's update, which does not cancel."""
        self.square += other.square
        if self.energy is not None and other.energy is not None:
            self.energy += other.energy
        total = self.tokens + other.tokens
        if (
            self.mean is not None
            and self.m2 is not None
            and other.mean is not None
            and other.m2 is not None
            and total
        ):
            shift = other.mean - self.mean
            self.mean += shift * (other.tokens / total)
            self.m2 += other.m2 + shift.square() * (self.tokens * other.tokens / total)
        self.tokens = total

    @property
    def norm(self) -> Tensor:
        """n [d_in]: sqrt(sum_t x^2)."""
        return self.square.sqrt()

    @property
    def varp(self) -> Tensor:
        """v [d_in]: (1/T) sum_t 1 / max(1 - x^2/|x_t|^2, 1e-3). Reading A."""
        assert self.energy is not None
        return self.energy / max(self.tokens, 1)

    @property
    def std(self) -> Tensor:
        """s [d_in]: population standard deviation over tokens. Reading B."""
        assert self.m2 is not None
        return (self.m2 / max(self.tokens, 1)).sqrt()


# ----------------------------------------------------------------------------------------------- statistics of the angle


@dataclass
class CosineMoments:
    """Mean cosine loss per unit weight, over tokens.

    The loss of a token factors into a row and a column term, so its mean over tokens is one matrix product:

        paper   |a_i| |x_j| / |a|^2                     = u_i        * z_j      u_i = |a_i| / |a|,  z_j = |x_j| / |a|
        exact   |x_j| sqrt(1 - a_i^2/|a|^2) / |a|       = sqrt(1 - u_i^2) * z_j

    ``exact`` is the square root of (twice) the second-order loss. Dividing both terms by |a| once each keeps fourth powers
    out of fp32. A token with |a| = 0 has no angle and counts nothing.

    Aggregation (our choices): ``rms`` averages the squared terms, ``mean_abs`` the terms, ``sqrt`` is rms with the square root
    of abs(W) loss in the score. The signed mean cancels over tokens and is far worse, so it is not offered. Separable:
    the mean of the squared products becomes a product of means, O(d_out + d_in) memory.
    """

    metric: Metric
    product: Tensor | None = None  # [d_out, d_in]: sum_t (row z)^2, or sum_t row z for mean_abs
    row: Tensor | None = None  # [d_out]: sum_t (row / |a|)^2, separable only

    @classmethod
    def zeros(cls, d_out: int, d_in: int, metric: Metric, device: torch.device) -> CosineMoments:
        if metric.separable:
            return cls(metric, row=torch.zeros(d_out, device=device))
        return cls(metric, product=torch.zeros(d_out, d_in, device=device))

    def update(self, x: Tensor, a: Tensor) -> None:
        """Add the tokens x [T, d_in] with dense outputs a [T, d_out], bias already taken off."""
        for x_part, a_part in zip(torch.split(x, CHUNK), torch.split(a, CHUNK), strict=True):
            self._update(x_part.float(), a_part.float())

    def _update(self, x: Tensor, a: Tensor) -> None:
        square = a.square()
        squared_norm = square.sum(1, keepdim=True)
        inverse = torch.where(
            squared_norm > TINY, squared_norm.clamp_min(TINY).reciprocal(), 0.0
        )  # [T, 1]: 1/|a|^2
        left = (others(square) if self.metric.cosp_form == "exact" else square) * inverse  # 1 - u^2 or u^2
        if self.row is not None:
            self.row += (left * inverse).sum(0)
            return
        assert self.product is not None
        right = x.square() * inverse
        if self.metric.aggregation == "mean_abs":
            left, right = left.sqrt_(), right.sqrt_()
        self.product.addmm_(left.T, right)

    def loss(self, inputs: InputMoments) -> Tensor:
        """q (paper) or sqrt(e) (exact) [d_out, d_in], averaged over the tokens of ``inputs``."""
        tokens = max(inputs.tokens, 1)
        if self.row is not None:
            return torch.outer(self.row.sqrt(), inputs.norm) / tokens
        assert self.product is not None
        mean = self.product / tokens
        return mean if self.metric.aggregation == "mean_abs" else mean.sqrt_()


def others(square: Tensor) -> Tensor:
    """Row sums of ``square`` [T, d] without the element itself, [T, d].

    Summed from both sides: taking the element off the whole sum would leave rounding errors where it is most of it.
    """
    before = functional.pad(square, (1, 0))[:, :-1].cumsum(1)
    after = functional.pad(square, (0, 1))[:, 1:].flip(1).cumsum(1).flip(1)
    return before + after


@dataclass
class Statistics:
    """What calibration leaves behind for one input and the layers that share it (q, k, v; gate, up).

    inputs: moments of the input, computed once for all of them. cosine: layer name -> its cosine moments (CosP only).
    """

    metric: Metric
    inputs: InputMoments | None = None
    cosine: dict[str, CosineMoments] = field(default_factory=dict)

    def update(self, x: Tensor, outputs: Mapping[str, Tensor]) -> None:
        """Add tokens x [T, d_in] and, for CosP, every layer's outputs x W^T [T, d_out], without bias."""
        if self.inputs is None:
            self.inputs = InputMoments.zeros(x.shape[-1], self.metric, x.device)
        self.inputs.add(InputMoments.of(x, self.metric))
        if not self.metric.needs_cosine:
            return
        for name, a in outputs.items():
            if name not in self.cosine:
                self.cosine[name] = CosineMoments.zeros(a.shape[-1], x.shape[-1], self.metric, x.device)
            self.cosine[name].update(x, a)

    def scores(self, weight: Tensor, name: str, layer: str = "") -> Tensor:
        """``scores`` of the layer called ``name`` in ``outputs``; messages call it ``layer``."""
        return scores(weight, self.metric, self.inputs, self.cosine.get(name), layer=layer or name)


# ----------------------------------------------------------------------------------------------------------------- scores


def scores(
    weight: Tensor,
    metric: Metric,
    inputs: InputMoments | None = None,
    cosine: CosineMoments | None = None,
    *,
    layer: str = "layer",
) -> Tensor:
    """Importance of every weight, fp32 [d_out, d_in]; the lowest are pruned first.

    | metric    | score                                                                             |
    |-----------|-----------------------------------------------------------------------------------|
    | magnitude | abs(W)                                                                            |
    | wanda     | abs(W) n_j                                                                        |
    | ria       | (abs(W) / sum_j abs(W) + abs(W) / sum_i abs(W)) n_j^a                             |
    | cosp      | abs(W) n_j * abs(W) loss_ij                                                       |
    | varp      | base_ij * f_j, base = abs(W), wanda or ria                                        |
    | cosp+varp | base_ij * abs(W) loss_ij * f_j, base = wanda or ria                               |

    f_j is v_j (reading A). In reading B it is s_j on base abs(W) and sqrt(s_j) on wanda and ria, which already carry n_j.
    With ``separable`` the loss is c_i n_j: inside a row ``cosp`` then ranks exactly as wanda does.

    weight: [d_out, d_in], any floating dtype. inputs: moments of its input; cosine: of its angle (cosp, cosp+varp).
    Magnitude reads neither.
    Raises PlanishError, naming ``layer``, if weight or a statistic holds NaN or infinity.
    """
    w = weight.float().abs()
    if inputs is None:
        if metric.needs_inputs:
            raise PlanishError(
                f"{layer}: the {metric.name} score needs calibration inputs, and none reached the layer"
            )
        result = w
    else:
        result = _base(w, inputs, metric)
        if cosine is not None:
            loss = w * cosine.loss(inputs)
            result = result * (loss.sqrt() if metric.aggregation == "sqrt" else loss)
        if metric.needs_energy:
            result = result * inputs.varp
        if metric.needs_spread:
            result = result * (inputs.std if metric.base == "weight" else inputs.std.sqrt())
    if not bool(torch.isfinite(result).all()):
        raise PlanishError(f"{layer}: {_blame(w, inputs, metric)}")
    return result


def _base(w: Tensor, inputs: InputMoments, metric: Metric) -> Tensor:
    base = {"magnitude": "weight", "wanda": "wanda", "ria": "ria", "cosp": "wanda"}.get(
        metric.name, metric.base
    )
    if base == "weight":
        return w
    if base == "wanda":
        return w * inputs.norm
    rows, columns = w.sum(1, keepdim=True).clamp_min(TINY), w.sum(0, keepdim=True).clamp_min(TINY)
    return (w / rows + w / columns) * inputs.norm.pow(metric.ria_exponent)


def _blame(w: Tensor, inputs: InputMoments | None, metric: Metric) -> str:
    if not bool(torch.isfinite(w).all()):
        return "the weight holds NaN or infinity; pruning needs finite weights"
    if inputs is not None and not bool(torch.isfinite(inputs.square).all()):
        return "the calibration activations hold NaN, infinity or values above 1e19; check the model and its dtype"
    return f"the {metric.name} score is not finite; the layer's outputs overflow, or its weights or inputs are out of scale"
