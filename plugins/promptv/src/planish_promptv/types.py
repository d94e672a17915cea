"""The data that flows between agents, harness and reports. Every record is immutable and survives JSON unchanged."""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Language = Literal["verilog2001", "sv2012"]
VerdictStyle = Literal["mismatches", "banner", "nonce"]
NONCE = "@NONCE@"
"""What a generated bench prints before its verdict; the harness puts a fresh random word in its place for each run."""


class Record(BaseModel):
    """Base of all records: ``model_dump_json()`` and ``model_validate_json(text)`` are inverse."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Stage(StrEnum):
    """How far a candidate came, in order."""

    GUARD = "guard"
    LINT = "lint"
    COMPILE = "compile"
    SIMULATE = "simulate"

    @property
    def rank(self) -> int:
        """0 for the guard up to 3 for the simulation."""
        return list(Stage).index(self)


class Status(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SYNTAX_ERROR = "syntax_error"
    ELAB_ERROR = "elab_error"
    UNSUPPORTED = "unsupported"
    TIMEOUT_CPU = "timeout_cpu"
    TIMEOUT_WALL = "timeout_wall"
    OOM = "oom"
    OUTPUT_LIMIT = "output_limit"
    NO_VERDICT = "no_verdict"
    GUARD_REJECT = "guard_reject"
    TOOL_MISSING = "tool_missing"


class Port(Record):
    """One port of a module's header. ``width`` is in bits, None where it is an expression of parameters."""

    name: str
    direction: Literal["input", "output", "inout"]
    width: int | None = 1
    signed: bool = False


class Bench(Record):
    """A testbench and everything that is compiled with it.

    Attributes:
        text: Verilog source.
        top: the module that is simulated.
        verdict: how the verdict is read from its output: ``mismatches`` (one line ``Mismatches: m in n samples``),
            ``banner`` (an explicit pass line and no line that reports an error), or ``nonce`` (a mismatch line that
            begins with the random word put in the place of ``@NONCE@``).
        reference: source of the reference module, where it is not part of ``text``.
        reference_top: the reference's module name; the harness gives it a random one for each run.
        aux_files: data files that the bench reads, relative name -> text.
        design_first: compile the design before the bench (compiler directives carry over from file to file).
    """

    text: str
    top: str = "tb"
    design_first: bool = True
    verdict: VerdictStyle = "nonce"
    reference: str = ""
    reference_top: str = ""
    aux_files: dict[str, str] = Field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Digest of the bench, its reference and its data files."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class Task(Record):
    """One design to be generated.

    Attributes:
        id: unique within its benchmark.
        description: what the design must do, as given to the coder.
        header: module header that must be kept verbatim, up to and including ``);``, or None.
        top_name: module name of the design.
        ports: ports of the header, or None where unknown.
        language: what the design may use.
        provided_testbench: the benchmark's own bench, or None.
        aux_files: files that belong to the design itself, relative name -> text.
        reference: a known good design whose top is ``top_name``. Never shown to a model.
        benchmark: the set it belongs to.
        golden: known verdicts of the reference by Icarus major version, as ``Status`` values; ``pass`` also covers
            a bench that prints TIMEOUT although every sample matches (``golden_timeout``).
        golden_timeout: the bench reaches its own time guard with the reference design.
        notes: known defects of the task, and errata that were applied.
        excluded: why the task should not count, or empty.
    """

    id: str
    description: str
    header: str | None = None
    top_name: str
    ports: tuple[Port, ...] | None = None
    language: Language = "sv2012"
    provided_testbench: Bench | None = None
    aux_files: dict[str, str] = Field(default_factory=dict)
    reference: str | None = Field(default=None, repr=False)
    benchmark: str = ""
    golden: dict[int, Status] = Field(default_factory=dict)
    golden_timeout: bool = False
    notes: tuple[str, ...] = ()
    excluded: str = ""


