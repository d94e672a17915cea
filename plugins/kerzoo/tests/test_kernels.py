"""The Triton sweep, interpreted, against its reference; in a process of its own, since Triton decides at import."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed"),
]


def test_interpreted_kernel_equals_the_reference_bit_for_bit() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    script = Path(__file__).with_name("interpreted.py")
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "9 cases" in done.stdout


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_run_on_a_gpu_equals_the_run_here() -> None:
    """With table noise and losses that do not depend on the device, every weight has the same bits."""
    from torch import nn

    from planish_kerzoo import KerZOO

    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        net = nn.Linear(70, 90).to(device)
        optimizer = KerZOO(net, lr=1e-3, seed=5, n=2, exact_noise=True, defer=True)
        optimizer._checked = True
        for step in range(5):
            losses = iter([1.0 + step, 0.5, 0.25 * step, 2.0])
            optimizer.step(lambda losses=losses: torch.tensor(next(losses)))
        optimizer.finish()
        found.append([p.detach().cpu() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
