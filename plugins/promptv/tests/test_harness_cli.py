"""``planish verilog golden | mutants | doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from planish.errors import PlanishError
from planish_promptv.cli_harness import mount
from planish_promptv.harness import tools as module

app = typer.Typer()
mount(app)


@pytest.fixture
def small(verilog_data: Path, tmp_path: Path, iverilog: None) -> Path:
    """Three designs of RTLLM, one of which is known to fail."""
    import gzip

    with gzip.open(verilog_data / "rtllm_v2.jsonl.gz", "rt") as stream:
        lines = [line for line in stream if json.loads(line)["name"] in ("accu", "radix2_div", "edge_detect")]
    path = tmp_path / "small.jsonl"
    path.write_text("".join(lines))
    return path


def test_golden_json(small: Path) -> None:
    done = CliRunner().invoke(app, ["golden", str(small), "--json"])
    data = json.loads(done.stdout)
    assert done.exit_code == 0
    assert data["verdicts"] == {"fail": 1, "pass": 2}
    assert data["differ_from_record"] == []
    assert data["refused_by_guard"] == 0
    assert {row["id"]: row["verdict"] for row in data["tasks"]}["radix2_div"] == "fail"


def test_golden_with_errata_names_what_was_done(small: Path) -> None:
    done = CliRunner().invoke(app, ["golden", str(small), "--errata"])
    assert "excluded radix2_div: the reference fails its own bench" in done.stdout
    assert "patched edge_detect" in done.stdout
    assert "2 references" in done.stdout


def test_golden_fails_where_the_record_is_not_met(small: Path) -> None:
    text = small.read_text().replace('"golden_iverilog11": "fail"', '"golden_iverilog11": "pass"')
    text = text.replace('"golden_iverilog12": "fail"', '"golden_iverilog12": "pass"')
    small.write_text(text)
    done = CliRunner().invoke(app, ["golden", str(small), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["differ_from_record"] == ["radix2_div"]


def test_mutants_json(small: Path) -> None:
    arguments = ["mutants", str(small), "--limit", "2", "--cpu-seconds", "2", "--prove", "--json"]
    data = json.loads(CliRunner().invoke(app, arguments).stdout)
    assert data["mutants"] == 4
    assert 0 <= data["caught"] <= data["caught_or_proven_different"] <= 4


def test_doctor(simulator: object) -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"])
    data = json.loads(done.stdout)
    assert done.exit_code == 0
    assert data["works"] is True
    assert data["tier"] in ("bwrap", "unshare")
    assert "self-test" in CliRunner().invoke(app, ["doctor"]).stdout


def test_doctor_says_how_to_get_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "_versions", {})
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    for hint in (
        "apt-get install iverilog",
        "apt-get install bubblewrap",
        "apt-get install yosys",
        "no sandbox works",
    ):
        assert hint in done.stdout


def test_mistakes_are_one_line(small: Path) -> None:
    for arguments in (["golden", "nosuch"], ["golden", str(small), "--workers", "0"]):
        error = CliRunner().invoke(app, arguments).exception
        assert isinstance(error, PlanishError)
        assert "\n" not in str(error)
