"""Gates: the mask, its surrogate gradient, the start, and the rounding to a target."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from planish.errors import PlanishError
from planish_reram_protect import gates
from planish_reram_protect.gates import OPEN, Gated
from planish_reram_protect.rounding import round_to


def free_layers(sizes: list[tuple[int, int]], *, last_rows_open: bool = True) -> tuple[list[Gated], int]:
    """Matrices with gates of their own on both sides; the rows of the last have none."""
    layers, count = [], 0
    for number, (out, into) in enumerate(sizes):
        closed = number == len(sizes) - 1 and last_rows_open
        rows = torch.full((out,), OPEN) if closed else torch.arange(count, count + out)
        count += 0 if closed else out
        columns = torch.arange(count, count + into)
        count += into
        layers.append(Gated(f"layer{number}", rows, columns))
    return layers, count


def counted(layers: list[Gated], mask: Tensor) -> float:
    """Sparsity, from the outer products themselves."""
    opened = torch.cat([mask, torch.ones(1, dtype=torch.bool)])
    kept = sum(int((opened[layer.rows][:, None] & opened[layer.columns]).sum()) for layer in layers)
    return 1 - kept / sum(layer.size for layer in layers)


def test_step_is_hard_and_its_gradient_is_that_of_softplus() -> None:
    g = torch.tensor([-2.0, 0.0, 1e-9, 3.0], dtype=torch.float64, requires_grad=True)
    mask = gates.step(g)
    assert mask.tolist() == [0, 0, 1, 1]
    weight = torch.tensor([1.0, 2.0, -3.0, 4.0], dtype=torch.float64)
    (mask * weight).sum().backward()
    reference = g.detach().clone().requires_grad_()
    (torch.nn.functional.softplus(reference) * weight).sum().backward()
    torch.testing.assert_close(g.grad, reference.grad)


def test_start_is_half_the_relative_norm_and_averages_over_coupled_groups() -> None:
    first, second = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 3.0]])
    shared = torch.tensor([0, 1])
    layers = [
        Gated("a", shared, torch.tensor([2, 3])),
        Gated("b", torch.tensor([OPEN]), shared),
    ]
    g = gates.start(layers, {"a": first, "b": second})
    # a: row norms 5, 0 (mean 2.5), column norms 3, 4 (mean 3.5); b: column norms 1, 3 (mean 2).
    expected = [0.5 * (2 + 0.5) / 2, 0.5 * (0 + 1.5) / 2, 0.5 * 3 / 3.5, 0.5 * 4 / 3.5]
    torch.testing.assert_close(g, torch.tensor(expected))


def test_penalty_grows_with_the_distance_to_the_target() -> None:
    assert gates.strength(0.0, 0.3, 5, 20) == pytest.approx(105)
    assert gates.strength(0.15, 0.3, 5, 20) == pytest.approx(55)
    assert gates.strength(0.4, 0.3, 5, 20) == pytest.approx(5)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.tuples(st.integers(4, 20), st.integers(4, 20)), min_size=1, max_size=3),
    target=st.floats(0.05, 0.6),
    seed=st.integers(0, 10**6),
    shift=st.floats(-0.8, 0.8),
)
def test_rounding_reaches_the_target_from_above_and_no_group_more(
    sizes: list[tuple[int, int]], target: float, seed: int, shift: float
) -> None:
    layers, count = free_layers(sizes)
    g = torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.5 + shift
    mask = round_to(layers, g, target)
    found = counted(layers, mask)
    assert found >= target - 1e-12
    assert found == pytest.approx(gates.Counter(layers).sparsity(mask.double()), abs=1e-12)
    for gate in (~mask).nonzero().flatten().tolist():
        more = mask.clone()
        more[gate] = True
        assert counted(layers, more) < target, "another row or column would still have met the target"
    opened = torch.cat([mask, torch.ones(1, dtype=torch.bool)])
    assert all(bool(opened[side].any()) for layer in layers for side in (layer.rows, layer.columns))
    assert bool(opened[layers[-1].rows].all()), "output rows of the last layer are never gated"


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), multiple=st.sampled_from([2, 4, 8]))
def test_rounding_keeps_multiples(seed: int, multiple: int) -> None:
    layers, count = free_layers([(32, 24), (16, 32)])
    g = torch.rand(count, generator=torch.Generator().manual_seed(seed)) - 0.4
    mask = round_to(layers, g, 0.35, multiple)
    assert counted(layers, mask) >= 0.35
    for layer in layers:
        for side in (layer.rows, layer.columns):
            if bool((side != OPEN).all()):
                assert int(mask[side].sum()) % multiple == 0


def test_rounding_prefers_strong_gates() -> None:
    layers = [Gated("a", torch.full((10,), OPEN), torch.arange(10))]
    g = torch.linspace(0.1, 1.0, 10)
    assert round_to(layers, g, 0.3).tolist() == [False] * 3 + [True] * 7
    assert round_to(layers, -g, 0.3).tolist() == [True] * 7 + [False] * 3


def test_an_unreachable_target_is_one_clear_line() -> None:
    layers, count = free_layers([(4, 4)])
    with pytest.raises(PlanishError, match=r"target = 0.9.*0.750 is the highest sparsity"):
        round_to(layers, torch.ones(count), 0.9)


def test_keep_one_lifts_the_largest_gate_only_where_all_are_closed() -> None:
    layers, count = free_layers([(3, 2)])
    g = torch.tensor([-1.0, -0.5], dtype=torch.float32)
    gates.keep_one(layers, g)
    assert (g > 0).tolist() == [False, True]
    assert count == 2
