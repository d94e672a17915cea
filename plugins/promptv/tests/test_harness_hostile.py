"""Every hostile input ends in a classed status, writes nothing outside, leaks nothing, leaves nobody behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from promptv_hostile import BENCHES, FOLDER, GOOD, survivors, task

from planish_promptv.harness import Limits, SandboxError, Simulator, TaskError, render_result
from planish_promptv.harness import job as module
from planish_promptv.types import Stage, Status

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("iverilog")]
LIMITS = Limits(cpu_s=1, memory_mb=512, file_mb=8, output_kb=256)


@pytest.fixture(scope="module", params=["bwrap", "unshare"])
def confined(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    try:
        simulator = Simulator(slots=1, tier=request.param, limits=LIMITS)
    except SandboxError as error:
        pytest.skip(str(error))
    with simulator:
        yield simulator


@pytest.fixture(scope="module")
def strict() -> Iterator[Simulator]:
    """Whatever sandbox works here, with small limits."""
    try:
        simulator = Simulator(slots=1, limits=LIMITS)
    except SandboxError as error:
        pytest.skip(str(error))
    with simulator:
        yield simulator


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Folders of the jobs that a test starts; afterwards they are gone, and so are their processes."""
    folders: list[Path] = []
    original = module.work_folder

    def remember(sandbox: object) -> Path:
        folders.append(original(sandbox))  # type: ignore[arg-type]
        return folders[-1]

    monkeypatch.setattr(module, "work_folder", remember)
    yield folders
    for folder in folders:
        assert not folder.exists()
        assert survivors(folder.name) == []


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.sv")), ids=lambda path: path.stem)
def test_hostile_design(path: Path, strict: Simulator, jobs: list[Path]) -> None:
    text = path.read_bytes().decode("utf-8", "replace")
    expected = text.splitlines()[0].removeprefix("// expect:").split()
    result = strict.simulate_sync(task(), text)
    assert result.status in expected, (result.status, result.diagnostics, result.errors)
    if result.status is Status.GUARD_REJECT and len(expected) > 1:
        assert expected[1] in {d.code for d in result.diagnostics} or "guard_reject" in expected[1:]
    # An address space of 512 MiB bounds what is resident; the launcher's own megabytes are in the figure.
    assert result.peak_mb < 512 * 1.05
    prompt = render_result(result)
    assert "root:" not in prompt
    assert not any(str(folder) in prompt or folder.name in prompt for folder in jobs)
    assert not Path("/etc/planish-hostile").exists()
    assert not Path("/tmp/planish-hostile").exists()


def test_bench_cannot_write_outside(confined: Simulator, jobs: list[Path], tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        place.chmod(0o777)  # nothing but the sandbox keeps the bench away
    outside = tmp_path / "outside.txt"
    result = confined.simulate_sync(task(BENCHES["write"].replace("OUTSIDE", str(outside)[1:])), GOOD)
    assert result.stage is Stage.SIMULATE
    assert not outside.exists()


def test_bench_cannot_read_host_files(confined: Simulator, jobs: list[Path]) -> None:
    result = confined.simulate_sync(task(BENCHES["read"]), GOOD)
    assert result.stage is Stage.SIMULATE
    assert "root:" not in result.output + result.errors + render_result(result)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("stdout flood", {Status.OUTPUT_LIMIT}),
        ("file flood", {Status.OUTPUT_LIMIT}),
        ("wave flood", {Status.OUTPUT_LIMIT, Status.TIMEOUT_CPU}),
        ("endless", {Status.TIMEOUT_CPU}),
    ],
)
def test_bench_floods(name: str, expected: set[Status], confined: Simulator, jobs: list[Path]) -> None:
    result = confined.simulate_sync(task(BENCHES[name]), GOOD)
    assert result.status in expected, result
    assert len(result.output) < 5000


def test_generated_bench_with_file_access_is_refused(simulator: Simulator) -> None:
    for call in ('$fopen("x", "r")', '$readmemh("x.hex", m)', '$dumpfile("../x.vcd")', '$system("ls")'):
        text = f'module tb; TopModule d(); initial begin {call}; $display("@NONCE@ x"); end endmodule'
        result = simulator.simulate_sync(task(), GOOD, text)
        assert result.status is Status.GUARD_REJECT, call


def test_provided_bench_with_an_absolute_path_is_refused(simulator: Simulator) -> None:
    for name in ("/etc/passwd", "../secret", "~/x"):
        result = simulator.simulate_sync(task(f'initial $readmemh("{name}", a);'), GOOD)
        assert result.status is Status.GUARD_REJECT, name


def test_aux_file_may_not_leave_the_folder(simulator: Simulator) -> None:
    for name in ("../x", "/tmp/x"):
        with pytest.raises(TaskError, match="must be relative"):
            simulator.simulate_sync(task().model_copy(update={"aux_files": {name: "text"}}), GOOD)
