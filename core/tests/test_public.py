"""What `import planish` offers, and what it leaves alone."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import planish


def test_every_public_name_resolves() -> None:
    found: dict[str, object] = {}
    exec("from planish import *", found)
    assert set(planish.__all__) <= set(found)
    assert len(set(planish.__all__)) == len(planish.__all__)


def test_lazy_names_and_all_agree() -> None:
    assert set(planish._HOME) | {"__version__"} == set(planish.__all__)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'planish' has no attribute 'Pipelin'"):
        planish.Pipelin  # noqa: B018


def test_version_is_the_distribution_s() -> None:
    assert planish.__version__ == version("planish")


def test_light_imports(site: object) -> None:
    """Importing planish, its public names and listing plugins bring in no heavy library."""
    code = (
        "import sys, json, contextlib, io\n"
        "from planish import *\n"
        "sys.argv = ['planish', 'plugins', '--json']\n"
        "from planish.cli.app import main\n"
        "out = io.StringIO()\n"
        "with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit): main()\n"
        "names = [p['distribution'] for p in json.loads(out.getvalue())['plugins']]\n"
        "print(json.dumps([names, sorted({m.split('.')[0] for m in sys.modules})]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(site), "PLANISH_PLUGINS": "fake"},
        capture_output=True,
        text=True,
        check=True,
    )
    listed, modules = json.loads(done.stdout)
    assert listed == ["planish", "planish-fake"]
    assert "planish_fake" in modules
    assert not {"torch", "transformers", "numpy", "safetensors", "onnxruntime"} & set(modules)
