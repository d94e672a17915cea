"""Evaluations as a user runs them: stopped, killed, resumed, replayed, reported; and what they must never write."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import promptv_designs as designs
import pytest

from planish.errors import DataError, RunError
from planish_promptv.agents.generate import generate_sync
from planish_promptv.config import EvaluationConfig, GenerationConfig
from planish_promptv.evaluate.replay import replay
from planish_promptv.evaluate.run import evaluate, evaluate_sync
from planish_promptv.harness import load_benchmark
from planish_promptv.jsonl import JsonLines
from planish_promptv.models.http import OpenAICompatProvider
from planish_promptv.models.mutating import MutatingModel, Skill
from planish_promptv.models.protocol import EndpointUnreachable, KeyRefused
from planish_promptv.models.scripted import Script, Scripted
from planish_promptv.models.secrets import Key
from planish_promptv.models.server import ScriptedServer

SECRET = "sk-live-5up3r53cr3tv4lu3"
PLANISH = [sys.executable, "-m", "planish.cli.app"]


class Slow:
    """An answerer that takes its time, so that a process can be killed in the middle."""

    def __init__(self, inner: Any, delay: float) -> None:
        self.inner, self.delay = inner, delay

    def answer(self, request: dict[str, Any]) -> Scripted:
        return self.inner.answer(request).model_copy(update={"delay": self.delay})


@pytest.fixture
def problem_set(tmp_path: Path) -> Path:
    return designs.write_benchmark(tmp_path / "bench")


def model_for(problem_set: Path, **skill: float) -> MutatingModel:
    tasks = load_benchmark(str(problem_set))
    wrong = {task.id: designs.wrong_versions(task.reference or "") for task in tasks}
    return MutatingModel(tasks, wrong, Skill(**skill))


def options(server: ScriptedServer, **changes: Any) -> EvaluationConfig:
    given = {"base_url": server.url, "model": "m", "bench_source": "provided", "samples": 2, "k": (1,)}
    return EvaluationConfig(**{**given, "max_restarts": 1, "retry_base": 0.0, **changes})


def command(*arguments: Any, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PLANISH, "verilog", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_killed_with_sigkill_and_resumed_pays_no_recorded_call_twice(
    simulator: Any, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    calls = out / "calls.jsonl"
    with ScriptedServer(Slow(model_for(problem_set, right_first=0.0, sees=0.4), 0.05)) as server:
        at_kill = []
        for lines in (3, 7):
            process = command(
                "eval", problem_set, "--out", out, "--base-url", server.url, "--model", "m", "-n", 2, "--yes",
                "--set", "bench_source=provided", "--set", "parallel_samples=2", "--set", "max_restarts=1",
            )  # fmt: skip
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and process.poll() is None:
                if calls.is_file() and calls.read_bytes().count(b"\n") >= lines:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            at_kill.append(len(recorded(calls)))
            assert at_kill[-1] >= lines
        killed_requests = len(server.requests)
        process = command("resume", out, "--json")
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        figures = json.loads(output)
        total = len(recorded(calls))
    assert figures["complete"]
    assert figures["samples"] == 4
    # Every recorded call was paid once. What was in flight when a process died, two samples at most, never came back.
    assert len(server.requests) <= total + 2 * 2
    assert killed_requests < len(server.requests)
    seen = [json.dumps(request, sort_keys=True) for request in server.requests]
    assert len(seen) - len(set(seen)) <= 2 * 2
    # The same evaluation without any kill ends in the same samples and the same traces.
    with ScriptedServer(model_for(problem_set, right_first=0.0, sees=0.4)) as server:
        config = options(server, samples=2, parallel_samples=1)
        whole = evaluate_sync(str(problem_set), config, tmp_path / "whole", simulator=simulator)
    assert whole.calls == figures["calls"] == total
    assert whole.verdicts == figures["verdicts"]
    assert whole.states == figures["states"]


def recorded(path: Path) -> list[dict[str, Any]]:
    whole = path.read_bytes()
    return [json.loads(line) for line in whole[: whole.rfind(b"\n") + 1].splitlines()]


def test_interrupt_finishes_the_calls_in_flight(problem_set: Path, iverilog: None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with ScriptedServer(Slow(model_for(problem_set, right_first=0.0, sees=0.2), 0.3)) as server:
        process = command(
            "eval", problem_set, "--out", out, "--base-url", server.url, "--model", "m", "-n", 2, "--yes",
            "--set", "bench_source=provided",
        )  # fmt: skip
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not len(server.requests) > 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 130, errors
        assert "finishing the calls in flight" in errors
        assert f"planish verilog resume {out}" in errors
        assert len(recorded(out / "calls.jsonl")) == len(server.requests), "every call that was sent is kept"


def test_replay_without_network_gives_the_same_verdicts_and_traces(
    simulator: Any, problem_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with ScriptedServer(model_for(problem_set, right_first=0.3, sees=0.4)) as server:
        report = evaluate_sync(str(problem_set), options(server), out, simulator=simulator)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("a replay must not open a connection")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr(OpenAICompatProvider, "__init__", no_network)
    found = asyncio.run(replay(out, simulator=simulator))
    assert found.same, found.differences
    assert found.samples == found.same_traces == report.samples
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_replay_tells_when_benchmark_or_ledger_are_not_what_they_were(
    simulator: Any, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with ScriptedServer(model_for(problem_set, right_first=1.0)) as server:
        evaluate_sync(str(problem_set), options(server, samples=1), out, simulator=simulator)
    path = problem_set / "Prob001_by1_prompt.txt"
    text = path.read_text()
    path.write_text(text + "And more.\n")
    with pytest.raises(RunError, match="is not what it was"):
        asyncio.run(replay(out, simulator=simulator))
    path.write_text(text)
    (out / "calls.jsonl").write_text("")
    with pytest.raises(Exception, match="no recorded call for coder"):
        asyncio.run(replay(out, simulator=simulator))


def test_unreachable_endpoint_keeps_what_is_finished_and_resumes(
    simulator: Any, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    model = model_for(problem_set, right_first=1.0)

    class Dying:
        left = 3

        def answer(self, request: dict[str, Any]) -> Scripted:
            self.left -= 1
            return model.answer(request) if self.left >= 0 else Scripted(status=503)

    dying = Dying()
    with ScriptedServer(dying) as server:
        config = options(server, tries=2, parallel_samples=1)
        with pytest.raises(EndpointUnreachable, match="no usable answer in 2 tries"):
            evaluate_sync(str(problem_set), config, out, simulator=simulator)
        assert len(recorded(out / "samples.jsonl")) == 3
        dying.left = 10**6
        sent = len(server.requests)
        report = evaluate_sync(str(problem_set), config, out, simulator=simulator)
        assert report.complete
        assert len(server.requests) - sent == 1
        with pytest.raises(RunError, match="holds another evaluation"):
            evaluate_sync(str(problem_set), options(server, mode="coopetitive"), out, simulator=simulator)


def test_wrong_key_ends_before_anything_is_paid(
    simulator: Any, problem_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROMPTV_TEST_KEY", SECRET)
    with ScriptedServer(model_for(problem_set), key=Key("OTHER", "other")) as server:
        config = options(server, api_key_env="PROMPTV_TEST_KEY")
        with pytest.raises(KeyRefused) as caught:
            evaluate_sync(str(problem_set), config, tmp_path / "run", simulator=simulator)
    assert SECRET not in str(caught.value)
    assert not server.requests


def test_total_budget_and_cancelling_stop_resumably(
    simulator: Any, problem_set: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with ScriptedServer(model_for(problem_set, right_first=1.0)) as server:
        config = options(server, samples=4, parallel_samples=1, total_budget={"calls": 3})
        first = evaluate_sync(str(problem_set), config, out, simulator=simulator)
        assert (first.complete, first.samples, first.missing) == (False, 3, 5)
        assert "calls: 3 of 3" in first.stopped
        again = evaluate_sync(str(problem_set), config, out, simulator=simulator)
        assert again.samples == 3, "what was spent before counts"

        async def cancelled() -> Any:
            cancel = asyncio.Event()
            return await evaluate(
                str(problem_set),
                options(server, samples=4, parallel_samples=1),
                out,
                simulator=simulator,
                cancel=cancel,
                progress=lambda done, total, text: cancel.set() if done == 5 else None,
            )

        middle = asyncio.run(cancelled())
        assert (middle.stopped, middle.complete) == ("cancelled", False)
        assert 5 <= middle.samples < 8
        free = options(server, samples=4)
        assert evaluate_sync(str(problem_set), free, out, simulator=simulator).complete
        assert len(server.requests) == 8


def test_full_disk_stops_with_one_line_and_resumes(
    simulator: Any, problem_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    real = os.pwrite
    full = True

    def pwrite(file: int, data: bytes, at: int) -> int:
        if full and at > 20_000:
            raise OSError(28, "No space left on device")
        return real(file, data, at)

    monkeypatch.setattr("planish_promptv.jsonl.os.pwrite", pwrite)
    with ScriptedServer(model_for(problem_set, right_first=0.0, sees=0.3)) as server:
        config = options(server, parallel_samples=1)
        with pytest.raises(RunError, match="the disk is full; what was finished is kept"):
            evaluate_sync(str(problem_set), config, out, simulator=simulator)
        paid = len(recorded(out / "calls.jsonl"))
        assert paid >= len(server.requests) - 1, "only the reply that did not fit is lost"
        full = False
        assert evaluate_sync(str(problem_set), config, out, simulator=simulator).complete
        assert len(server.requests) <= len(recorded(out / "calls.jsonl")) + 1


def test_no_key_is_written_anywhere(
    simulator: Any, problem_set: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The server echoes the key in errors and in replies; nothing that is written or printed may hold it."""
    monkeypatch.setenv("PROMPTV_TEST_KEY", SECRET)
    inner = model_for(problem_set, right_first=0.0, sees=0.5)

    class Echoing:
        turn = 0

        def answer(self, request: dict[str, Any]) -> Scripted:
            self.turn += 1
            if self.turn % 4 == 0:
                return Scripted(status=500, text=f"bad day for Bearer {SECRET}")
            found = inner.answer(request)
            return Scripted(text=f"{found.content}\nYour key is {SECRET}.")

    out = tmp_path / "run"
    with ScriptedServer(Echoing(), key=Key("X", SECRET)) as server:
        arguments = ["--base-url", server.url, "--model", "m", "--key-env", "PROMPTV_TEST_KEY", "-n", "1"]
        extra = ["--set", "bench_source=provided", "--set", "retry_base=0", "--set", "max_restarts=0"]
        process = command(
            "eval", problem_set, "--out", out, *arguments, *extra, "--yes", PROMPTV_TEST_KEY=SECRET
        )
        printed = "".join(process.communicate(timeout=300))
        assert process.returncode == 0, printed
        failing = command(
            "eval", problem_set, "--out", tmp_path / "other", *arguments, "--yes", "--set", "tries=1", *extra,
            PROMPTV_TEST_KEY=SECRET + "-wrong",
        )  # fmt: skip
        printed += "".join(failing.communicate(timeout=300))
        assert failing.returncode == 2
    assert "refuses the key in $PROMPTV_TEST_KEY" in printed
    assert f"planish verilog resume {tmp_path / 'other'}" in printed
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "report.html" for path in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in printed


