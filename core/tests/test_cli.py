"""The command line, from its entry point: text and JSON of every command, exit codes, and mistakes in one line."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from planish import bench
from planish.cli import progress
from planish.events import Event

pytestmark = pytest.mark.usefixtures("few_rounds")
Cli = Callable[..., Any]


@pytest.fixture
def recipe(fake_source: str, tmp_path: Path) -> Path:
    path = tmp_path / "first.yaml"
    path.write_text(f"source: {fake_source}\nstages: [{{zero: {{sparsity: 0.5}}}}]\n")
    return path


@pytest.fixture
def finished(recipe: Path, tmp_path: Path, cli: Cli) -> Path:
    assert cli("run", recipe, "--out", tmp_path / "run").code == 0
    return tmp_path / "run"


def mistake(done: Any) -> str:
    """One line on standard error, nothing on standard output, exit code 2."""
    assert done.code == 2
    assert done.out == ""
    lines = done.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("planish: ")
    assert "Traceback" not in done.err
    return str(lines[0])


def test_version_and_help(cli: Cli) -> None:
    assert cli("--version").out == "planish 0.1.0\n"
    done = cli("--help")
    assert done.code == 0
    for command in (
        "plugins",
        "show",
        "run",
        "watch",
        "report",
        "bench",
        "doctor",
        "new",
        "check",
        "demo",
        "greet",
    ):
        assert command in done.out
    for command in ("run", "show", "bench"):
        assert "--json" in cli(command, "--help").out


@pytest.mark.parametrize("arguments", [("nonsense",), ("run",), ("plugins", "--jsn"), ("greet", "nonsense")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], cli: Cli) -> None:
    done = cli(*arguments)
    assert done.code == 2
    assert "Traceback" not in done.err


class TestPlugins:
    def test_text(self, cli: Cli) -> None:
        out = cli("plugins").out
        assert "planish 0.1.0\n" in out
        assert "planish-fake 1.2\n" in out
        assert "pruner     zero               sets the smallest weights" in out
        assert "benchmark  duel" in out
        assert "BROKEN" not in out

    def test_json(self, cli: Cli) -> None:
        fake = json.loads(cli("plugins", "--json").out)["plugins"][1]
        assert (fake["distribution"], fake["version"], fake["broken"]) == ("planish-fake", "1.2", None)
        assert {"name": "pack", "kind": "backend", "summary": "another engine"} in fake["offers"]
        assert "stage_started" in fake["hooks"]

    def test_broken(self, cli: Cli, distribution: Callable[..., str]) -> None:
        distribution("planish-broken", "raise RuntimeError('first line\\nsecond')\n")
        assert "planish-broken 1.0  BROKEN: RuntimeError: first line second\n" in cli("plugins").out
        listed = json.loads(cli("plugins", "--json").out)["plugins"]
        assert [p["broken"] for p in listed] == [None, "RuntimeError: first line second", None]


class TestShow:
    def test_a_method(self, cli: Cli) -> None:
        lines = cli("show", "zero").out.splitlines()
        assert lines[0] == "zero (pruner, planish-fake 1.2)"
        assert "from   torch -> the same kind" in lines
        assert "paper  none" in lines
        options = {line.split()[0]: line for line in lines[lines.index("options") + 1 :]}
        assert "number >= 0 < 1" in options["sparsity"]
        assert "0.5" in options["sparsity"]
        assert "all|first" in options["layers"]
        assert "string or null" in options["label"]
        assert options["names"].endswith("a list")

    def test_needs_and_what_is_missing(self, cli: Cli) -> None:
        assert "needs  calibration" in cli("show", "jitter").out
        assert "missing: pip install no-such-module" in cli("show", "absent").out
        assert "from   torch -> packed" in cli("show", "pack").out

    def test_a_method_as_json(self, cli: Cli) -> None:
        data = json.loads(cli("show", "planish-fake:zero", "--json").out)
        assert data["options"]["properties"]["sparsity"]["exclusiveMaximum"] == 1
        assert (data["kind"], data["version"], data["missing"]) == ("pruner", "1.2", [])

    @pytest.mark.parametrize("text", ["{", '{"method": "zero"}', "[]"])
    def test_a_damaged_record_is_one_line(self, text: str, cli: Cli, finished: Path, tmp_path: Path) -> None:
        copy = tmp_path / "damaged"
        shutil.copytree(finished, copy)
        (record,) = copy.glob("01-*/record.json")
        record.write_text(text)
        assert "record.json: damaged" in mistake(cli("show", copy))

    def test_a_run(self, cli: Cli, finished: Path) -> None:
        out = cli("show", finished).out
        assert out.startswith("fake:mlp  seed 0  task classification\n")
        assert "planish-fake:zero 1.2" in out
        assert "accuracy" in out
        assert "masked only" in out or "faster" in out
        assert "    zeros: 162\n" in out
        data = json.loads(cli("show", finished, "--json").out)
        assert [r["label"] for r in data["rows"]] == ["source", "result"]
        assert data["records"][0]["facts"] == {"zeros": 162}
        assert data["run"]["stages"][0]["zero"]["sparsity"] == 0.5

    def test_a_folder_that_bears_a_method_s_name(
        self, cli: Cli, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "zero").mkdir()
        assert cli("show", "zero").out.startswith("zero (pruner")
        (tmp_path / "zero").rmdir()
        finished.rename(tmp_path / "zero")
        assert cli("show", "zero").out.startswith("fake:mlp  seed 0")

    @pytest.mark.parametrize("name", ["run.json", "measurements.json"])
    @pytest.mark.parametrize("text", ["", "[]", '{"key": "", "rows": [{}]}'])
    def test_a_damaged_note_is_one_line(self, name: str, text: str, cli: Cli, finished: Path) -> None:
        (finished / name).write_text(text)
        for command in ("show", "report"):
            assert f"{name}: damaged" in mistake(cli(command, finished))

    def test_mistakes(self, cli: Cli, tmp_path: Path) -> None:
        assert "unknown method 'zreo'; did you mean 'zero'?" in mistake(cli("show", "zreo"))
        assert "no run.json; this is not a run folder" in mistake(cli("show", tmp_path))


class TestRun:
    def test_text(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        done = cli("run", recipe, "--out", tmp_path / "run")
        assert done.code == 0
        assert "verdict" in done.out.splitlines()[0]
        assert f"report  {tmp_path}/run/report.html" in done.out
        assert (tmp_path / "run/report.html").is_file()
        for told in ("01 zero started", "1/3 layer 0", "01 zero done", "measure started"):
            assert told in done.err

    def test_json_is_all_of_standard_output(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        first = json.loads(cli("run", recipe, "--out", tmp_path / "run", "--json", "--measure", "none").out)
        again = cli("run", recipe, "--out", tmp_path / "run", "--json", "--measure", "none")
        assert json.loads(again.out) == first
        assert first["rows"] == []
        assert "already done" in again.err

    def test_the_folder_is_named_after_the_recipe(
        self, recipe: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert cli("run", recipe, "--measure", "none").code == 0
        assert (tmp_path / "runs/first/run.json").is_file()

    def test_source_on_the_command_line(
        self, recipe: Path, tmp_path: Path, cli: Cli, fake_model: Path
    ) -> None:
        recipe.write_text("stages: [zero]\n")
        assert f"recipe {recipe}: no source; add one, or give --source" in mistake(cli("run", recipe))
        done = cli("run", recipe, "--source", fake_model, "--out", tmp_path / "run", "--json")
        assert json.loads(done.out)["source"] == str(fake_model)

    def test_check(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        done = cli("run", recipe, "--check", "--out", tmp_path / "run")
        assert (done.code, done.out) == (0, "ready to run\n")
        assert json.loads(cli("run", recipe, "--check", "--json").out) == {"problems": []}
        recipe.write_text("source: fake:mlp\nstages: [{zero: {sparsity: 2}}, zreo]\n")
        done = cli("run", recipe, "--check", "--out", tmp_path / "run")
        assert done.code == 2
        assert [line.split()[0] for line in done.out.splitlines()] == ["zero:", "unknown"]
        assert len(json.loads(cli("run", recipe, "--check", "--json").out)["problems"]) == 2
        assert not (tmp_path / "run").exists()

    def test_check_looks_at_the_settings_too(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        done = cli("run", recipe, "--check", "--device", "gpu", "--measure", "all")
        assert done.code == 2
        assert [line.split()[0] for line in done.out.splitlines()] == ["measure", "device"]

    def test_what_a_method_prints_is_no_result(
        self, recipe: Path, tmp_path: Path, cli: Cli, distribution: Callable[..., str]
    ) -> None:
        module = distribution("planish-loud", "")
        (tmp_path / "site" / f"{module}.py").write_text(
            "from planish import Method, hookimpl\n"
            "@hookimpl\ndef pruners():\n"
            "    return [Method('loud', 'pruner', 's', config='planish_fake.config:NoConfig', "
            f"target='{module}:apply')]\n"
            "def apply(model, config, context):\n    print('look at me')\n    return model\n"
        )
        recipe.write_text("source: fake:mlp\nstages: [loud]\n")
        done = cli("run", recipe, "--out", tmp_path / "run", "--json", "--measure", "none")
        assert json.loads(done.out)["rows"] == []
        assert "look at me\n" in done.err

    @pytest.mark.parametrize("name", ["a b", "Größe 模型 🔨", "[bold]%s{x}"])
    def test_paths_with_any_name(self, name: str, fake_source: str, tmp_path: Path, cli: Cli) -> None:
        folder = tmp_path / name
        shutil.copytree(os.environ["FAKE_MODEL"], folder / "model")
        recipe, out = folder / f"{name}.yaml", folder / "run"
        recipe.write_text("source: model\nstages: [{zero: {label: ü}}]\n", encoding="utf-8")
        first = cli("run", recipe, "--out", out, "--measure", "none", "--json")
        assert (first.code, json.loads(first.out)["source"]) == (0, str(folder / "model"))
        again = cli("run", recipe, "--out", out, "--measure", "none", "--json")
        assert (again.out, "already done" in again.err) == (first.out, True)
        for command in ("show", "report", "watch"):
            assert cli(command, out).code == 0

    def test_names_that_are_no_text_are_refused(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        folder = tmp_path / os.fsdecode(b"latin \xe9")
        assert "the name is not UTF-8" in mistake(cli("run", recipe, "--out", folder))
        assert "the name is not UTF-8" in mistake(cli("run", recipe, "--source", folder))
        assert not folder.exists()

    def test_a_name_too_long_for_the_file_system(self, recipe: Path, cli: Cli) -> None:
        name = "a" * 300
        for command in (("show", name), ("watch", name), ("report", name), ("run", recipe, "--out", name)):
            assert "File name too long" in mistake(cli(*command))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("source: fake:mlp\nstages: [zreo]", "unknown method 'zreo'"),
            ("source: fake:mlp\nstages: [{zero: {sparsty: 1}}]", "unknown field 'sparsty'"),
            (
                "source: fake:mlp\nstages: [{zero: {sparsity: 1}}]",
                "sparsity = 1: input should be less than 1",
            ),
            ("source: fake:mlp\nstages: [absent]", "pip install no-such-module"),
            ("source: fake:none\nstages: [zero]", "no such folder, and no installed plugin knows it"),
            ("source: fake:mlp\nstages: [pack, zero]", "is given 'packed'"),
            ("stages: &a [*a]", "aliases are not allowed"),
            ("stages: [", "not YAML"),
        ],
    )
    def test_mistakes(self, text: str, message: str, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        recipe.write_text(text)
        assert message in mistake(cli("run", recipe, "--out", tmp_path / "run"))
        assert not (tmp_path / "run").exists()

    def test_mistaken_arguments(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        out = tmp_path / "run"
        assert "none.yaml" in mistake(cli("run", tmp_path / "none.yaml"))
        assert "measure = 'all' is not one of" in mistake(
            cli("run", recipe, "--out", out, "--measure", "all")
        )
        assert "device = 'gpu'" in mistake(cli("run", recipe, "--out", out, "--device", "gpu"))
        assert not out.exists()

    def test_a_bug_in_a_method_is_no_user_mistake(self, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        recipe.write_text("source: fake:mlp\nstages: [fail]\n")
        with pytest.raises(ZeroDivisionError):
            cli("run", recipe, "--out", tmp_path / "run")


class TestWatch:
    def test_a_finished_run(self, finished: Path, cli: Cli) -> None:
        done = cli("watch", finished)
        assert done.code == 0
        assert len(done.out.splitlines()) == len((finished / "events.jsonl").read_text().splitlines())
        assert "01 zero started" in done.out.splitlines()[0]
        events = [
            json.loads(line) for line in cli("watch", finished, "--json", "--no-follow").out.splitlines()
        ]
        assert events[-1]["type"] == "stage_finished"

    def test_a_run_in_progress_is_followed_until_it_ends(self, finished: Path) -> None:
        """Another process holds the lock and writes one more event."""
        from planish.cli.watching import follow

        code = (
            "import fcntl, os, sys\n"
            "fcntl.flock(os.open(sys.argv[1] + '/.lock', os.O_RDWR), fcntl.LOCK_EX)\n"
            "print('held', flush=True)\nsys.stdin.readline()\n"
            "with open(sys.argv[1] + '/events.jsonl', 'a') as stream:\n"
            '    stream.write(\'{"type": "note", "stage": "late"}\\n\')\n'
        )
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(finished)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert writer.stdout
        assert writer.stdin
        try:
            assert writer.stdout.readline() == b"held\n"
            seen = []
            for event in follow(finished, wait=True, interval=0.01):
                seen.append(event)
                if event == seen[0]:
                    writer.stdin.write(b"\n")
                    writer.stdin.flush()
            assert seen[-1].stage == "late"
        finally:
            writer.kill()
            writer.communicate()

    @pytest.mark.parametrize("text", ["{", "5", '{"type": "note", "stag": "x"}'])
    def test_damaged_events_are_named(self, text: str, finished: Path, cli: Cli) -> None:
        (finished / "events.jsonl").write_text(text + "\n")
        assert "events.jsonl: line 1 is damaged" in mistake(cli("watch", finished))

    def test_no_run(self, tmp_path: Path, cli: Cli) -> None:
        assert "no events.jsonl; this is not a run folder" in mistake(cli("watch", tmp_path))


class TestReport:
    def test_one_folder(self, finished: Path, cli: Cli) -> None:
        (finished / "report.html").unlink()
        done = cli("report", finished)
        assert done.out.strip() == str(finished / "report.html")
        page = (finished / "report.html").read_text()
        assert "fake:mlp" in page
        assert "zero: zeros written" in page
        assert ">162 zeros<" in page

    def test_two_folders(self, finished: Path, recipe: Path, tmp_path: Path, cli: Cli) -> None:
        recipe.write_text("source: fake:mlp\nstages: [{zero: {sparsity: 0.75}}, pack]\n")
        assert cli("run", recipe, "--out", tmp_path / "other").code == 0
        done = cli("report", finished, tmp_path / "other", "--out", tmp_path / "both.html", "--json")
        assert json.loads(done.out) == {"report": str(tmp_path / "both.html")}
        page = (tmp_path / "both.html").read_text()
        for label in ("run: source", "run: result", "other: source, same backend", "other: result"):
            assert f"<td>{label}</td>" in page
        assert page.count("Record of") == 4

    def test_mistakes(self, finished: Path, tmp_path: Path, cli: Cli) -> None:
        assert "this is not a run folder" in mistake(cli("report", tmp_path))
        assert "cannot be written (No such file" in mistake(
            cli("report", finished, "--out", tmp_path / "no/r.html")
        )
        assert "cannot be written (Is a directory" in mistake(cli("report", finished, "--out", tmp_path))
        assert not list(tmp_path.rglob("*.part"))


class TestBench:
    def test_list(self, cli: Cli) -> None:
        assert cli("bench").out.split() == ["duel", "planish-fake", "one", "figure", "against", "another"]
        assert json.loads(cli("bench", "--json").out)["benchmarks"][0]["name"] == "duel"

    def test_none_installed(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PLANISH_PLUGINS", "")
        assert cli("bench").out == "no benchmark is installed\n"

    def test_text(self, cli: Cli) -> None:
        done = cli("bench", "duel")
        lines = done.out.splitlines()
        assert lines[0].split() == ["metric", "ours", "peer", "theirs", "ratio", "bar", "holds", "device"]
        assert lines[1].split("  ")[0] == "latency"
        assert "2 ± 0.5 ms" in lines[1]
        assert "ratio <= 0.6" in lines[1]
        assert lines[1].split()[-2:] == ["yes", "CPU"]
        assert lines[2].split()[-2:] == ["NO", "CPU"]
        assert lines[3].split()[-3:] == ["-", "-", "CPU"]
        assert "latency: 2 ms" in done.err

    def test_json(self, cli: Cli) -> None:
        data = json.loads(cli("bench", "duel", "--quick", "--json").out)
        assert data["quick"] is True
        assert [r["holds"] for r in data["rows"]] == [True, False, None]
        assert [r["ratio"] for r in data["rows"]] == [0.5, 0.8, 1.0]
        assert data["rows"][0]["command"] == "bench duel quick=True"

    def test_json_has_no_nan(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        row = bench.Row("errors", 1.0, "", "peer", 0.0, None, "CPU", "bench duel")
        monkeypatch.setattr(bench, "run", lambda name, quick: [row])
        data = json.loads(cli("bench", "duel", "--json").out, parse_constant=pytest.fail)
        assert data["rows"][0]["ratio"] is None
        assert " nan " in cli("bench", "duel").out

    def test_unknown(self, cli: Cli) -> None:
        assert "unknown benchmark 'dule'; did you mean 'duel'?" in mistake(cli("bench", "dule"))

    @pytest.mark.parametrize(
        ("value", "peer", "bar", "holds"),
        [
            (2, 1, (">=", 2.0), True),
            (2, 1, ("<=", 1.9), False),
            (1, 1, None, None),
            (1, 0, (">=", 1.0), False),
        ],
    )
    def test_bars(self, value: float, peer: float, bar: tuple[str, float] | None, holds: bool | None) -> None:
        assert bench.Row("m", value, "s", "peer", peer, bar, "CPU", "c").holds is holds


class TestDoctor:
    def test_healthy(self, cli: Cli) -> None:
        done = cli("doctor")
        assert done.code == 0
        assert "planish 0.1.0, planish-fake 1.2" in done.out
        assert "optional   absent needs planish_no_such_module: pip install no-such-module" in done.out
        data = json.loads(cli("doctor", "--json").out)
        assert data["problems"] == []
        assert data["memory_bytes"] > 1 << 28
        assert "torch" in data["libraries"]

    def test_a_broken_plugin_is_a_problem(self, cli: Cli, distribution: Callable[..., str]) -> None:
        distribution("planish-broken", "import planish_no_such_module\n")
        done = cli("doctor")
        assert done.code == 1
        assert "PROBLEM    plugin planish-broken 1.0 is broken: ModuleNotFoundError" in done.out

    def test_without_torch_and_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from planish.cli import diagnosis

        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        monkeypatch.setattr(Path, "is_file", lambda self: False)
        assert diagnosis._gpus() == []
        assert diagnosis._memory() == 0
        assert "memory     unknown" in diagnosis.text({**diagnosis.diagnose()})


@pytest.mark.parametrize("command", [("new", "my-pruner"), ("check", "planish-fake")])
def test_author_commands_without_the_sdk(
    command: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] == "planish_sdk"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "planish_sdk", None)
    assert f"'planish {command[0]}' needs the SDK: pip install 'planish-sdk[testing]'" in mistake(
        cli(*command)
    )


class FakeSdk:
    """Stands where the SDK's two entry points are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, passed: bool) -> None:
        from types import ModuleType

        names = ("planish_sdk", "planish_sdk.scaffold", "planish_sdk.testing", "planish_sdk.testing.command")
        modules: dict[str, Any] = {name: ModuleType(name) for name in names}
        modules["planish_sdk.scaffold"].create = lambda name, folder, kind: folder / f"{kind}-{name}"
        modules["planish_sdk.testing.command"].check_package = lambda package, quiet: {
            "package": package,
            "quiet": quiet,
            "passed": passed,
        }
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("passed", [True, False])
def test_author_commands_with_an_sdk(passed: bool, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSdk(monkeypatch, passed)
    assert json.loads(cli("new", "x", "--kind", "backend", "--folder", "f", "--json").out) == {
        "folder": "f/backend-x"
    }
    assert "pip install -e f/pruner-x && planish check pruner-x" in cli("new", "x", "--folder", "f").out
    assert "pip install -e 'a b/pruner-x' && " in cli("new", "x", "--folder", "a b").out
    assert cli("check", "planish-fake").code == int(not passed)
    done = cli("check", "planish-fake", "--json")
    assert json.loads(done.out) == {"package": "planish-fake", "quiet": True, "passed": passed}


class TestPluginGroup:
    def test_it_is_called(self, cli: Cli) -> None:
        assert cli("greet", "hello", "you") == (0, "hello you\n", "")
        assert "wave" in cli("greet", "--help").out

    def test_it_is_imported_only_when_called(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delitem(sys.modules, "planish_fake.greeting", raising=False)
        assert "says hello" in cli("--help").out
        assert "planish_fake.greeting" not in sys.modules
        cli("greet", "wave")
        assert "planish_fake.greeting" in sys.modules

    def test_two_plugins_with_one_group(self, cli: Cli, distribution: Callable[..., str]) -> None:
        distribution(
            "planish-other",
            "from planish import Command, hookimpl\n"
            "@hookimpl\ndef commands():\n"
            "    return [Command('greet', 'planish_fake.greeting:app', 'again'), Command('run', 'm:o', 'mine'),\n"
            "            Command('gone', 'no_such_module:app'), Command('odd', 'json:dumps')]\n",
        )
        text = mistake(cli("greet", "hello", "you"))
        assert "say planish-fake:greet or planish-other:greet" in text
        assert cli("planish-other:greet", "hello", "you").out == "hello you\n"
        assert "A recipe file" in cli("run", "--help").out
        listed = cli("--help").out
        assert all(
            name in listed for name in ("planish-fake:greet", "planish-other:greet", "planish-other:run")
        )
        assert "module 'no_such_module' cannot be imported" in mistake(cli("gone", "x"))
        assert "'json:dumps' is no typer application" in mistake(cli("odd", "x"))


def test_a_reader_that_goes_away_is_no_error(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(typer, "echo", closed)
    assert cli("plugins").code == 0


class TestProgress:
    def test_lines(self) -> None:
        event = Event("stage_progress", "01 zero", 2, 3, "layer 1", time.time())
        assert progress.line(event).split(maxsplit=1)[1] == "01 zero 2/3 layer 1"
        assert progress.line(Event("stage_failed", "01 zero", text="why")).endswith("01 zero failed why")

    def test_a_live_bar_takes_every_event_and_any_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Terminal(io.StringIO):
            def isatty(self) -> bool:
                return True

        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        text = "[/bold] ValueError: expected [int]"
        with progress.progress() as listen:
            listen(Event("stage_started", "01 [x]"))
            listen(Event("stage_progress", "01 [x]", 1, 2, text))
            listen(Event("stage_finished", "01 [x]"))
            listen(Event("stage_reused", "02 y"))
            listen(Event("stage_failed", "03 z", text=text))
            listen(Event("note", "03 z", text=text))
        assert text in stream.getvalue()
        assert "01 [x]" in stream.getvalue()


def test_as_a_module_in_a_process_of_its_own(site: Path) -> None:
    """The real thing once: exit code and streams of a mistake."""
    done = subprocess.run(
        [sys.executable, "-m", "planish.cli.app", "show", "zreo"],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("planish: unknown method 'zreo'; did you mean 'zero'?")
    assert len(done.stderr.splitlines()) == 1
