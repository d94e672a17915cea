"""Options of ACE. Light: neither torch nor transformers."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from planish.config import MethodConfig
from planish_ace.pattern import NM, parse

Preset = Literal["varp", "varp-on-ria", "cosp+varp", "wanda"]

PRESETS: dict[Preset, dict[str, str]] = {
    "varp": {"metric": "varp", "base": "wanda"},  # the later version's pairing, and what measured best
    "varp-on-ria": {"metric": "varp", "base": "ria"},  # the later version's other pairing
    "cosp+varp": {"metric": "cosp+varp", "base": "wanda", "cosp_form": "paper"},  # the first version
    "wanda": {"metric": "wanda"},  # the baseline
}
"""Named settings: ``AceConfig.preset("cosp+varp", sparsity=0.6)``."""

SEQLEN = {"fast": 16, "full": 2048}


class AceConfig(MethodConfig):
    """One-shot pruning of the linear layers in decoder blocks, scored on a small calibration set."""

    metric: Literal["magnitude", "wanda", "ria", "cosp", "varp", "cosp+varp"] = Field(
        "varp", description="score of a weight; see the README for the formulas"
    )
    base: Literal["weight", "wanda", "ria"] = Field(
        "wanda", description="score that varp multiplies: |W|, wanda or ria; cosp+varp takes wanda or ria"
    )
    cosp_form: Literal["exact", "paper"] = Field(
        "exact",
        description="loss of CosP: the exact second-order expansion, or the published first-order expression",
    )
    aggregation: Literal["rms", "mean_abs", "sqrt"] = Field(
        "rms",
        description="how CosP averages over tokens; sqrt is rms with the square root of the loss in the score",
    )
    varp_reading: Literal["A", "B"] = Field(
        "A",
        description="factor of VarP: A the mean of 1/(1 - share of the token's energy), B the standard deviation",
    )
    separable: bool = Field(
        False,
        description="CosP as a row times a column factor: little memory, but inside one row it ranks as wanda",
    )
    ria_exponent: float = Field(0.5, ge=0, le=2, description="exponent of the activation norm in ria")

    pattern: str = Field(
        "unstructured",
        description='"unstructured", "N:M" such as "2:4" (keeps 2 of 4), or "structured" (heads, channels)',
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="share of each row that unstructured pruning zeroes; 0.5 when not given"
    )
    ffn_sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="structured: share of the FFN channels removed; 0.25 when neither share is given",
    )
    head_sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="structured: share of the key-value head groups removed; 0 when not given",
    )
    multiple: int = Field(
        8, ge=1, le=1024, description="structured: FFN channels kept are a multiple of this"
    )
    reconstruct: bool = Field(
        False,
        description="structured: refit the output projections on what is kept, by ridge least squares (ours; changes weights)",
    )
    ridge: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="structured: ridge of the refit, relative to the mean energy of a channel",
    )

    propagate: Literal["pruned", "dense"] = Field(
        "pruned",
        description="inputs of a block come from the pruned blocks before it, or from the dense model (half the compute)",
    )
    calibration: Literal["fast", "full"] = Field(
        "full",
        description="tokens a sample when seqlen is not given: fast 16, full 2048; never more than the model's context",
    )
    seqlen: int | None = Field(None, ge=1, description="tokens a calibration sample, instead of the preset's")
    nsamples: int = Field(
        128, ge=1, description="calibration samples, drawn with the run's seed; they may overlap"
    )
    sampling: Literal["random", "consecutive"] = Field(
        "random",
        description="samples drawn at random places of the calibration text, or side by side from its start",
    )
    batch_size: int = Field(8, ge=1, description="calibration samples in one forward pass")
    skip_bos: bool = Field(
        False,
        description="leave the first position of every sample (BOS, the attention sink) out of the statistics",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        parse(self.pattern)
        structured = self.pattern == "structured"
        if self.sparsity is not None and self.pattern != "unstructured":
            instead = "ffn_sparsity and head_sparsity" if structured else "the pattern alone"
            raise ValueError(f'sparsity = {self.sparsity} with pattern "{self.pattern}": {instead} decides')
        if not structured:
            for name in ("ffn_sparsity", "head_sparsity"):
                if (value := getattr(self, name)) is not None:
                    raise ValueError(
                        f'{name} = {value} with pattern "{self.pattern}": it needs pattern "structured"'
                    )
            if self.reconstruct:
                raise ValueError(f'reconstruct with pattern "{self.pattern}": it needs pattern "structured"')
        if self.metric == "cosp+varp" and self.base == "weight":
            raise ValueError('base "weight" with metric "cosp+varp": choose wanda or ria')
        if self.separable and self.aggregation == "mean_abs":
            raise ValueError('separable with aggregation "mean_abs": choose rms or sqrt')
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Calibration text, unless scores are magnitudes and nothing is refitted."""
        return ("calibration",) if self.reads_data else ()

    @property
    def reads_data(self) -> bool:
        return self.metric != "magnitude" or self.reconstruct

    @property
    def row_sparsity(self) -> float:
        """Share of a row that unstructured pruning zeroes."""
        return 0.5 if self.sparsity is None else self.sparsity

    @property
    def group(self) -> NM | None:
        """The N:M pattern, if it is one."""
        return parse(self.pattern)

    @property
    def shares(self) -> tuple[float, float]:
        """Shares of FFN channels and of key-value groups that structured pruning removes."""
        if self.ffn_sparsity is None and self.head_sparsity is None:
            return 0.25, 0.0
        return self.ffn_sparsity or 0.0, self.head_sparsity or 0.0

    @classmethod
    def preset(cls, name: Preset, **options: object) -> AceConfig:
        """The named settings with ``options`` over them.

        Raises ValueError for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
        return cls.model_validate({**PRESETS[name], **options})
