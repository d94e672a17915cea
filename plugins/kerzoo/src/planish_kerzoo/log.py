"""The log of a run: (seed, r, d) of every direction. It is the checkpoint: with the base model it gives the weights back.

A file is one line of JSON (what the run was) and then records of a fixed size, each with a CRC-32. Steps whose last
record is torn or missing, as after a kill, are cut off when the log is opened again.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from planish import digest
from planish.errors import ArtifactError, PlanishError, RunError
from planish_kerzoo.estimator import Sample
from planish_kerzoo.layout import Segment

if TYPE_CHECKING:
    from planish_kerzoo.optimizer import KerZOO

FORMAT = 1
MOST = 1 << 20
"""Parameter groups, and directions a step, at most."""
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run: its number, its directions (n), their differences d (n, float32 values) and lr a group."""

    number: int
    samples: tuple[Sample, ...]
    d: tuple[float, ...]
    lrs: tuple[float, ...]


class RunLog:
    """An append-only log on disk.

    Args:
        path: the file. A new one is made on the first append; an existing one is continued.
        header: what the run is. An existing log must have been written with the same one.

    Raises ArtifactError where the file is no log, and RunError where it belongs to another run or cannot be written.
    """

    def __init__(self, path: str | Path, header: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        self._stream: Any = None
        self._begin = self._end = 0
        self.header: dict[str, Any] = {}
        self.steps = 0
        if self.path.is_file():
            self._recover()
        if header is not None:
            self.bind(header)

    def bind(self, header: dict[str, Any]) -> None:
        """Say what the run is: kept in a new log, compared with an existing one."""
        header = json.loads(json.dumps(header))
        if not self.header:
            self.header = header
        for key in sorted({*self.header, *header}):
            if self.header.get(key) != header.get(key):
                raise RunError(f"log {self.path}: belongs to another run ({key} is {_short(self.header.get(key))}, "
                               f"not {_short(header.get(key))}); choose another file")  # fmt: skip

    @property
    def bytes(self) -> int:
        """Size of the complete part on disk."""
        return self._end

    def expect(self, number: int) -> None:
        """Raises RunError unless the step of that number is the next one: the log of a finished run is not gone on with by chance."""
        if number != self.steps:
            raise RunError(
                f"log {self.path}: holds {self.steps} steps, and the next one is step {number}; go on from it with "
                "replay(log, optimizer), or choose another file"
            )

    def append(self, step: Step) -> None:
        """Write one step and hand it to the operating system: it survives a kill of this process."""
        self.expect(step.number)
        record = _record(len(step.lrs))
        rows = []
        for sample, d in zip(step.samples, step.d, strict=True):
            body = record.pack(step.number, sample.seed, sample.r, sample.weight, d, *step.lrs)
            rows.append(body + _CRC.pack(zlib.crc32(body)))
        try:
            if self._stream is None:
                self._open()
            self._stream.write(b"".join(rows))
            self._stream.flush()
        except OSError as error:
            raise RunError(f"log {self.path}: cannot be written ({error.strerror})") from None
        self._end = self._stream.tell()
        self.steps += 1

    def read(self) -> Iterator[Step]:
        """All complete steps, in order."""
        record, n = _record(self.header.get("groups", 1)), int(self.header.get("n", 1))
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self._begin)
            for _ in range(self.steps):
                rows = [record.unpack(stream.read(record.size + _CRC.size)[: record.size]) for _ in range(n)]
                samples = tuple(Sample(seed, r, weight) for _, seed, r, weight, *_ in rows)
                yield Step(rows[0][0], samples, tuple(row[4] for row in rows), tuple(rows[0][5:]))

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> None:
        if self._end == 0:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps({"kerzoo-log": FORMAT, **self.header}, sort_keys=True).encode() + b"\n"
            whole = self.path.with_name(self.path.name + ".part")
            whole.write_bytes(line)
            whole.replace(self.path)  # never a torn first line, which could not be told from another file
            self._begin = self._end = len(line)
        self._stream = self.path.open("r+b")
        self._stream.truncate(self._end)
        self._stream.seek(self._end)

    def _recover(self) -> None:
        """Read the header, and count the steps whose records are whole."""
        content = self.path.read_bytes()
        if not content:
            return
        line, _, rest = content.partition(b"\n")
        try:
            header = json.loads(line)
            if header.pop("kerzoo-log") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            groups, n = int(header["groups"]), int(header["n"])
            if not (0 < groups <= MOST and 0 < n <= MOST):
                raise ValueError(f"{groups} groups and {n} directions are not in 1 to {MOST}")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise ArtifactError(
                f"log {self.path}: is not a KerZOO log ({type(error).__name__}: {error})"
            ) from None
        record = _record(groups)
        size = n * (record.size + _CRC.size)
        while (self.steps + 1) * size <= len(rest) and _whole(rest, self.steps, size, n, record.size):
            self.steps += 1
        self.header, self._begin = header, len(line) + 1
        self._end = self._begin + self.steps * size


def _record(groups: int) -> struct.Struct:
    """step, seed, r, weight, d, lr of every group."""
    return struct.Struct(f"<QQddf{groups}d")


