"""The search on a small network: exact target, true zeros, held zeros, resumption, and losses that are no numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planish.context import Unit
from planish.errors import PlanishError
from planish_reram.mapping import mapped_layers, matrix
from planish_reram_protect.coupling import couple
from planish_reram_protect.gates import Gated
from planish_reram_protect.search import Found, Schedule, search

SCHEDULE = Schedule(target=0.3, lr=1e-3, gate_lr=0.03, gate_epochs=6, tune_epochs=2, clip=2.0)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)
    )


def layers_of(net: nn.Module) -> list[Gated]:
    shapes = {name: tuple(matrix(layer).shape) for name, layer in mapped_layers(net).items()}
    return couple(net, shapes, last="5")


def run(
    net: nn.Module, schedule: Schedule = SCHEDULE, unit: Callable[[str], Unit] | None = None, **other: Any
) -> Found:
    x = torch.randn(256, 24, generator=torch.Generator().manual_seed(1))
    y = x[:, :4].argmax(1)

    def batches(source: torch.Generator) -> Sequence[Tensor]:
        return torch.randperm(256, generator=source).split(32)

    def loss(rows: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net(x[rows]), y[rows])

    return search(
        net,
        layers_of(net),
        batches,
        other.get("loss", loss),
        schedule,
        lambda name: torch.Generator().manual_seed(sum(name.encode())),
        unit,
    )


def test_pruned_groups_are_exact_zeros_and_the_target_is_met() -> None:
    net = network()
    found = run(net)
    opened = torch.cat([found.mask, torch.ones(1, dtype=torch.bool)])
    kept = total = 0
    for layer in layers_of(net):
        weight = matrix(net.get_submodule(layer.name))
        inside = opened[layer.rows][:, None] & opened[layer.columns]
        assert not bool(weight[~inside].any())
        assert bool((weight[inside] != 0).all())
        kept, total = kept + int(inside.sum()), total + inside.numel()
    assert found.reached
    assert found.steps < 6 * 8, "the search stopped inside an epoch's steps"
    assert 0.3 <= 1 - kept / total < 0.3 + 32 / total
    assert found.sparsity == pytest.approx(1 - kept / total)
    assert not any("parametrizations" in name for name in net.state_dict())


def test_the_limit_on_weights_is_kept() -> None:
    free, held = network(), network()
    run(free, Schedule(target=0.3, lr=1e-2, gate_epochs=6, tune_epochs=4))
    run(held, Schedule(target=0.3, lr=1e-2, gate_epochs=6, tune_epochs=4, clip=2.0))
    for name in ("0", "3"):
        ratios = []
        for net in (free, held):
            weight = matrix(net.get_submodule(name))
            kept = weight[weight != 0].detach()
            ratios.append(float(kept.abs().max() / kept.std()))
        assert ratios[1] < 2.1 < ratios[0]


def test_transposed_layers_are_limited_along_their_own_rows_and_columns() -> None:
    """transformers' Conv1D keeps [in, out]: the same network in that form ends in the same weights."""
    from transformers.pytorch_utils import Conv1D

    nets = network(), network()
    for name in ("0", "3"):
        plain = nets[1].get_submodule(name)
        turned = Conv1D(plain.out_features, plain.in_features)
        turned.weight = nn.Parameter(plain.weight.detach().t().contiguous())
        turned.bias = plain.bias
        nets[1][int(name)] = turned
    found = [run(net, Schedule(target=0.3, lr=1e-2, gate_epochs=6, tune_epochs=2, clip=2.0)) for net in nets]
    assert torch.equal(found[0].mask, found[1].mask)
    for name in ("0", "3", "5"):
        weights = [matrix(net.get_submodule(name)) for net in nets]
        torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)


def test_a_search_that_does_not_arrive_is_rounded_to_the_target() -> None:
    found = run(network(), Schedule(target=0.4, lr=1e-3, gate_lr=1e-6, gate_epochs=1, tune_epochs=0))
    assert not found.reached
    assert found.searched < 0.4 <= found.sparsity


def test_what_was_zero_before_stays_zero() -> None:
    net = network()
    zeros = torch.rand(32, 24, generator=torch.Generator().manual_seed(3)) < 0.5
    with torch.no_grad():
        net[0].weight[zeros] = 0
    run(net)
    assert not bool(net[0].weight[zeros].any())


def test_a_search_that_was_cut_off_ends_in_the_same_bytes(tmp_path: Path) -> None:
    whole, cut = network(), network()
    run(whole, unit=lambda name: Unit(tmp_path / "whole", name))

    class Cut(Exception):
        pass

    def failing(name: str) -> Unit:
        unit = Unit(tmp_path / "cut", name)
        if name == "tune 1":

            def stop(*_: Any, **__: Any) -> None:
                raise Cut

            unit.save = stop  # type: ignore[method-assign]
        return unit

    with pytest.raises(Cut):
        run(cut, unit=failing)
    resumed = network()
    run(resumed, unit=lambda name: Unit(tmp_path / "cut", name))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_loss_that_is_no_number_is_one_clear_line_and_leaves_a_plain_module() -> None:
    net = network()
    with pytest.raises(PlanishError, match="the training loss is nan at step 1"):
        run(net, loss=lambda rows: net(torch.randn(4, 24)).sum() * float("nan"))
    assert not any("parametrizations" in name for name in net.state_dict())
