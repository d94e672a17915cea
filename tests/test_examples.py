"""The examples run, each in a folder of its own; in one process, because imports would cost more than they do."""

from __future__ import annotations

import functools
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from planish import LanguageModelling, compare, runner
from planish.cli.app import main

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAMS = {"promptv_hardware": ("iverilog", "yosys", "bwrap")}

pytestmark = [pytest.mark.slow, pytest.mark.model]


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures over 16 windows and 5 rounds: here it matters that they are taken. The demo's and the stories' tests take
    them in full."""
    whole = LanguageModelling.evaluation_windows
    monkeypatch.setattr(
        LanguageModelling, "evaluation_windows", lambda task, tokenizer: whole(task, tokenizer)[:16]
    )
    monkeypatch.setattr(runner, "compare", functools.partial(compare.compare, rounds=5))


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_runs(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(script.read_text().splitlines()) <= 40
    if missing := [name for name in PROGRAMS.get(script.stem, ()) if not shutil.which(name)]:
        pytest.skip(f"needs the program {missing[0]}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "run")])
    runpy.run_path(str(script), run_name="__main__")
    assert "verdict" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


def test_recipe_example_runs_on_the_real_model(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (EXAMPLES / "stories260k.yaml").read_text().replace("../../shared", str(shared))
    (tmp_path / "stories.yaml").write_text(recipe)
    command = ["planish", "run", str(tmp_path / "stories.yaml"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "source, same backend" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