def test_report_is_one_file_with_rounds_and_a_failing_waveform(
    simulator: Any, problem_set: Path, tmp_path: Path
) -> None:
    from planish_promptv.evaluate.report import write_report

    roots = []
    for mode in ("single_agent", "promptv", "coopetitive"):
        out = tmp_path / mode
        with ScriptedServer(model_for(problem_set, right_first=0.3, sees=0.2, overrules=0.1)) as server:
            evaluate_sync(
                str(problem_set), options(server, mode=mode, max_restarts=0), out, simulator=simulator
            )
        roots.append(out)
    page = write_report(roots).read_text()
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=", page)
    for text in (
        "functional pass@1",
        "coopetitive",
        "review recall",
        "retained error",
        "repaired code",
        "q_dut",
        "svg",
    ):
        assert text in page, text
    assert page.count('class="wave"') >= 1


def test_report_escapes_what_models_and_tasks_say(simulator: Any, tmp_path: Path) -> None:
    from planish_promptv.evaluate.report import write_report

    task = designs.TASK.model_copy(update={"id": "<img src=x onerror=alert(1)>"})
    code = designs.WRONG_STEP + "// <script>alert(1)</script>\n"
    script = designs.script(coder=code, teacher=designs.advice())
    with ScriptedServer(Script.model_validate(script)) as server:
        config = options(server, samples=1, model="<b>m</b>")
        evaluate_sync("<i>x</i>", config, tmp_path / "run", tasks=[task], simulator=simulator)
    page = write_report([tmp_path / "run"]).read_text()
    for text in ("<img", "<script", "<b>m", "<i>x"):
        assert text not in page
    assert list((tmp_path / "run" / "traces").iterdir()), "and the id makes no path"


