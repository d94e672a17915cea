"""The log: written, torn, continued, replayed."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.config import validate
from planish.errors import ArtifactError, ConfigError, PlanishError, RunError
from planish_kerzoo import KerZOO, RunLog, average, replay
from planish_kerzoo.config import KerZOOConfig
from planish_kerzoo.estimator import Sample
from planish_kerzoo.log import Step

HEADER = {"n": 2, "groups": 1, "seed": 0}
ODD = [
    b'{"kerzoo-log": 1, "n": %s, "groups": %s}%%s' % sizes
    for sizes in ((b"0", b"1"), (b"-1", b"1"), (b"1", b"-1"))
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))


def loss(model: nn.Module) -> Tensor:
    x = torch.linspace(-1, 1, 80).view(10, 8)
    return model(x).square().mean()


def run(path: Path, steps: int, **options: Any) -> nn.Module:
    model = net()
    log = RunLog(path)
    optimizer = KerZOO(model, lr=1e-2, seed=2**63 + 5, log=log, **options)
    for _ in range(replay(log, optimizer) if log.steps else 0, steps):
        optimizer.step(lambda: loss(model))
    optimizer.finish()
    log.close()
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def step(number: int) -> Step:
    samples = (Sample(2**64 - 1 - number, 0.1 * number, 1 / 3), Sample(number, -1.0, float(number)))
    return Step(number, samples, (0.5, float("inf")), (1e-6,))


@pytest.mark.parametrize(
    "options", [{}, {"n": 3}, {"restore": "exact"}, {"compat": "authors"}, {"defer": True}], ids=str
)
def test_replay_gives_the_weights_bit_for_bit(tmp_path: Path, options: dict[str, Any]) -> None:
    trained = run(tmp_path / "log", 8, **options)
    base = net()
    assert not same(trained, base)
    rest = {key: value for key, value in options.items() if key != "defer"}
    optimizer = KerZOO(base, lr=123.0, seed=2**63 + 5, **rest)  # rates come from the log
    assert replay(tmp_path / "log", optimizer) == 8
    assert optimizer.forwards == 0
    assert same(trained, base)


@pytest.mark.parametrize("options", [{}, {"n": 3, "restore": "exact"}, {"sides": 1, "n": 2}], ids=str)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_the_log_gives_the_mean_of_the_weights_too(
    tmp_path: Path, options: dict[str, Any], share: float
) -> None:
    model = net()
    log = RunLog(tmp_path / "log")
    optimizer = KerZOO(model, lr=1e-2, log=log, **options)
    seen = []
    for number in range(10):
        optimizer.step(lambda number=number: loss(model) if number != 7 else torch.tensor(float("nan")))
        seen.append([p.detach().clone() for p in model.parameters()])
    optimizer.finish()
    average(log, optimizer, share)
    last = round(10 * share)
    for index, parameter in enumerate(model.parameters()):
        expected = torch.stack([weights[index] for weights in seen[-last:]]).mean(0)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "log", 3, compat="authors")
    with pytest.raises(PlanishError, match="cannot be taken back"):
        average(tmp_path / "log", KerZOO(net(), compat="authors", seed=2**63 + 5), 1.0)
    with pytest.raises(PlanishError, match=r"share = 0 is not in \(0, 1\]"):
        average(tmp_path / "log", KerZOO(net()), 0)
    with pytest.raises(ConfigError, match=r"average = 0\.5 with clip"):
        validate(KerZOOConfig, {"compat": "authors", "average": 0.5}, "kerzoo")


def test_a_changing_learning_rate_and_skipped_steps_are_replayed(tmp_path: Path) -> None:
    model = net()
    log = RunLog(tmp_path / "log")
    optimizer = KerZOO(model, lr=1e-2, log=log)
    for number in range(6):
        optimizer.param_groups[0]["lr"] = 1e-2 / (number + 1)
        optimizer.step(lambda number=number: loss(model) if number != 3 else torch.tensor(float("nan")))
    assert optimizer.skipped == 1
    base = net()
    replay(tmp_path / "log", KerZOO(base, lr=1e-2))
    assert same(model, base)


def test_a_log_is_continued_where_it_ends(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 9)
    run(tmp_path / "parts", 4)
    size = (tmp_path / "parts").stat().st_size
    with (tmp_path / "parts").open("r+b") as stream:
        stream.truncate(size - 7)  # a torn record: step 3 is lost and done again
    assert RunLog(tmp_path / "parts").steps == 3
    assert same(run(tmp_path / "parts", 9), whole)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


@settings(max_examples=30, deadline=None)
@given(cut=st.integers(0, 700), flip=st.integers(0, 700))
def test_a_damaged_log_gives_a_prefix_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flip: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    with RunLog(path, HEADER) as log:
        for number in range(5):
            log.append(step(number))
    content = bytearray(path.read_bytes()[: cut or None])
    if content:
        content[flip % len(content)] ^= 0x10
    path.write_bytes(content)
    try:
        found = list(RunLog(path).read())
    except ArtifactError:
        return
    assert found == [step(number) for number in range(len(found))]


def test_other_runs_and_files_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "log", 2)
    with pytest.raises(RunError, match="belongs to another run"):
        KerZOO(net(), lr=1e-2, seed=1, log=RunLog(tmp_path / "log"))
    moved = net()
    with torch.no_grad():
        moved[0].weight[0, 0] += 1  # type: ignore[index,union-attr,operator]
    with pytest.raises(RunError, match="base is"):
        replay(tmp_path / "log", KerZOO(moved, lr=1e-2, seed=2**63 + 5))
    contents = [b"\x80\x04pickle\n", b'{"a": 1}', *(header % b"\n" for header in ODD)]
    for content in contents:
        (tmp_path / "other").write_bytes(content)
        with pytest.raises(ArtifactError, match="is not a KerZOO log"):
            RunLog(tmp_path / "other")
        assert (tmp_path / "other").read_bytes() == content
    with pytest.raises(ArtifactError, match="holds no run"):
        replay(tmp_path / "absent", KerZOO(net()))
    with pytest.raises(ArtifactError, match="holds no run"):
        average(tmp_path / "absent", KerZOO(net()))
    with pytest.raises(RunError, match="parameters is"):
        average(tmp_path / "log", KerZOO(nn.Linear(3, 3), lr=1e-2, seed=2**63 + 5))


def test_a_log_is_not_spoilt_by_a_second_run(tmp_path: Path) -> None:
    run(tmp_path / "log", 4)
    before = (tmp_path / "log").read_bytes()
    model = net()
    again = KerZOO(model, lr=1e-2, seed=2**63 + 5, log=tmp_path / "log")
    with pytest.raises(
        RunError, match=r"holds 4 steps, and the next one is step 0; go on from it with replay"
    ):
        again.step(lambda: loss(model))
    assert same(model, net())
    assert (tmp_path / "log").read_bytes() == before
    other = KerZOO(model, log=tmp_path / "other")
    other.param_groups[0]["eps"] = 0.5
    with pytest.raises(PlanishError, match="only lr may change"):
        other.step(lambda: loss(model))


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "log"):
        with pytest.raises(RunError, match="cannot be written"):
            RunLog(path, HEADER).append(step(0))


KILLED = """
import sys, torch
from torch import nn
from planish_kerzoo import KerZOO, RunLog
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 2))
x = torch.linspace(-1, 1, 80).view(10, 8)
optimizer = KerZOO(model, lr=1e-2, seed=2**63 + 5, log=RunLog(sys.argv[1]), defer=True)
while True:
    optimizer.step(lambda: model(x).square().mean())
    print(optimizer.steps, flush=True)
"""


def test_a_killed_run_goes_on_from_its_log(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "log"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) == 5:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    written = RunLog(tmp_path / "log").steps
    assert written >= 5
    assert same(run(tmp_path / "log", written + 4), run(tmp_path / "whole", written + 4))


def test_a_log_is_tiny_beside_a_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log", HEADER)
    for number in range(100):
        log.append(step(number))
    assert log.bytes == (tmp_path / "log").stat().st_size < 100 * 2 * 60
    log.close()
    assert copy.copy(log.header) == HEADER