class Artifact(Record):
    """A version of the code or of the bench, with where it came from. ``sha256`` is computed from ``text``."""

    kind: Literal["code", "testbench"]
    text: str
    author: str
    parent: str | None = None
    round: int = Field(0, ge=0)
    attempt: int = Field(0, ge=0)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


class Finding(Record):
    """One problem that a teacher sees, and what to do about it."""

    where: str = ""
    problem: str = ""
    fix: str = ""


class Advice(Record):
    """A teacher's or prosecutor's answer."""

    verdict: Literal["code_wrong", "testbench_wrong", "both", "none"]
    code_advice: tuple[Finding, ...] = ()
    testbench_advice: tuple[Finding, ...] = ()
    raw: str = ""


class Diagnostic(Record):
    """One message of a tool. ``file`` is a name inside the job (``dut.sv``, ``tb.sv``, ``ref.sv``), never a host path."""

    file: str = ""
    line: int = 0
    severity: Literal["error", "warning", "info"] = "error"
    code: str = ""
    message: str = ""


class FirstMismatch(Record):
    """Where reference and design first differ, from the waveform.

    Attributes:
        time: of the first difference, in units of the VCD's timescale (``timescale``).
        outputs: output name -> time of its first difference.
        columns: signal names of the table: inputs, then ``name_ref`` and ``name_dut`` of each output.
        rows: (time, one value a column) for samples around the first difference; values are hexadecimal, or binary
            where a bit is x or z.
    """

    time: int
    timescale: str = ""
    outputs: dict[str, int] = Field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[int, tuple[str, ...]], ...] = ()

    def table(self) -> str:
        """The rows as aligned text, the first differing one marked with ``>``."""
        head = ["", "time", *self.columns]
        body = [[">" if time == self.time else "", str(time), *values] for time, values in self.rows]
        widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
        lines = [
            "  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in [head, *body]
        ]
        return "\n".join(lines)


class SimResult(Record):
    """The outcome of guard, lint, compilation and simulation.

    Attributes:
        stage: the last stage that was entered.
        mismatches, samples: of the verdict line; None without one.
        timeout_flag: the bench printed TIMEOUT by itself.
        output, errors: tails of what the tools printed, host paths and nonces removed.
        cpu_s, wall_s: seconds summed over the tools; peak_mb: largest resident size of one process in MB (10^6 bytes).
        tools: program -> version. command: the last command line, with paths inside the sandbox.
        tier: how the tools were confined.
    """

    stage: Stage
    status: Status
    mismatches: int | None = None
    samples: int | None = None
    timeout_flag: bool = False
    diagnostics: tuple[Diagnostic, ...] = ()
    first_mismatch: FirstMismatch | None = None
    output: str = ""
    errors: str = ""
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mb: float = 0.0
    tools: dict[str, str] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    tier: str = ""

    @property
    def passed(self) -> bool:
        return self.status is Status.PASS

    @property
    def compiled(self) -> bool:
        """Code and bench compiled together: the syntax metric."""
        return self.stage is Stage.SIMULATE

    @property
    def mismatch_ratio(self) -> float:
        """Mismatches over samples; 1 where nothing was compared."""
        return self.mismatches / self.samples if self.samples and self.mismatches is not None else 1.0

    def signature(self) -> str:
        """Status and messages without numbers and times: equal when a repair changed nothing that shows."""
        kinds = sorted({(d.file, d.severity, d.code, d.message) for d in self.diagnostics})
        outputs = sorted(self.first_mismatch.outputs) if self.first_mismatch else []
        return hashlib.sha256(repr((self.stage, self.status, kinds, outputs)).encode()).hexdigest()


class BenchQuality(Record):
    """Whether a bench can fail at all, and how many mutants of a known good design it catches.

    Attributes:
        vacuous: it accepts a stub whose outputs are constant.
        stubs: stub (``zeros``, ``ones``, ``unknown``) -> status.
        mutants, caught: counts; 0 of 0 when no mutants were run.
    """

    vacuous: bool
    stubs: dict[str, Status] = Field(default_factory=dict)
    mutants: int = 0
    caught: int = 0