def test_generated_bench_is_scored_by_the_benchmark(simulator: Any, tmp_path: Path) -> None:
    """A loop that believes its own wrong bench succeeds for itself and fails the benchmark."""
    script = designs.script(coder=designs.WRONG_STEP, bencher=designs.bench().replace("4'd1", "4'd2"))
    with ScriptedServer(Script.model_validate(script)) as server:
        report = evaluate_sync(
            "x",
            options(server, bench_source="generated", samples=1),
            tmp_path / "run",
            tasks=[designs.TASK],
            simulator=simulator,
        )
    assert (report.accepted, report.passed) == (1, 0)
    assert report.syntax[0].value == 1.0
    assert report.functional[0].value == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "BENCH", "--model", "m"], "base_url: give the endpoint"),
        (["eval", "BENCH", "--base-url", "http://localhost:1/v1"], "none for the role 'coder'"),
        (["eval", "BENCH", "--mode", "best"], "mode = 'best'"),
        (["eval", "BENCH", "-n", "3", "-k", "5"], "k = 5 with samples = 3"),
        (["eval", "BENCH", "--set", "max_round=2"], "unknown field 'max_round'"),
        (["eval", "nowhere", "--model", "m", "--base-url", "http://localhost:1/v1"], "nowhere"),
        (["eval", "BENCH", "--model", "m", "--base-url", "http://localhost:1/v1", "--task", "no"], "task 'no'"),
        (["eval", "BENCH", "--model", "m", "--base-url", "http://localhost:1/v1", "--set", "total_budget.cost=1"],
         "no price is known"),
        (["resume", "BENCH"], "holds no evaluation"),
        (["replay", "BENCH"], "holds no evaluation"),
        (["report", "BENCH"], "holds no evaluation"),
        (["gen", "missing.txt"], "no such file"),
        (["serve-scripted"], "give a script, or --mutating"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments: list[str], message: str, problem_set: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from planish.errors import PlanishError
    from planish_promptv.cli import app

    given = [str(problem_set) if a == "BENCH" else a for a in arguments]
    if given[0] in ("eval", "gen"):
        given += ["--out", str(tmp_path / "out")]
    outcome = CliRunner().invoke(app, given)
    assert isinstance(outcome.exception, PlanishError), outcome.exception
    assert message in str(outcome.exception)
    assert "\n" not in str(outcome.exception)
    assert not (tmp_path / "out").exists()


def test_estimate_is_told_before_anything_is_asked(problem_set: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from planish_promptv.cli import app

    prices = tmp_path / "prices.toml"
    prices.write_text("[m]\nprompt = 2.0\ncompletion = 8.0\n")
    common = [
        "eval",
        str(problem_set),
        "--base-url",
        "http://localhost:1/v1",
        "--model",
        "m",
        "-n",
        "20",
        "--estimate",
    ]
    outcome = CliRunner().invoke(app, [*common, "--json", "--set", f"prices={prices}"])
    found = json.loads(outcome.stdout)
    assert found["calls_per_sample"] == 33
    assert found["calls"] == [2 * 20 * 2, 2 * 20 * 33]
    least, most = found["cost"]
    assert least == pytest.approx((found["prompt_tokens"][0] * 2 + found["completion_tokens"][0] * 8) / 1e6)
    assert most > least > 0
    assert "at most 33 calls a sample" in CliRunner().invoke(app, common).stdout


def test_the_rehearsal_of_the_readme(simulator: Any, tmp_path: Path) -> None:
    """A description file, a served script with a rate limit, two wrong designs and the right one."""
    examples = Path(__file__).parents[1] / "examples"
    server = command("serve-scripted", examples / "replies.yaml", "--port", 0)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        process = command(
            "gen", examples / "counter.txt", "--header", examples / "header.v", "--out", tmp_path / "out",
            "--base-url", url, "--model", "scripted", "--json",
        )  # fmt: skip
        output, errors = process.communicate(timeout=300)
    finally:
        server.terminate()
        server.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert server.returncode == 0, "it ends when it is told to"
    found = json.loads(output)
    assert (found["state"], found["calls"]) == ("success", 6)
    assert [step["status"] for step in found["steps"]] == ["syntax_error", "fail", "pass"]
    assert (tmp_path / "out" / "counter.sv").read_text() == designs.GOOD
    assert (tmp_path / "out" / "counter_tb.sv").is_file()


def test_two_tasks_with_one_id_and_a_provided_bench_that_is_not_there(simulator: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two tasks with one id"):
        evaluate_sync("x", EvaluationConfig(), tmp_path / "run", tasks=[designs.TASK, designs.TASK])
    bare = designs.TASK.model_copy(update={"provided_testbench": None})
    config = GenerationConfig(bench_source="provided", provider="scripted")
    with pytest.raises(Exception, match="brings no testbench"):
        generate_sync(bare, config, simulator=simulator)


def test_a_folder_is_worked_in_by_one_process(problem_set: Path, tmp_path: Path) -> None:
    from planish_promptv.evaluate.folder import RunFolder

    folder = RunFolder(tmp_path / "run")
    with folder.locked(), pytest.raises(RunError, match="another process"), folder.locked():
        pass
    JsonLines(tmp_path / "file").close()
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder(tmp_path / "file").locked().__enter__()
