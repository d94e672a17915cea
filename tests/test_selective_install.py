"""Each part works without the others."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.parent.name for path in ROOT.glob("plugins/*/pyproject.toml"))


def without(*modules: str, call: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process in which ``modules`` cannot be imported."""
    program = textwrap.dedent(f"""
        import sys
        hidden = {modules!r}
        class Hide:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] in hidden:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Hide())
        sys.argv = ["planish", *{call.split()!r}]
        from planish.cli.app import main
        main()
    """)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("call", ["plugins", "plugins --json", "show ace", "bench", "--version", "--help"])
def test_listing_needs_no_torch(call: str) -> None:
    done = without("torch", "transformers", "numpy", "onnx", "onnxruntime", call=call)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_core_alone_names_what_is_missing(planish: Callable[..., Any]) -> None:
    listed = json.loads(planish("plugins", "--json", PLANISH_PLUGINS="").stdout)["plugins"]
    assert [plugin["distribution"] for plugin in listed] == ["planish"]
    done = planish("demo", PLANISH_PLUGINS="")
    assert done.returncode == 2
    assert done.stderr.strip() == "planish: the demo needs the method 'ace': pip install planish-ace"


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_loads_alone(planish: Callable[..., Any], name: str) -> None:
    done = planish("plugins", "--json", PLANISH_PLUGINS=name)
    (plugin,) = [p for p in json.loads(done.stdout)["plugins"] if p["distribution"] != "planish"]
    assert plugin["name"] == name
    assert plugin["offers"]
    assert not plugin["broken"]


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_imports_at_most_one_other_and_declares_it(name: str) -> None:
    folder = ROOT / "plugins" / name
    source = "\n".join(path.read_text() for path in (folder / "src").rglob("*.py"))
    imported = set(re.findall(r"^\s*(?:from|import) (planish_\w+)", source, flags=re.MULTILINE))
    others = imported - {module_of(name), "planish_sdk"}
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *chain(*project.get("optional-dependencies", {}).values())]
    assert len(others) <= 1
    assert {other.replace("_", "-") for other in others} <= {re.split(r"[^\w-]", d)[0] for d in declared}


def module_of(name: str) -> str:
    return f"planish_{name.replace('-', '_')}"
