"""The template: every kind renders whole, and what it renders installs and passes its own checks."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path
from string import Template
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import PlanishError
from planish.hooks import KIND_HOOKS
from planish_sdk.scaffold import create

SDK = Path(__file__).parents[1]
TEMPLATE = SDK / "src" / "planish_sdk" / "template"
KINDS = tuple(KIND_HOOKS)
CLI = "planish.cli.app"


@pytest.mark.parametrize("kind", KINDS)
def test_a_plugin_renders_whole(kind: str, tmp_path: Path) -> None:
    target = create("two-words", tmp_path, kind)
    assert target == tmp_path / "planish-two-words"
    assert [entry.name for entry in tmp_path.iterdir()] == ["planish-two-words"]
    written = {path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()}
    package = "src/planish_two_words"
    assert written == {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        *(f"{package}/{name}.py" for name in ("__init__", "config", "conformance", "method", "wiring")),
        f"{package}/py.typed",
        "tests/test_two_words.py",
    }
    for name in written:
        text = (target / name).read_text()
        assert "$" not in text, name
        if name.endswith(".py"):
            ast.parse(text)
    project = tomllib.loads((target / "pyproject.toml").read_text())["project"]
    assert project["name"] == "planish-two-words"
    assert project["entry-points"]["planish.plugins"] == {"two-words": "planish_two_words"}
    readme = (target / "README.md").read_text()
    for heading in ("## Reproduced here", "## Not reproducible here", "## Different from the paper"):
        assert heading in readme


def test_every_template_uses_known_words_only() -> None:
    known = {"name", "module", "title", "kind", "hook", "summary"}
    for path in TEMPLATE.rglob("*.tmpl"):
        assert set(Template(path.read_text()).get_identifiers()) <= known, path
    assert not [path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".tmpl"]


def test_a_prefix_is_not_doubled(tmp_path: Path) -> None:
    assert create("planish-mine", tmp_path, "pruner").name == "planish-mine"


_BAD = st.text(max_size=12).filter(lambda s: not s.replace("-", "a").isalnum() or s != s.lower() or "--" in s)


@given(_BAD)
@settings(max_examples=50)
def test_odd_names_are_refused(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("names")
    with pytest.raises(PlanishError, match=r"^name = ") as caught:
        create(name, folder, "pruner")
    assert "\n" not in str(caught.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "name", ["", "-x", "x-", "1x", "X", "x_y", "a--b", "../x", "x/y", "é", "x\n", "sdk", "planish-sdk"]
)
def test_bad_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match=r"^name = "):
        create(name, tmp_path, "pruner")
    assert not list(tmp_path.iterdir())


def test_bad_kinds_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanishError, match=r"kind = 'prune' is not one of pruner, optimizer"):
        create("mine", tmp_path, "prune")
    with pytest.raises(PlanishError, match="is no folder"):
        create("mine", tmp_path / "nowhere", "pruner")
    (tmp_path / "planish-mine").mkdir()
    with pytest.raises(PlanishError, match="exists already"):
        create("mine", tmp_path, "pruner")
    assert [entry.name for entry in tmp_path.iterdir()] == ["planish-mine"]
    assert not list((tmp_path / "planish-mine").iterdir())


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []
    original = Path.write_text

    def fail(path: Path, *args: object, **kwargs: object) -> int:
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(path)
        return original(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(PlanishError, match=r"cannot be written \(No space left on device\)$"):
        create("mine", tmp_path, "pruner")
    assert len(written) == 4
    assert not list(tmp_path.iterdir())


def _wheels(to: Path, *projects: Path) -> list[Path]:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", to, *projects], check=True)
    wheels = list(to.glob("*.whl"))
    assert len(wheels) == len(projects)
    return wheels


@pytest.mark.slow
def test_the_wheel_holds_template_and_kit(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    (wheel,) = _wheels(tmp_path, SDK)
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name.removeprefix("planish_sdk/template/") for name in names if "/template/" in name}
    assert packaged == {path.relative_to(TEMPLATE).as_posix() for path in TEMPLATE.rglob("*.tmpl")}
    assert {"planish_sdk/testing/suite.py", "planish_sdk/testing/server.py", "planish_sdk/py.typed"} <= set(
        names
    )


@dataclass(frozen=True)
class Fresh:
    """An environment that held nothing before one new plugin of each kind was built and installed into it."""

    folder: Path
    python: Path
    projects: dict[str, Path]

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"}
        whole = [self.python, "-m", *command]
        return subprocess.run(whole, capture_output=True, text=True, env=environment, cwd=self.folder)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("fresh")
    projects = {kind: create(f"new-{kind}", folder, kind) for kind in KINDS}
    wheels = _wheels(folder / "wheels", *projects.values())
    venv.create(folder / "environment", with_pip=False)
    python = folder / "environment" / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
    )
    # What this environment holds is there too, so that torch need not be installed again.
    borrowed = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(found.stdout.strip(), "borrowed.pth").write_text(borrowed)
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
    ]
    subprocess.run([*install, *wheels], check=True)
    return Fresh(folder, python, projects)


@pytest.mark.slow
def test_new_plugins_are_listed_and_checked(fresh: Fresh) -> None:
    listed = {p["distribution"]: p for p in json.loads(fresh.run(CLI, "plugins", "--json").stdout)["plugins"]}
    for project in fresh.projects.values():
        assert listed[project.name]["offers"]
        assert not listed[project.name]["broken"]
    done = fresh.run(CLI, "check", "planish-new-pruner", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["passed"]
    checks = {check["name"]: check["outcome"] for check in outcome["checks"]}
    assert checks["new-pruner: test_entry_module_is_light"] == "passed"
    assert sum(outcome == "passed" for outcome in checks.values()) >= 20


@pytest.fixture(scope="module")
def passed(fresh: Fresh) -> dict[str, set[str]]:
    """By kind, the tests that a new plugin brings and that pass, from one process that runs them all.

    The suite that ``planish check`` runs is among them.
    """
    report = fresh.folder / "report.xml"
    done = fresh.run("pytest", "-q", f"--junitxml={report}", *fresh.projects.values())
    assert done.returncode == 0, done.stdout
    names: dict[str, set[str]] = {kind: set() for kind in KINDS}
    for case in ElementTree.parse(report).iter("testcase"):
        if not len(case):  # no child tells of a failure, an error or a skip
            module, _, suite = case.attrib["classname"].partition(".Test")
            kind = module.rpartition("test_new_")[2]
            names[kind].add(f"{'suite: ' if suite else ''}{case.attrib['name']}")
    return names


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_plugin_passes_in_a_fresh_environment(kind: str, passed: dict[str, set[str]]) -> None:
    """Rendered, built, installed: its suite passes, and so do the tests of its own."""
    suite = {name for name in passed[kind] if name.startswith("suite: ")}
    assert "suite: test_entry_module_is_light" in suite
    assert len(suite) >= 20
    assert passed[kind] - suite
