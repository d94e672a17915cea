"""A full disk and a folder that cannot be written: one line, nothing half-written, and the run can go on."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planish import Artifact, Pipeline
from planish.errors import ArtifactError, RunError
from planish.source import open_source
from planish.weights import SINGLE, header

NOBODY = 65534
STAGES = Pipeline(seed=1).then("zero", sparsity=0.5).then("fail")
MEBIBYTE = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and shutil.which("mount") is not None
    if mounted:
        options = ["-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        mounted = subprocess.run(["mount", *options], capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file may grow beyond ``limit`` bytes, as under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may write anywhere; for the body, this process is nobody."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError:
        pytest.skip("root cannot become another user here")
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


def nothing_half_written(out: Path) -> None:
    """What bears a final name is whole."""
    for folder in out.glob("[0-9][0-9]-*"):
        if folder.suffix != ".tmp":
            Artifact.open(folder)
    for path in out.rglob("*.safetensors"):
        if path.parent.name == "units":
            header(path)
    for path in out.rglob("*.json"):
        assert path.read_text().endswith("}\n")
    assert not list(out.rglob("*.part"))


def wide(folder: Path) -> Artifact:
    """A perceptron of 300 kB."""
    from planish_fake.models import write

    return write(folder, widths=[6, 250, 280, 3])


@pytest.fixture
def go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAIL", "no")
    # The preflight would refuse the disk before the run began; here it fills up during the run.
    usage = shutil._ntuple_diskusage(1 << 40, 0, 1 << 40)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


@pytest.mark.parametrize("room", [1, 60, 300, 560])
def test_a_disk_that_fills_up_during_a_run(room: int, small_disk: Path, tmp_path: Path, go_on: None) -> None:
    """``room``: kilobytes that are free when the run starts; it is spent at another place each time."""
    source = wide(tmp_path / "model")
    whole = STAGES.run(source, tmp_path / "whole", measure="none")
    out = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (MEBIBYTE - room * 1024))
    with pytest.raises(RunError) as error:
        STAGES.run(source, out, measure="none")
    assert str(error.value) == (
        f"{out}: the disk is full; free some space and repeat the command: finished work is kept"
    )
    if out.exists():
        nothing_half_written(out)
    ballast.unlink()
    again = STAGES.run(source, out, measure="none")
    assert again.artifact.digest == whole.artifact.digest
    nothing_half_written(out)


@pytest.mark.model
def test_a_full_disk_while_transformers_saves(
    small_disk: Path, llama_folders: dict[bool, Path], go_on: None
) -> None:
    out = small_disk / "run"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * (MEBIBYTE - 60 * 1024))
    pipeline = Pipeline().then("reads")
    with pytest.raises(RunError, match="the disk is full"):
        pipeline.run(llama_folders[True], out, measure="none")
    nothing_half_written(out)
    ballast.unlink()
    pipeline.run(llama_folders[True], out, measure="none")


@pytest.mark.parametrize("limit", [0, 200, 100_000])
def test_a_file_size_limit(limit: int, tmp_path: Path, go_on: None) -> None:
    source = wide(tmp_path / "model")
    out = tmp_path / "run"
    with file_size_limit(limit), pytest.raises(RunError, match="the disk is full"):
        STAGES.run(source, out, measure="none")
    nothing_half_written(out)
    STAGES.run(source, out, measure="none")
    nothing_half_written(out)


def test_the_disk_fills_up_while_measurements_are_kept(
    small_disk: Path, fake_source: str, few_rounds: None, go_on: None
) -> None:
    out = small_disk / "run"
    Pipeline().then("zero").run(fake_source, out, measure="none")
    report = out / "report.html"
    before = report.read_bytes()
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
    with pytest.raises(RunError, match="the disk is full"):
        Pipeline().then("zero").run(fake_source, out)
    nothing_half_written(out)
    assert report.read_bytes() == before
    ballast.unlink()
    assert len(Pipeline().then("zero").run(fake_source, out).rows) == 2


class TestAFolderThatCannotBeWritten:
    def check(self, out: Path, cli: Callable[..., Any], recipe: Path, expected: str) -> None:
        # Nobody may not look into the folders of the interpreter and of the plugin: load all that a run loads.
        with tempfile.TemporaryDirectory() as name:
            assert cli("run", recipe, "--out", Path(name) / "run").code == 0
        with unprivileged():
            done = cli("run", recipe, "--out", out)
        assert done.code == 2
        assert done.out == ""
        assert done.err.startswith(f"planish: {out}: {expected}")
        assert len(done.err.splitlines()) == 1

    @pytest.fixture
    def recipe(self, open_folder: Path) -> Path:
        from planish_fake.models import write

        write(open_folder / "model")
        (open_folder / "model/model" / SINGLE).chmod(0o644)
        path = open_folder / "recipe.yaml"
        path.write_text("source: model\nstages: [zero]\n")
        return path

    def test_a_new_run(self, recipe: Path, open_folder: Path, cli: Callable[..., Any]) -> None:
        (open_folder / "closed").mkdir(mode=0o555)
        self.check(open_folder / "closed/run", cli, recipe, "cannot be written (Permission denied")
        assert not list((open_folder / "closed").iterdir())

    def test_a_finished_run(self, recipe: Path, open_folder: Path, cli: Callable[..., Any]) -> None:
        out = open_folder / "run"
        assert cli("run", recipe, "--out", out).code == 0
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        for path in (out, *out.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        self.check(out, cli, recipe, "cannot be written (Permission denied")
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
        # What only reads still works.
        with unprivileged():
            assert cli("show", out).code == 0
            assert cli("watch", out).code == 0
            report = cli("report", out)
        assert report.code == 2
        assert report.err == f"planish: report {out}/report.html: cannot be written (Permission denied)\n"

    def test_a_file_where_the_folder_should_be(
        self, recipe: Path, open_folder: Path, cli: Callable[..., Any]
    ) -> None:
        (open_folder / "run").write_text("")
        self.check(open_folder / "run", cli, recipe, "is not a folder")
        self.check(open_folder / "run/deeper", cli, recipe, "is not a folder")


def test_a_source_that_cannot_be_read(open_folder: Path) -> None:
    from planish_fake.models import write

    write(open_folder / "model")
    (open_folder / "model/model" / SINGLE).chmod(0)
    with (
        unprivileged(),
        pytest.raises(ArtifactError, match=r"cannot be read .Permission denied: .*safetensors"),
    ):
        open_source(open_folder / "model")


def test_a_read_only_file_system(small_disk: Path, fake_source: str) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunError, match=r"cannot be written \(Read-only file system"):
        Pipeline().then("zero").run(fake_source, small_disk / "run")