def _whole(content: bytes, number: int, size: int, n: int, body: int) -> bool:
    """Whether all records of the step of that number have their checksum and its number."""
    for start in range(number * size, (number + 1) * size, size // n):
        data = content[start : start + body]
        (crc,) = _CRC.unpack_from(content, start + body)
        if zlib.crc32(data) != crc or struct.unpack_from("<Q", data)[0] != number:
            return False
    return True


class Recorder:
    """Takes d from the device in batches of ``every`` steps, without waiting for the device, and counts skipped steps.

    Raises RunError once ``max_skipped`` steps in a row had a loss that is not finite. On a GPU that is noticed up to
    2 ``every`` steps late; the steps themselves are skipped on the device at once.
    """

    def __init__(self, log: RunLog | None, every: int, max_skipped: int) -> None:
        self.log = log
        self.every = every
        self.max_skipped = max_skipped
        self.skipped = 0
        self._row = 0
        self._waiting: list[tuple[int, tuple[Sample, ...], tuple[float, ...], Tensor]] = []
        self._copied: deque[tuple[list[tuple[int, tuple[Sample, ...], tuple[float, ...]]], Tensor, Any]] = (
            deque()
        )

    def add(self, number: int, samples: Sequence[Sample], lrs: Sequence[float], d: Tensor) -> None:
        """d: [n] float32 on the device."""
        self._waiting.append((number, tuple(samples), tuple(lrs), d))
        if len(self._waiting) >= self.every:
            self._write()
            self._copy()
            if not d.is_cuda:
                self._write()

    def drain(self) -> None:
        """Write everything; waits for the device."""
        self._copy()
        self._write()

    def _copy(self) -> None:
        if not self._waiting:
            return
        stacked = torch.stack([entry[3] for entry in self._waiting])
        event = None
        if stacked.is_cuda:
            host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            host.copy_(stacked, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            stacked = host
        self._copied.append(([entry[:3] for entry in self._waiting], stacked, event))
        self._waiting = []

    def _write(self) -> None:
        while self._copied:
            entries, host, event = self._copied.popleft()
            if event is not None:
                event.synchronize()
            for (number, samples, lrs), d in zip(entries, host.tolist(), strict=True):
                if self.log is not None:
                    self.log.append(Step(number, samples, tuple(d), lrs))
                self._count(number, all(map(_finite, d)))

    def _count(self, number: int, finite: bool) -> None:
        self._row = 0 if finite else self._row + 1
        self.skipped += not finite
        if self._row >= self.max_skipped:
            raise RunError(
                f"loss is not finite in {self._row} steps in a row (the last is step {number}); they were skipped. "
                f"Lower lr or eps, or look at the data; max_skipped = {self.max_skipped} is the limit"
            )


def _finite(value: float) -> bool:
    return value - value == 0


def replay(log: RunLog | str | Path, optimizer: KerZOO, progress: Callable[[int], None] | None = None) -> int:
    """Apply the steps of a log to the base model that ``optimizer`` holds, without a single forward pass.

    The weights end as the run that wrote the log left them: bit for bit on the same kind of device. The optimizer must
    have the options of that run, and its weights those that the run started from. Returns the number of steps.

    Raises RunError where the log was written with other options, parameters or weights.
    """
    log = _existing(log)
    log.bind(optimizer.header(log.header.get("base") is not None))
    for step in log.read():
        optimizer.repeat(step)
        if progress is not None:
            progress(step.number + 1)
    optimizer.finish()
    return log.steps


def _existing(log: RunLog | str | Path) -> RunLog:
    log = log if isinstance(log, RunLog) else RunLog(log)
    if not log.header:
        raise ArtifactError(f"log {log.path}: holds no run")
    return log


def average(log: RunLog | str | Path, optimizer: KerZOO, share: float = 0.5) -> None:
    """Move the weights from where the last step of the log left them to the mean of those after each step of the last ``share``.

    The log is all that is needed, so that no second copy of the weights is kept during a run (our derivation): of the m
    averaged weights of T steps, (s - (T - m)) / m do not have the change of step s = 0, ..., T - 1, and that share of it
    is taken back. In float16 and bfloat16 such small changes are mostly lost to rounding; keep float32 masters there.

    Raises PlanishError where a step cannot be taken back, and for a share that is not in (0, 1]; RunError for the log of another
    run.
    """
    if not 0 < share <= 1:
        raise PlanishError(f"average: share = {share} is not in (0, 1]")
    log = _existing(log)
    log.bind({**optimizer.header(), "base": log.header.get("base")})
    averaged = max(1, round(share * log.steps))
    for step in log.read():
        missing = step.number - (log.steps - averaged)
        if missing > 0:
            optimizer.take_back(step, missing / averaged)


def share_log(path: Path) -> None:
    """Under torch.distributed, give every process the log of the first one, which may have been killed at another step."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    content = path.read_bytes() if dist.get_rank() == 0 and path.is_file() else b""
    size = torch.tensor([len(content)], device=device)
    dist.broadcast(size, 0)
    data = torch.zeros(int(size), dtype=torch.uint8, device=device)
    data[: len(content)] = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    dist.broadcast(data, 0)
    if dist.get_rank() != 0:
        path.write_bytes(data.cpu().numpy().tobytes())


def fingerprint(segments: Sequence[Segment]) -> str:
    """sha256 of names, shapes, formats and values of the trainable parameters, one read back at a time.

    Sharded ones are gathered for that, one at a time, so that it is the fingerprint of the whole weights: every process must
    call it.
    """
    parts = []
    for segment in segments:
        values = segment.gathered().cpu().view(torch.uint8).numpy().tobytes()
        label = f"{segment.name}{tuple(segment.parameter.shape)}{segment.parameter.dtype}{segment.whole}"
        parts.append(digest.of_bytes(label.encode(), values))
    return digest.of_json(parts)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "…"
