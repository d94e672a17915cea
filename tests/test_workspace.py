"""The workspace names every distribution it holds, and each plugin is a house of its own."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))
FOLDERS = [ROOT / "core", ROOT / "sdk", *PLUGINS]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_distribution_is_listed(folder: Path) -> None:
    name = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["name"]
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    place = folder.relative_to(ROOT).as_posix()
    assert f"-e ./{place}\n" in (ROOT / "requirements.txt").read_text()
    assert f"-e ./{place}" in (ROOT / "requirements-latest.txt").read_text()
    assert f"{name} @ {{root:uri}}/{place}" in root["project"]["optional-dependencies"]["all"]
    assert root["tool"]["uv"]["sources"][name] == {"workspace": True}
    assert f"`{name}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("folder", PLUGINS, ids=lambda path: path.name)
def test_plugin_folder_is_complete(folder: Path) -> None:
    readme = (folder / "README.md").read_text()
    for heading in ("## Reproduced here", "## Not reproducible here", "## Different from"):
        assert heading in readme or heading.replace(" from", ", and why") in readme, heading
    assert (ROOT / "docs" / "plugins" / f"{folder.name}.md").is_file()
    assert (folder / "tests").is_dir()
    data = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert data["license"] == "Apache-2.0"
    assert data["entry-points"]["planish.plugins"] == {
        folder.name: f"planish_{folder.name.replace('-', '_')}"
    }
