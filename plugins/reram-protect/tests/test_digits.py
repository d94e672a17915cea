"""The demonstration network, end to end on ten chips, and the residual fault rates that voting leaves."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from planish.context import Context
from planish.model import TorchModel
from planish_reram.chip import Physics, fault_maps
from planish_reram.faults import HEALTHY, preset
from planish_reram.protection import LayerProtection
from planish_reram_protect import benchmark
from planish_reram_protect.config import ReramProtectConfig
from planish_reram_protect.wiring import apply


def test_residual_rates_of_the_votes() -> None:
    """Stuck copies at 10.79 %: the median of three is wrong at 3p^2 - 2p^3 at most, no copy is healthy at p^3."""
    part = LayerProtection(slices=torch.ones(400, dtype=torch.uint8), copies=3)
    maps = fault_maps((400, 800), Physics(rates=preset("march_test")), part, (0,), "layer")
    stuck = torch.stack([copy_[0, 0, 0] != HEALTHY for copy_ in maps])
    p, cells = 0.1079, 400 * 800
    for found, expected in (
        ((stuck.sum(0) >= 2).double().mean(), 3 * p**2 - 2 * p**3),
        (stuck.all(0).double().mean(), p**3),
    ):
        assert abs(float(found) - expected) < 3 * (expected * (1 - expected) / cells) ** 0.5
    assert 3 * p**2 - 2 * p**3 == pytest.approx(0.0324, abs=1e-4)


@pytest.mark.slow
def test_bars_on_ten_chips_with_no_extra_crossbar(tmp_path: Path) -> None:
    task = benchmark.digits()
    dense = benchmark.fit(task, epochs=25)
    net = copy.deepcopy(dense)
    context = Context(task, 0, "cpu", tmp_path)
    protection = apply(TorchModel(net, "module"), ReramProtectConfig(tune_epochs=35), context).protection
    rates = preset("march_test")
    found = {"dense": benchmark.over_chips(dense, task, rates, {}, 10)} | {
        name: benchmark.over_chips(net, task, rates, part, 10)
        for name, part in benchmark.variants(protection).items()
    }
    print(
        {
            name: f"{chips.mean:.1f} +- {chips.spread:.1f}, worst {chips.worst:.1f}"
            for name, chips in found.items()
        }
    )
    assert context.facts["extra crossbars"] == 0
    assert found["dense"].mean < 50, "unprotected collapses"
    assert found["bit vote"].mean >= 90
    assert found["healthy copy"].mean >= 95.5
    assert found["bit vote, bias correction"].mean >= 93
    clean = {
        n: benchmark.accuracy(net_, task, benchmark.fault_free(net_))
        for n, net_ in (("dense", dense), ("net", net))
    }
    assert clean["net"] >= clean["dense"] - 0.5
    for pair in benchmark.RATES.values():
        plain = benchmark.over_chips(net, task, pair, protection, 10)
        corrected = benchmark.over_chips(
            net, task, pair, benchmark.variants(protection)["bit vote, bias correction"], 10
        )
        assert corrected.mean >= plain.mean - plain.spread, "the correction never costs more than noise"
    none = benchmark.tolerated(net, task, benchmark.unprotected(protection), benchmark.SYMMETRIC, 10)
    voted = benchmark.tolerated(net, task, protection, benchmark.SYMMETRIC, 10)
    assert voted >= 2.5 * none > 0
