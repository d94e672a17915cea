"""How figures are taken, with programs and a clock that are known."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from planish import measure
from planish.measure import Measurement


def test_measurement_as_dict() -> None:
    value = Measurement("size", 1.5, "MB", 3, 0.1, "CPU", "counted", True)
    assert Measurement(**value.as_dict()) == value


class TestPeakMemory:
    SIZE = 200 << 20

    def test_an_allocation_that_is_gone_again_is_seen(self) -> None:
        before = measure.resident()
        with measure.peak_memory() as meter:
            block = bytearray(self.SIZE)
            del block
        assert 0.8 * self.SIZE < meter.peak - before < 1.5 * self.SIZE
        assert meter.how

    def test_each_body_has_its_own_peak(self) -> None:
        with measure.peak_memory() as first:
            bytearray(self.SIZE)
        with measure.peak_memory() as second:
            pass
        assert second.peak < first.peak - 0.8 * self.SIZE

    @pytest.fixture
    def no_reset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container that forbids to reset the kernel's mark."""

        def refuse(path: Path, text: str) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(Path, "write_text", refuse)

    def test_sampled_where_the_mark_cannot_be_reset(self, no_reset: None) -> None:
        before = measure.resident()
        with measure.peak_memory() as meter:
            block = bytearray(self.SIZE)
            deadline = time.monotonic() + 10
            while meter.peak < before + 0.8 * self.SIZE and time.monotonic() < deadline:
                time.sleep(0.01)
            del block
        assert meter.how == "resident memory sampled every 5 ms"
        assert 0.8 * self.SIZE < meter.peak - before < 1.5 * self.SIZE

    def test_a_body_shorter_than_a_sample_has_a_peak(self, no_reset: None) -> None:
        with measure.peak_memory() as meter:
            pass
        assert meter.peak > 1 << 20

    def test_stopped_when_the_body_raises(self, no_reset: None) -> None:
        with pytest.raises(ZeroDivisionError), measure.peak_memory() as meter:
            1 / 0  # noqa: B018
        assert meter.peak > 0
        assert meter._thread is not None
        assert not meter._thread.is_alive()

    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "_status", lambda key: 0)
        assert measure.resident() > 1 << 20


def test_bytes_on_disk(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(b"123")
    (tmp_path / "d").write_bytes(b"4567")
    assert measure.bytes_on_disk(tmp_path) == 7


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = measure.device_name()
    assert name.endswith(f", {measure.cores()} cores")
    assert len(name) > len(", 1 cores")
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    assert measure.cores() >= 1
