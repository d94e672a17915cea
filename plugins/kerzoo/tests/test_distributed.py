"""Two processes give the bits of one: data-parallel, and with parameters sharded by FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from planish_kerzoo import KerZOO, replay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch has no gloo"),
]

HERE = Path(__file__).parent
ALONE = "import sys; sys.path.insert(0, sys.argv[1]); import two_processes as t; from safetensors.torch import save_file;"
ALONE += "o = t.train(t.net(), t.batch());"
ALONE += "save_file({str(i): w.segment.parameter.detach() for i, w in enumerate(o.works)}, sys.argv[2]);"
ALONE += "import pathlib; save_file(dict(t.stage(pathlib.Path(sys.argv[2] + '-run')).state_dict()), sys.argv[2] + '-stage')"


def test_two_processes_equal_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    commands = [
        [sys.executable, HERE / "two_processes.py", str(rank), tmp_path / "meet", tmp_path / "two"]
        for rank in (0, 1)
    ]
    commands.append([sys.executable, "-c", ALONE, HERE, tmp_path / "one"])
    started = [
        subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for c in commands
    ]
    ended = [process.communicate() for process in started]
    for process, (_, errors) in zip(started, ended, strict=True):
        assert process.returncode == 0, errors[-3000:]
    one = load_file(tmp_path / "one")
    for mode in ("data-parallel", "sharded"):
        two = load_file(tmp_path / f"two-{mode}")
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one), mode
    logs = [(tmp_path / f"two-{mode}-log").read_bytes() for mode in ("data-parallel", "sharded")]
    assert logs[0] == logs[1]
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(9, 33), nn.Tanh(), nn.Linear(33, 7))
    replayed = KerZOO(base, lr=1e-2, n=2, seed=4)
    assert replay(tmp_path / "two-sharded-log", replayed) == 6
    assert all(torch.equal(work.segment.parameter, one[str(i)]) for i, work in enumerate(replayed.works))
    alone, together = load_file(tmp_path / "one-stage"), load_file(tmp_path / "two-stage")
    assert all(torch.equal(alone[name], together[name]) for name in alone)
    assert all("logs True" in output for output, _ in ended[:2])
    printed = [line.split() for output, _ in ended[:2] for line in output.splitlines()]
    assert len({line[3] for line in printed if line[0] in ("data-parallel", "sharded")}) == 1
    lines = [line for line in printed if line[0] == "sharded"]
    held, total = [int(line[1]) for line in lines], int(lines[0][2])
    assert sum(held) == total
    assert max(held) < 0.6 * total  # nobody swept over more than its own part
