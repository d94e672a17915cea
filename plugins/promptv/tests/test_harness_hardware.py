"""Hardware of a compressed model: circuits that equal torch bit for bit, and benches that notice when they do not."""

from __future__ import annotations

import random
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from planish.errors import PlanishError  # noqa: E402
from planish_promptv.hardware import Layer, Lif, cells, hardware_tasks, lif, mac  # noqa: E402
from planish_promptv.harness import Limits, Simulator  # noqa: E402
from planish_promptv.harness.mutants import score  # noqa: E402
from planish_promptv.types import Status  # noqa: E402


class Leaky(torch.nn.Module):
    """Carries its constants as snnTorch's neuron does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("beta", torch.tensor(0.9))
        self.register_buffer("threshold", torch.tensor(1.0))
        self.reset_mechanism = "subtract"


def sparse(rows: int, columns: int, n: int, m: int, seed: int = 0) -> torch.nn.Linear:
    """A linear layer of which the ``n`` largest of ``m`` weights are kept."""
    torch.manual_seed(seed)
    layer = torch.nn.Linear(columns, rows)
    groups = layer.weight.data.view(-1, m)
    groups.scatter_(1, groups.abs().argsort(1)[:, : m - n], 0.0)
    return layer


def model() -> torch.nn.Module:
    return torch.nn.Sequential(sparse(16, 32, 2, 4), Leaky(), torch.nn.Linear(16, 4))


NEURONS = [
    Lif(0.25, 0.75, 1.0),
    Lif(0.9, 1.0, 0.7, "subtract", width=12, fraction=6),
    Lif(0.5, 1.0, 1.0, "subtract", late=True, strict=True),
    Lif(0.5, 1.0, 1.0, "zero", late=True, strict=True, width=20, fraction=12),
]


@pytest.mark.parametrize("neuron", NEURONS, ids=str)
def test_neuron_equals_torch(neuron: Lif, simulator: Simulator) -> None:
    one = lif.task(neuron, vectors=400, seed=3)
    result = simulator.simulate_sync(one, one.reference or "")
    assert (result.status, result.mismatches, result.samples) == (Status.PASS, 0, 400)


@pytest.mark.parametrize(("n", "m"), mac.PATTERNS)
def test_mac_equals_torch(n: int, m: int, simulator: Simulator) -> None:
    layer = Layer.of("layer", sparse(8, 48, n, m).weight)
    assert layer is not None
    assert (layer.n, layer.m) == (n, m)
    one = mac.task(layer, vectors=200)
    result = simulator.simulate_sync(one, one.reference or "")
    assert (result.status, result.mismatches, result.samples) == (Status.PASS, 0, 200)


@pytest.mark.slow
def test_benches_from_vectors_catch_mutants(simulator: Simulator) -> None:
    tasks = hardware_tasks(model(), vectors=512)
    assert [one.id for one in tasks] == ["lif", "mac-2-4"]
    # A loop variable that runs the other way never ends: it is caught by the limit.
    with Simulator(limits=Limits(cpu_s=2), tier=simulator.tier) as hasty:
        result = score(tasks, hasty, limit=8)
    assert result.caught >= len(result.counted) - 1
    for one in tasks:
        assert not simulator.quality_sync(one).vacuous


def test_wrong_design_shows_where(simulator: Simulator) -> None:
    (one, _) = hardware_tasks(model())
    wrong = (one.reference or "").replace("held > THRESHOLD", "held >= 2 * THRESHOLD")
    result = simulator.simulate_sync(one, wrong)
    assert result.status is Status.FAIL
    assert result.first_mismatch
    assert "spike" in result.first_mismatch.outputs


def test_cell_counts(simulator: Simulator) -> None:
    if shutil.which("yosys") is None:
        pytest.skip("yosys is not installed: apt-get install yosys")
    neuron, unit = hardware_tasks(model())
    counted = cells(neuron, neuron.reference or "", simulator)
    assert counted.registers == 17  # 16 bits of potential and the spike
    assert counted.latches == 0
    assert sum(counted.by_type.values()) == counted.total
    half = cells(unit, mac.rtl(1, 2), simulator).total
    dense = cells(unit, mac.rtl(2, 2), simulator).total
    assert 0 < half < dense
    assert cells(unit, "module nm_mac; x; endmodule", simulator).why
    assert "status" in cells(unit, "", simulator).as_dict()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NEURONS), st.integers(0, 2**32))
def test_fixed_point_reference_against_plain_integers(neuron: Lif, seed: int) -> None:
    rng = random.Random(seed)
    current = [rng.randint(-neuron.highest - 1, neuron.highest) for _ in range(40)]
    v = s = 0
    decay, gain, limit = neuron.fixed(neuron.decay), neuron.fixed(neuron.gain), neuron.fixed(neuron.threshold)
    expected = []
    for x in current:
        u = (v * decay + x * gain) // (1 << neuron.fraction)
        if neuron.late and s:
            u = 0 if neuron.reset == "zero" else u - limit
        v = max(-neuron.highest - 1, min(neuron.highest, u))
        s = int(v > limit if neuron.strict else v >= limit)
        if s and not neuron.late:
            v = 0 if neuron.reset == "zero" else v - limit
        expected.append((s, v))
    spikes, potentials = lif.fixed_point(neuron, torch.tensor(current)[:, None])
    assert list(zip(spikes[:, 0].tolist(), potentials[:, 0].tolist(), strict=True)) == expected


def test_fixed_point_follows_the_float_neuron() -> None:
    for neuron in NEURONS:
        assert lif.agreement(neuron, steps=500) > 0.95


@given(st.lists(st.integers(-127, 127), min_size=8, max_size=8), st.integers(1, 8))
def test_compressed_group_means_the_same(group: list[int], n: int) -> None:
    if sum(map(bool, group)) > n:
        with pytest.raises(PlanishError, match="are allowed"):
            mac.compress(group, n)
        return
    kept, places = mac.compress(group, n)
    dense = [0] * 8
    for value, place in zip(kept, places, strict=True):
        dense[place] += value
    assert dense == group
    assert len(kept) == len(set(places)) == n


def test_neurons_are_recognised_by_their_attributes() -> None:
    assert lif.from_module(Leaky()) == Lif(
        float(torch.tensor(0.9)), 1.0, 1.0, "subtract", late=True, strict=True
    )
    node = SimpleNamespace(tau=4 / 3, v_threshold=1.0, v_reset=0.0)
    assert lif.from_module(node) == Lif(1 - 3 / 4, 3 / 4, 1.0)
    assert lif.from_module(SimpleNamespace(tau=2.0, v_threshold=1.0, v_reset=None)).reset == "subtract"
    assert lif.from_module(torch.nn.Linear(2, 2)) is None
    assert lif.from_module(SimpleNamespace(threshold=torch.ones(3), tau=2.0)) is None


def test_mistakes_are_named() -> None:
    with pytest.raises(PlanishError, match="no LIF neuron and no linear layer"):
        hardware_tasks(torch.nn.Linear(4, 4))
    with pytest.raises(PlanishError, match="vectors = 3"):
        hardware_tasks(model(), vectors=3)
    with pytest.raises(PlanishError, match=r"decay = 1\.5"):
        Lif(1.5, 1.0, 1.0)
    with pytest.raises(PlanishError, match="threshold = 100"):
        Lif(0.5, 1.0, 100.0)
    with pytest.raises(PlanishError, match="width = 40"):
        Lif(0.5, 1.0, 1.0, width=40)
