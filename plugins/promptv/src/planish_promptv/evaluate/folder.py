"""The folder of an evaluation: its settings, the ledger of paid replies, finished samples, and a trace of each sample."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from planish import digest
from planish.artifact import write_json
from planish.errors import RunError
from planish_promptv.agents.result import GenerationResult
from planish_promptv.config import EvaluationConfig
from planish_promptv.jsonl import read
from planish_promptv.types import Record, SimResult, Task

SETTINGS = "run.json"
LEDGER = "calls.jsonl"
SAMPLES = "samples.jsonl"
TRACES = "traces"
REPORT = "report.html"
FORMAT = 1


class Review(Record):
    """One review of the loop beside the truth, which the benchmark's bench tells.

    ``saw_error`` is what the review said of the code; ``wrong`` is what the benchmark says.
    """

    attempt: int
    round: int
    saw_error: bool
    wrong: bool


class Scored(Record):
    """A finished sample: what the loop produced, and the verdict of the benchmark's bench in a fresh process.

    Attributes:
        sim: that verdict; None where there was no code to score.
    """

    key: str
    task: str
    sample: int
    result: GenerationResult
    sim: SimResult | None = None
    reviews: tuple[Review, ...] = ()

    @property
    def passed(self) -> bool:
        return self.sim is not None and self.sim.passed

    @property
    def compiled(self) -> bool:
        return self.sim is not None and self.sim.compiled


class Settings(Record):
    """What was run: enough to run it again.

    Attributes:
        benchmark: as the user named it. tasks: ids in order. data: digest of the tasks.
        excluded: task -> why it does not count.
        pack: name, version and digest of the prompts. address: of the provider.
        tools: program -> version, as the run began.
    """

    format: int = FORMAT
    benchmark: str
    tasks: tuple[str, ...]
    data: str
    excluded: dict[str, str] = Field(default_factory=dict)
    config: EvaluationConfig
    pack: dict[str, str]
    address: str
    tools: dict[str, str] = Field(default_factory=dict)
    started: float = 0.0

    def identity(self) -> str:
        """Digest of everything that decides results; limits on time, money and parallelism do not."""
        passing = {
            "concurrency", "parallel_samples", "request_timeout", "tries", "retry_base", "requests_per_minute",
            "tokens_per_minute", "total_budget", "slots", "prices", "api_key_env", "allow_unsandboxed",
        }  # fmt: skip
        config = self.config.model_dump(mode="json", exclude=passing)
        return digest.of_json(
            [self.benchmark, self.tasks, self.data, config, self.pack["sha256"], self.address]
        )

    def key(self, task: str, sample: int) -> str:
        """Key of one sample."""
        return digest.of_json([self.identity(), task, sample])[:24]


def data_digest(tasks: list[Task]) -> str:
    """Digest of everything that the tasks hold."""
    return digest.of_json([task.model_dump(mode="json") for task in tasks])


class RunFolder:
    """A folder of one evaluation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ledger = root / LEDGER
        self.samples = root / SAMPLES
        self.report = root / REPORT

    def trace(self, task: str, sample: int) -> Path:
        """File of a sample's trace."""
        readable = re.sub(r"[^\w.-]+", "-", task).strip(".-")[:80]
        if readable != task:
            readable += f"-{digest.of_bytes(task.encode())[:8]}"
        return self.root / TRACES / f"{readable}.{sample:03d}.jsonl"

    def settings(self) -> Settings:
        """What the folder holds a run of.

        Raises:
            RunError: it holds none, or one of another format.
        """
        path = self.root / SETTINGS
        try:
            data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if data.get("format") != FORMAT:
                raise RunError(f"{path}: format {data.get('format')}, this planish-promptv reads {FORMAT}")
            return Settings.model_validate(data)
        except FileNotFoundError:
            raise RunError(f"{self.root}: holds no evaluation (no {SETTINGS})") from None
        except OSError as error:
            raise RunError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValueError, AttributeError, ValidationError) as error:
            raise RunError(f"{path}: damaged ({type(error).__name__}); choose another folder") from None

    def claim(self, settings: Settings) -> Settings:
        """Write the settings, or make sure that the folder holds the same run.

        Raises:
            RunError: the folder holds another run, or cannot be written.
        """
        if (self.root / SETTINGS).is_file():
            earlier = self.settings()
            if earlier.identity() != settings.identity():
                raise RunError(
                    f"{self.root}: holds another evaluation ({earlier.benchmark}, mode {earlier.config.mode}); "
                    "choose another folder, or repeat the options it was started with"
                )
            return earlier
        try:
            write_json(self.root / SETTINGS, settings.model_dump(mode="json"))
        except OSError as error:
            raise RunError(f"{self.root}: cannot be written ({error.strerror})") from None
        return settings

    def finished(self) -> list[Scored]:
        """Finished samples, in the order in which they were finished.

        Raises:
            RunError: the file is damaged.
        """
        try:
            return [Scored.model_validate(line) for line in read(self.samples)]
        except ValidationError:
            raise RunError(f"{self.samples}: holds something else than finished samples") from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder; the lock dies with the process.

        Raises:
            RunError: another process works in it, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise RunError(f"{self.root}: cannot be written ({error.strerror})") from None
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{self.root}: another process is working in this folder") from None
            yield
        finally:
            os.close(lock)
