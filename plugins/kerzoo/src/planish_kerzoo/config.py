"""Options of the optimizer and of the stage. Light: torch is imported by nobody here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from planish.config import MethodConfig

if TYPE_CHECKING:
    from planish_kerzoo.estimator import Estimator


class Options(MethodConfig):
    """The estimator, and how it is applied to the weights."""

    kernel: Literal["mezo", "order1", "order3", "order5", "order5-printed", "nodes3", "nodes5"] = Field(
        "order3",
        description="law of r and its kernel: MeZO's r = 1, KerZOO's uniform laws (order5 with the right constant), or our nodes",
    )
    n: int = Field(1, ge=1, le=1024, description="directions a step")
    sampling: Literal["random", "stratified", "fixed"] = Field(
        "random",
        description="radii independent, one from each of n strata, or every node equally often (kernels on nodes)",
    )
    rho: float = Field(1.0, gt=0, le=1000, description="half-width of the interval of r")
    C: float = Field(1.0, gt=0, le=1000, description="factor of the kernel; it only rescales lr (authors: 4)")
    sides: Literal[1, 2] = Field(
        2, description="2: L(+) - L(-); 1: n losses against a common baseline, as in FZOO"
    )
    baseline: Literal["mean", "unperturbed"] = Field(
        "mean", description="one-sided: leave-one-out mean of the losses, or the loss without perturbation"
    )
    normalize: bool = Field(
        False, description="one-sided: divide by the standard deviation of the losses over eps, as in FZOO"
    )
    u: Literal["gaussian", "rademacher"] = Field("gaussian", description="distribution of the directions")
    lr: float = Field(1e-6, gt=0, le=1e6, description="learning rate (LoRA: about 5e-5)")
    eps: float = Field(1e-3, gt=0, le=1e3, description="size of the perturbation (LoRA: about 1e-2)")
    restore: Literal["arithmetic", "exact"] = Field(
        "arithmetic",
        description="+, -2, + in place at the memory of inference, or from a second copy of the weights, exactly",
    )
    dtype_policy: Literal["auto", "nearest", "stochastic", "masters"] = Field(
        "auto",
        description="rounding of the weights: to nearest, by chance (bfloat16; auto), or float32 masters (needs restore exact)",
    )
    per_tensor_r: bool = Field(False, description="an r for every tensor, as in the authors' code")
    clip: float | None = Field(None, gt=0, description="largest L2 norm of a tensor's gradient estimate")
    averaging: float | None = Field(
        None,
        ge=1,
        description="beta of theta <- c / beta + (1 - 1 / beta) theta, c the weights of the step before",
    )
    fixed_argument: bool = Field(
        False, description="the kernel's argument is r, not r / rho, as in the authors' code"
    )
    shrink: int = Field(
        0, ge=0, description="steps over which rho falls linearly to 1e-4 of itself; 0: never"
    )
    compat: Literal["none", "authors"] = Field(
        "none",
        description="authors: C 4, n 3, r per tensor, interval shrinking over 4000 steps, clip 400000, averaging 100",
    )
    max_skipped: int = Field(
        10, ge=1, description="steps in a row with a loss that is not finite, after which the run stops"
    )
    exact_noise: bool = Field(
        False,
        description="CUDA: normals from tables, the bits of every other device, instead of fast instructions",
    )

    @model_validator(mode="before")
    @classmethod
    def _authors(cls, given: object) -> object:
        """``compat="authors"`` sets what was not given."""
        if isinstance(given, dict) and given.get("compat") == "authors":
            return {**AUTHORS, **given}
        return given

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        on_nodes = {"mezo": 1, "nodes3": 2, "nodes5": 3}.get(self.kernel)
        if self.sampling == "fixed" and (on_nodes is None or self.n % on_nodes):
            raise ValueError(
                f'sampling "fixed" with kernel "{self.kernel}", n = {self.n}: '
                "it needs nodes3 with an even n or nodes5 with a multiple of 3"
            )
        if self.sides == 1 and self.n < 2:
            raise ValueError("sides = 1 with n = 1: one-sided differences need n of at least 2")
        if self.normalize and self.sides == 2:
            raise ValueError("normalize with sides = 2: it needs sides = 1")
        if self.dtype_policy == "masters" and self.restore != "exact":
            raise ValueError('dtype_policy "masters" with restore "arithmetic": it needs restore "exact"')
        if self.per_tensor_r and self.sampling != "random":
            raise ValueError(f'per_tensor_r with sampling "{self.sampling}": choose "random"')
        if self.fixed_argument and on_nodes is not None:
            raise ValueError(
                f'fixed_argument with kernel "{self.kernel}": choose one of the uniform laws, order1 to order5'
            )
        return self

    def estimator(self) -> Estimator:
        """The estimator that these options describe."""
        from planish_kerzoo.estimator import Estimator

        return Estimator(
            kernel=self.kernel,
            n=self.n,
            sampling=self.sampling,
            rho=self.rho,
            scale=self.C,
            sides=self.sides,
            baseline=self.baseline,
            normalize=self.normalize,
            fixed_argument=self.fixed_argument,
            shrink=self.shrink,
        )


AUTHORS: dict[str, object] = {
    "kernel": "order3",
    "C": 4.0,
    "n": 3,
    "per_tensor_r": True,
    "fixed_argument": True,
    "shrink": 4000,
    "clip": 400_000.0,
    "averaging": 100.0,
}


class KerZOOConfig(Options):
    """Zeroth-order fine-tuning with forward passes only."""

    steps: int = Field(4000, ge=1, description="steps; a step costs 2 n forward passes, one-sided n or n + 1")
    batch: int = Field(16, ge=1, description="samples a step")
    length: int = Field(64, ge=2, description="language modelling: tokens a sample")
    microbatches: int = Field(
        1,
        ge=1,
        description="parts of a batch whose losses are averaged; under torchrun they are spread over the processes",
    )
    adapter: Literal["none", "lora"] = Field(
        "none", description="train all weights, or LoRA matrices (PEFT) that are merged at the end"
    )
    rank: int = Field(8, ge=1, description="LoRA: rank; alpha is twice that")
    targets: tuple[str, ...] = Field(
        ("q_proj", "v_proj"), min_length=1, description="LoRA: names of the layers that get matrices"
    )
    average: float = Field(
        0.0,
        ge=0,
        le=1,
        description="the result is the mean of the weights after each step of this last share of the steps, made from the log; "
        "0: the weights after the last step",
    )
    graph: bool = Field(
        True, description="CUDA: replay forward passes as a CUDA graph, where the model allows it"
    )
    unit: int = Field(500, ge=1, description="steps after which a resumable unit is marked done")

    @model_validator(mode="after")
    def _parts(self) -> Self:
        if self.batch % self.microbatches:
            raise ValueError(f"microbatches = {self.microbatches} does not divide batch = {self.batch}")
        if self.average and (self.clip is not None or self.averaging is not None or self.per_tensor_r):
            raise ValueError(f"average = {self.average} with clip, averaging or per_tensor_r: choose one")
        return self
