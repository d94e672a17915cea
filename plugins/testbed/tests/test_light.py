from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("planish_testbed", "torch transformers numpy sklearn"),
        ("planish_testbed.corpus", "torch transformers numpy sklearn"),
        ("planish_testbed.lm", "torch transformers numpy sklearn"),
        ("planish_testbed.digits", "torch transformers sklearn"),
        ("planish_testbed.graph", "torch transformers sklearn"),
        ("planish_testbed.skeleton", "torch transformers sklearn"),
    ],
)
def test_import_is_light(module: str, heavy: str) -> None:
    program = f"import sys, {module}; print(sorted(set('{heavy}'.split()) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
