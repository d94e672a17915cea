"""Confinement itself: tiers, limits, figures, cancelling, and nobody left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from promptv_hostile import GOOD, survivors, task

from planish.errors import PlanishError
from planish_promptv.harness import Limits, SandboxError, Simulator, TaskError, sandbox
from planish_promptv.harness.process import Cancelled, Pool, RunnerError, Token
from planish_promptv.types import Stage, Status

SPIN = "module TopModule(input clk, input [3:0] a, output reg [3:0] y); always @(posedge clk) forever #0 y = a; endmodule"


@pytest.fixture(params=["bwrap", "unshare"])
def box(request: pytest.FixtureRequest) -> Iterator[tuple[Pool, sandbox.Sandbox]]:
    pool = Pool(1)
    found = sandbox.probe(pool, (), (request.param,))
    if found.sandbox is None:
        pool.close()
        pytest.skip(f"{request.param} does not work here: {found.failures}")
    yield pool, found.sandbox
    pool.close()


def shell(box: tuple[Pool, sandbox.Sandbox], script: str, limits: Limits | None = None) -> object:
    pool, confined = box
    folder = sandbox.work_folder(confined)
    limits = limits or Limits(cpu_s=5)
    try:
        with pool.runner() as runner:
            argv = confined.wrap(["/bin/sh", "-c", script], folder, limits)
            return runner.run(argv, folder, limits, confined.environment(folder), confined.drop)
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_host_is_out_of_reach(box: tuple[Pool, sandbox.Sandbox]) -> None:
    done = shell(
        box, "cat /etc/passwd; ls /root /home; touch /usr/x /x /dev/shm/x; env; echo data > kept; cat kept"
    )
    assert "root:x" not in done.stdout
    assert done.stdout.strip().endswith("data")
    assert "PYTHON" not in done.stdout
    assert "/tmp/" not in done.stdout
    assert done.code == 0
    assert not any(Path(place).exists() for place in ("/usr/x", "/x", "/dev/shm/x"))


def test_processes_are_limited(box: tuple[Pool, sandbox.Sandbox]) -> None:
    if not box[1].count:
        pytest.skip("this kernel counts processes a user, not a namespace")
    done = shell(
        box, "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done; echo all", Limits(processes=8, cpu_s=5)
    )
    assert "all" not in done.stdout
    assert done.code != 0


def test_background_processes_die_with_the_job(box: tuple[Pool, sandbox.Sandbox]) -> None:
    done = shell(box, "setsid sleep 100 & echo $PLANISH_JOB")
    assert done.wall_s < 60
    assert survivors(done.stdout.strip()) == []


def test_figures_are_of_the_tool(box: tuple[Pool, sandbox.Sandbox]) -> None:
    done = shell(
        box,
        "x=aaaaaaaaaaaaaaaa; for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21; do x=$x$x; done",
    )
    assert 33 < done.peak_mb < 400
    assert 0 < done.cpu_s <= done.wall_s * os.cpu_count()


def test_limits_end_a_program(box: tuple[Pool, sandbox.Sandbox]) -> None:
    assert shell(box, "while :; do :; done", Limits(cpu_s=1)).signal == signal.SIGXCPU
    assert shell(box, "yes", Limits(output_kb=64)).stopped == "output"
    assert shell(box, "yes > file", Limits(file_mb=1)).signal == signal.SIGXFSZ
    assert len(shell(box, "yes", Limits(output_kb=64)).stdout) <= 64 << 10


def test_unknown_program_is_an_error() -> None:
    pool = Pool(1)
    with pool.runner() as runner, pytest.raises(RunnerError, match="nosuchprogram"):
        runner.run(["/nosuchprogram"], Path("/tmp"), Limits(), {})
    pool.close()


def test_limits_alone_need_permission(monkeypatch: pytest.MonkeyPatch, iverilog: None) -> None:
    with pytest.raises(SandboxError, match="allow_unsandboxed"):
        Simulator(tier="rlimits")
    with pytest.raises(SandboxError, match="not one of bwrap, unshare, rlimits"):
        Simulator(tier="docker")
    monkeypatch.setattr(sandbox, "_try", lambda box, pool: "" if box.tier == "rlimits" else "no namespaces")
    with pytest.raises(SandboxError, match=r"bwrap: no namespaces.*--allow-unsandboxed"):
        Simulator()
    with Simulator(slots=1, allow_unsandboxed=True) as simulator:
        assert simulator.tier == "rlimits"
        result = simulator.simulate_sync(task(), GOOD)
    assert (result.status, result.tier) == (Status.PASS, "rlimits")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the user nobody can read; pytest's own are closed to other users."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_program_that_is_there_but_does_not_work_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, open_folder: Path
) -> None:
    fake = open_folder / "bwrap"
    fake.write_text("#!/bin/sh\necho bwrap: no permission to create namespace >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{open_folder}:{os.environ['PATH']}")
    pool = Pool(1)
    found = sandbox.probe(pool)
    pool.close()
    assert "no permission" in found.failures["bwrap"]
    assert found.sandbox is None or found.sandbox.tier == "unshare"


def test_limits_are_checked() -> None:
    with pytest.raises(PlanishError, match="cpu_s = 0"):
        Limits(cpu_s=0)


def test_cancelling_kills_the_job(simulator: Simulator) -> None:
    async def run() -> float:
        job = asyncio.create_task(simulator.simulate(task(), SPIN))
        await asyncio.sleep(1.5)
        job.cancel()
        start = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await job
        return time.monotonic() - start

    assert asyncio.run(run()) < 30  # the limit of CPU time alone would be a minute
    assert simulator.simulate_sync(task(), GOOD).passed
    token = Token()
    token.cancel()
    with pytest.raises(Cancelled):
        simulator.simulate_sync(task(), GOOD, token=token)


def test_killed_owner_leaves_nobody(tmp_path: Path, iverilog: None) -> None:
    """SIGKILL of the whole Python process while a simulation runs."""
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from promptv_hostile import task
from planish_promptv.harness import Simulator, job as module
original = module.work_folder
def remember(box):
    folder = original(box)
    print(folder.name, flush=True)
    return folder
module.work_folder = remember
Simulator(slots=1).simulate_sync(task(), {SPIN!r})
"""
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert owner.stdout
    job = owner.stdout.readline().strip()
    if not job:
        pytest.skip("no sandbox works here")
    deadline = time.monotonic() + 60
    while "vvp" not in survivors(job) and time.monotonic() < deadline:
        time.sleep(0.05)
    owner.kill()
    owner.wait()
    folder = Path(tempfile.gettempdir()) / job
    while (survivors(job) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert survivors(job) == []
    assert not folder.exists()


def test_user_mistakes(simulator: Simulator) -> None:
    with pytest.raises(TaskError, match="top_name is empty"):
        simulator.simulate_sync(task().model_copy(update={"top_name": ""}), GOOD)
    with pytest.raises(TaskError, match="brings none"):
        simulator.simulate_sync(task().model_copy(update={"provided_testbench": None}), GOOD)


def test_job_files_can_be_kept(simulator: Simulator, tmp_path: Path) -> None:
    with Simulator(slots=1, keep=tmp_path, tier=simulator.tier) as keeping:
        assert keeping.simulate_sync(task(), GOOD).passed
    (kept,) = tmp_path.iterdir()
    assert {"dut.sv", "tb.sv", "ref.sv", "out.vvp", "wave.vcd"} <= {path.name for path in kept.iterdir()}
    assert "module RefModule(" not in (kept / "ref.sv").read_text()  # it had another name in this run


def test_missing_compiler_is_a_status(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(simulator.__dict__, "tools", {})
    result = simulator.simulate_sync(task(), GOOD)
    assert result.status is Status.TOOL_MISSING
    assert "apt-get install iverilog" in result.diagnostics[0].message


def test_full_disk_is_one_line(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunnerError, match="cannot be written \\(No space left on device\\)"):
        simulator.simulate_sync(task(), GOOD)


def test_lint_warns_and_only_its_errors_block(simulator: Simulator) -> None:
    if shutil.which("verilator") is None:
        pytest.skip("verilator is not installed: apt-get install verilator")
    latch = (
        "module TopModule(input clk, input [3:0] a, output reg [3:0] y); always @* if (clk) y = a; endmodule"
    )
    mixed = GOOD.replace("output [3:0] y", "output reg [3:0] y").replace(
        "assign y = a;", "always @(posedge clk) y <= a; always @* y = a;"
    )
    with Simulator(slots=1, lint=True, tier=simulator.tier) as linting:
        warned = linting.check_sync(task(), latch)
        blocked = linting.check_sync(task(), mixed)
    assert warned.status is Status.PASS
    assert {"LATCH", "warning"} <= {word for d in warned.diagnostics for word in (d.code, d.severity)}
    assert (blocked.stage, blocked.passed) == (Stage.LINT, False)
    assert blocked.diagnostics[0].file == "dut.sv"
