"""Options of generation, evaluation and the pipeline stage. Light: neither torch nor httpx."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from planish.config import MethodConfig

Mode = Literal["promptv", "coopetitive", "single_agent"]
MODES: tuple[Mode, ...] = ("promptv", "coopetitive", "single_agent")


class Budget(MethodConfig):
    """Limits on what is spent; what is not given is not limited."""

    calls: int | None = Field(None, ge=1, description="model calls")
    tokens: int | None = Field(None, ge=1, description="prompt and completion tokens together")
    cost: float | None = Field(None, gt=0, description="US dollars by the price table")
    seconds: float | None = Field(None, gt=0, description="seconds spent waiting for models")


class Models(MethodConfig):
    """A model of its own for a role; roles without one take ``model``."""

    coder: str | None = Field(None, description="writes the first code")
    bencher: str | None = Field(None, description="writes the first testbench")
    teacher: str | None = Field(None, description="reviews; the research agent in mode coopetitive")
    prosecutor: str | None = Field(None, description="attacks the research agent's advice")
    learner_code: str | None = Field(None, description="corrects the code")
    learner_bench: str | None = Field(None, description="corrects the testbench")


class GenerationConfig(MethodConfig):
    """How one design is generated."""

    mode: Mode = Field(
        "promptv",
        description="promptv: teacher and learners; coopetitive: a prosecutor between them; "
        "single_agent: one growing conversation, the ablation",
    )
    max_rounds: int | None = Field(
        None, ge=1, le=20, description="repair rounds an attempt; 3, or 2 in mode coopetitive, when not given"
    )
    max_restarts: int = Field(2, ge=0, le=20, description="fresh starts after the first attempt")
    presim: bool = Field(True, description="simulate the drafts before the first review")
    paper_strict: bool = Field(
        False, description="as published: the first review comes before any simulation"
    )
    bench_source: Literal["generated", "provided"] = Field(
        "generated",
        description="which bench the loop sees: one written by the bencher, or the task's own; "
        "figures of the two are different experiments",
    )
    language_note: str = Field("", max_length=2000, description="text added to every coder prompt")

    provider: str = Field(
        "openai",
        description="openai (any compatible endpoint), transformers, scripted, or what a plugin offers",
    )
    base_url: str | None = Field(None, description="endpoint, for instance http://localhost:11434/v1")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the key; none sends no key"
    )
    model: str | None = Field(None, description="model for every role that has none of its own")
    models: Models = Field(Models(), description="models of single roles")
    script: Path | None = Field(None, description="provider scripted: YAML file of replies")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="provider transformers: where to compute"
    )
    prices: Path | None = Field(None, description="TOML file of prices a million tokens, by model")
    prompt_pack: str = Field("promptv-1", description="name or folder of the prompt templates")

    draft_temperature: float = Field(0.8, ge=0, le=2, description="temperature of coder and bencher")
    repair_temperature: float = Field(
        0.2, ge=0, le=2, description="temperature of teacher, prosecutor and learners"
    )
    top_p: float = Field(0.95, gt=0, le=1, description="nucleus sampling")
    max_tokens: int = Field(4096, ge=16, le=1_000_000, description="largest reply in tokens")
    json_replies: bool = Field(
        True, description="ask for JSON by schema where the endpoint accepts it; otherwise by prompt alone"
    )
    simulator_text: int = Field(
        4000, ge=200, le=100_000, description="characters of simulator text in a prompt"
    )

    request_timeout: float = Field(120.0, gt=0, le=3600, description="seconds for one request")
    tries: int = Field(5, ge=1, le=20, description="requests for one reply before the run stops, resumable")
    retry_base: float = Field(1.0, ge=0, le=60, description="seconds of the first backoff, doubled each time")
    concurrency: int = Field(8, ge=1, le=1024, description="requests in flight at once")
    requests_per_minute: float | None = Field(None, gt=0, le=1e6, description="limit of the account")
    tokens_per_minute: float | None = Field(None, gt=0, le=1e9, description="limit of the account")
    budget: Budget = Field(Budget(), description="limits for one sample")

    lint: bool = Field(False, description="give Verilator's warnings to the teacher; its errors block")
    slots: int | None = Field(
        None, ge=1, le=1024, description="simulations at once; the CPU count when not given"
    )
    allow_unsandboxed: bool = Field(
        False, description="simulate with resource limits alone where no sandbox works"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.paper_strict and self.mode == "single_agent":
            raise ValueError('paper_strict with mode "single_agent": the paper has no such mode')
        return self

    @property
    def rounds(self) -> int:
        """Repair rounds an attempt."""
        return self.max_rounds or (2 if self.mode == "coopetitive" else 3)

    @property
    def simulates_drafts(self) -> bool:
        return self.presim and not self.paper_strict

    def model_of(self, role: str) -> str:
        """The model's name for a role; empty where none is configured."""
        return getattr(self.models, role, None) or self.model or ""

    @property
    def worst_case_calls(self) -> int:
        """Calls of a sample in which every round of every attempt needs every role; repeated questions not counted."""
        generated = self.bench_source == "generated"
        reviewers = 2 if self.mode == "coopetitive" else 1
        learners = 2 if generated else 1
        drafts = 2 if generated else 1
        return (self.max_restarts + 1) * (drafts + self.rounds * (reviewers + learners))


class EvaluationConfig(GenerationConfig):
    """How a benchmark is evaluated."""

    samples: int = Field(20, ge=1, le=10_000, description="samples of each task (n)")
    k: tuple[int, ...] = Field((1, 5, 10), description="k of pass@k; at most n")
    seed: int = Field(0, ge=0, description="decides every seed sent to a model")
    total_budget: Budget = Field(Budget(), description="limits for the whole evaluation; it stops, resumable")
    parallel_samples: int = Field(
        16, ge=1, le=4096, description="samples in progress at once; requests have their own limit"
    )
    errata: bool = Field(False, description="apply the known corrections of the benchmark, by file hash")
    strict_timeout: bool = Field(
        False, description="a VerilogEval bench that prints TIMEOUT fails, as upstream counts"
    )

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if not self.k or min(self.k) < 1:
            raise ValueError("k needs at least one number from 1 up")
        if max(self.k) > self.samples:
            raise ValueError(
                f"k = {max(self.k)} with samples = {self.samples}: k is at most the number of samples"
            )
        return self


class PromptvConfig(GenerationConfig):
    """The pipeline stage: hardware for a compressed model."""

    generator: Literal["reference", "agents"] = Field(
        "reference",
        description="reference: the hand-written designs that ship with the plugin; agents: let models write them",
    )
    bench_source: Literal["generated", "provided"] = Field(
        "provided",
        description="agents: which bench the loop sees; provided is the one with the torch model's vectors",
    )
    vectors: int = Field(
        256, ge=8, le=65536, description="test vectors a design, computed by the torch model"
    )
    synthesis: bool = Field(True, description="count cells with Yosys, where it is installed")
