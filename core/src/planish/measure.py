"""Measured values, and the few ways in which core takes them. Reports are made of nothing else."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured value.

    Attributes:
        name: what was measured, in the field's standard term.
        value: the figure, in ``unit``.
        repeats: how many samples stand behind it (windows, images, timed calls).
        spread: half-width of its uncertainty in ``unit``; what it is stands in ``how``. None where it has none.
        device: where it was taken.
        how: how it was taken, in one sentence.
        lower_is_better: direction of improvement; None where there is none.
    """

    name: str
    value: float
    unit: str
    repeats: int = 1
    spread: float | None = None
    device: str = ""
    how: str = ""
    lower_is_better: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bytes_on_disk(folder: Path) -> int:
    """Bytes of all files below ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class PeakMemory:
    """Peak resident memory of this process between `start` and `stop`, in bytes.

    On Linux the kernel's own high-water mark is reset and read, which misses nothing; elsewhere, and where the reset
    is not permitted, resident memory is sampled every 5 ms.
    """

    how: str = ""
    peak: int = 0

    def start(self) -> None:
        self._stop = threading.Event()
        self.peak = resident()
        self._thread: threading.Thread | None = None
        try:
            Path("/proc/self/clear_refs").write_text("5")
            self.how = "kernel high-water mark of resident memory"
        except OSError:
            self.how = "resident memory sampled every 5 ms"
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()

    def stop(self) -> int:
        if self._thread is None:
            self.peak = _status("VmHWM")
        else:
            self._stop.set()
            self._thread.join()
            self.peak = max(self.peak, resident())
        return self.peak

    def _sample(self) -> None:
        while not self._stop.wait(0.005):
            self.peak = max(self.peak, resident())


@contextlib.contextmanager
def peak_memory() -> Iterator[PeakMemory]:
    """Measure the peak resident memory of the body; read ``peak`` afterwards."""
    meter = PeakMemory()
    meter.start()
    try:
        yield meter
    finally:
        meter.stop()


def resident() -> int:
    """Resident memory of this process in bytes; its peak so far where the current value cannot be read."""
    if current := _status("VmRSS"):
        return current
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status(key: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return 0


def device_name(device: str = "cpu") -> str:
    """The hardware's own name, for the record: the processor's model and the cores available, or the GPU's name."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{name}, {cores()} cores"


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
