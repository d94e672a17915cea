"""The Triton kernels, in a process of its own: Triton reads TRITON_INTERPRET when it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_kernels_agree_with_their_references_in_the_interpreter() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    lines = run(str(HERE / "interpreted.py"), TRITON_INTERPRET="1").splitlines()
    assert lines == ["top-k: 30 shapes", "forward and backward: 6 cases", "choice and compilation"]


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from planish_maxk import kernels

def build(kernel, signature, constants):
    names = kernel.arg_names
    places = {(names.index(name),): value for name, value in constants.items()}
    kinds = {**signature, **dict.fromkeys(constants, "constexpr")}
    made = triton.compile(ASTSource(fn=kernel, signature=kinds, constexprs=places), target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(made.asm["ptx"]) > 1000, sorted(set(made.asm) & {"ptx", "cubin"}))

segments = dict(row="*i32", start="*i32", count="*i32", indices="*i32", weight="*fp32", values="*bf16", index="*u16")
sizes = dict(WEIGHTED=True, S=kernels.SEGMENT, K=32)
build(kernels._top_k, dict(x="*fp32", values="*fp32", index="*u8", rows="i32", width="i32", k="i32"), dict(HALF=False, INFINITY=0x7F800000, R=4, D=64))
build(kernels._forward, dict(**segments, out="*fp32", width="i32", k="i32"), sizes)
build(
    kernels._backward,
    dict(**segments, grad="*bf16", of_values="*fp32", of_weight="*fp32", width="i32", k="i32"),
    dict(**sizes, VALUES=True, WEIGHTS=True),
)
"""


@pytest.mark.slow
def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    (tmp_path / "build.py").write_text(COMPILE)
    out = run(str(tmp_path / "build.py"), TRITON_CACHE_DIR=str(tmp_path / "cache"), TRITON_INTERPRET="0")
    assert [line.split()[:2] for line in out.splitlines()] == [
        [name, "True"] for name in ("_top_k", "_forward", "_backward")
    ]


def test_the_plugin_works_without_triton() -> None:
    program = (
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
        "import torch\n"
        "from planish.errors import DataError\n"
        "from planish_graph.convert import from_edges\n"
        "from planish_maxk.cbsr import aggregate, maxk\n"
        "graph = from_edges(torch.tensor([[0, 1], [1, 0]]))\n"
        "rows = maxk(torch.eye(2), 1)\n"
        "print(aggregate(graph, rows).tolist())\n"
        "try:\n"
        "    aggregate(graph, rows, 'triton')\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    lines = run("-c", program).splitlines()
    assert lines[0] == "[[0.0, 1.0], [1.0, 0.0]]"
    assert lines[1].startswith("aggregate: how = 'triton' needs triton, a CUDA device, and no float64")
