"""Products: the slow path equals the fast one, converters, layers, whole networks."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.errors import ConfigError, PlanishError
from planish_reram.chip import NO_PROTECTION, Physics
from planish_reram.converters import Adc, RangeWarning, bit_planes, convert_inputs
from planish_reram.devices import custom
from planish_reram.layers import CrossbarConv2d, CrossbarLinear, Setup
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.mvm import fast
from planish_reram.network import (
    calibrate,
    crossbars,
    on_chips,
    plain_attention,
    program_chips,
    to_crossbars,
)
from planish_reram.protection import LayerProtection
from planish_reram.slicing import Layout
from planish_reram.specs import Converters, FaultRates, lossless_adc_bits

FAULTY = FaultRates(0.05, 0.08, 0.01, 0.02)


def linear(out: int, inputs: int, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, out).requires_grad_(False)


def cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(8, 6, (3, 2), padding="same", dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(6 * 36, 10),
    ).eval().requires_grad_(False)  # fmt: skip


def ready(module: nn.Module, setup: Setup, x: Tensor, **options: object) -> nn.Module:
    made = copy.deepcopy(module)
    to_crossbars(made, setup, **options)  # type: ignore[arg-type]
    calibrate(made, [{"x": x}], lambda batch: made(batch["x"]))
    return made


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@settings(max_examples=60, deadline=None)
@given(
    layout=st.sampled_from([Layout(8, b, m) for b in (1, 2, 4, 8) for m in ("offset", "differential")]),
    rows=st.integers(1, 40),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 90)),
    vote=st.sampled_from(["none", "bit", "healthy", "mean"]),
    pruned=st.booleans(),
    corrected=st.booleans(),
    serial=st.booleans(),
)
def test_slow_path_equals_fast_path(
    layout: Layout, rows: int, sizes: tuple[int, int], vote: str, pruned: bool, corrected: bool, serial: bool
) -> None:
    """With ideal ADCs, in float64, to 1e-9: every mapping, tile, vote, pruning and correction."""
    out, inputs = sizes
    kept = torch.arange(0, out, 2) if pruned else torch.arange(out)
    plan = LayerProtection(
        kept_rows=kept if pruned else None,
        kept_cols=torch.arange(0, inputs, 3) if pruned else None,
        slices=None if vote == "none" else (kept % 2).to(torch.uint8),
        copies=3,
        vote="bit" if vote == "none" else vote,  # type: ignore[arg-type]
        bias_correction="expected" if corrected else None,
    )
    converters = Converters(dac_bits=8 if serial else None, dac_serial=serial)
    setup = Setup(Physics(layout, FAULTY, (rows, 64)), converters, dtype=torch.float64)
    layer = CrossbarLinear(linear(out, inputs), setup, "a", plan, (3, 4))
    x = torch.randn(2, 5, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    given_x = convert_inputs(x, converters)
    difference = layer.sliced()(given_x) - fast(given_x, layer.effective_weight())
    assert float(difference.abs().max()) < 1e-9


@pytest.mark.parametrize("mapping", ["offset", "differential"])
@pytest.mark.parametrize("cell_bits", [1, 2, 4, 8])
@pytest.mark.parametrize("serial", [False, True])
def test_integer_sums_are_the_integer_product(mapping: str, cell_bits: int, serial: bool) -> None:
    """No faults, ideal ADC: shift-added column sums of integers are q @ x, bit for bit."""
    setup = Setup(
        Physics(Layout(8, cell_bits, mapping), tile=(32, 64)),  # type: ignore[arg-type]
        Converters(dac_serial=serial),
    )
    layer = CrossbarLinear(linear(20, 75), setup)
    x = torch.randint(-127, 128, (1, 9, 75), generator=torch.Generator().manual_seed(2))
    codes = layer.sliced().codes(x.float()).to(torch.int64)
    significance = torch.tensor(layer.cells.layout.significance).view(1, -1, 1, 1, 1)
    total = (codes * significance).sum(dim=1)
    value = total[0] - total[1] if mapping == "differential" else total[0] - 128 * x.sum(-1, keepdim=True)
    assert torch.equal(value, x @ layer.quantised.q.to(torch.int64).t())


def test_bit_planes_are_twos_complement() -> None:
    x = torch.arange(-127, 128).float()
    assert torch.equal(sum(w * plane for w, plane in bit_planes(x, 8)), x)  # type: ignore[arg-type]


def test_inputs_are_quantised_by_vector_or_by_a_limit() -> None:
    x = torch.tensor([[1.0, -0.5, 0.25], [0.0, 0.0, 0.0], [-8.0, 4.0, 2.0]])
    found = convert_inputs(x, Converters())
    assert found.values.tolist() == [[127, -64, 32], [0, 0, 0], [-127, 64, 32]]
    assert found.scale is not None
    clipped = convert_inputs(x, Converters(), limit=1.0)
    assert clipped.values[2].tolist() == [-127, 127, 127]
    assert convert_inputs(x, Converters(dac_bits=None)).values is x


def test_zero_is_a_code_and_the_range_is_covered() -> None:
    adc = Adc.spanning(torch.tensor([[[-10.0]]]), torch.tensor([[[100.0]]]), 8)
    sums = torch.tensor([0.0, 1e-3, -10.0, 100.0, 1e9, -1e9])
    codes = adc.reader(0, 0, sums)(sums.clone())
    assert codes[:2].tolist() == [0, 0]
    assert float(codes.max() - codes.min()) == 255
    assert codes[3] == codes[4]
    assert float((codes[:4] * adc.step[0, 0] - sums[:4]).abs().max()) <= float(adc.step.max())


def test_lossless_bits_of_the_specification() -> None:
    assert lossless_adc_bits(128, 2, 1) == 9
    assert lossless_adc_bits(128, 1, 1) == 8


@pytest.mark.parametrize("mapping", ["offset", "differential"])
def test_calibrated_adc_is_close_and_maximal_range_is_not(mapping: str) -> None:
    """768 x 768, four 2-bit slices, tiles of 128, 8-bit DAC and ADC: below 4 % with a calibrated range."""
    dense = linear(768, 768)
    x = torch.randn(64, 768, generator=torch.Generator().manual_seed(1))
    wanted = dense(x)
    physics = Physics(Layout(8, 2, mapping))  # type: ignore[arg-type]
    calibrated = ready(nn.Sequential(dense), Setup(physics, Converters(adc_bits=8)), x)
    assert relative(calibrated(x), wanted) < 0.04
    largest = ready(nn.Sequential(dense), Setup(physics, Converters(adc_bits=8, adc_range="max")), x)
    with pytest.warns(RangeWarning, match="adc_range = 'max'"):
        found = largest(x)
    assert relative(found, wanted) > 0.2


def test_lossless_adc_loses_nothing_and_does_not_warn() -> None:
    dense, x = linear(40, 200), torch.randn(16, 200)
    bits = lossless_adc_bits(128, 2, 1)
    serial = Converters(dac_serial=True, adc_bits=bits, adc_range="max")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = ready(nn.Sequential(dense), Setup(converters=serial), x)(x)
    assert torch.allclose(exact, ready(nn.Sequential(dense), Setup(), x)(x), atol=1e-5)


@pytest.mark.parametrize(
    ("converters", "bound"),
    [
        (Converters(dac_bits=None), 0.01),
        (Converters(), 0.015),
        (Converters(adc_bits=8), 0.03),
        (Converters(adc_bits=12, dac_range="calibrated"), 0.02),
        (Converters(adc_bits=8, adc_scope="column"), 0.03),
        (Converters(adc_bits=8, dac_serial=True), 0.06),
    ],
)
def test_convolutions_with_every_converter(converters: Converters, bound: float) -> None:
    net, x = cnn(), torch.randn(20, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = ready(net, Setup(converters=converters), x)
    assert relative(found(x), net(x)) < bound
    assert found.state_dict().keys() == net.state_dict().keys()


def test_a_column_range_of_its_own_is_finer() -> None:
    dense, x = linear(64, 256), torch.randn(400, 256)
    errors = [
        relative(ready(nn.Sequential(dense), Setup(converters=Converters(adc_bits=6, adc_scope=s)), x)(x), dense(x))
        for s in ("slice", "column")
    ]  # fmt: skip
    assert errors[1] < errors[0]


@pytest.mark.parametrize("converters", [Converters(), Converters(adc_bits=8)])
def test_chips_in_one_batch_are_the_chips_one_by_one(converters: Converters) -> None:
    net, x = cnn(), torch.randn(6, 3, 12, 12)
    found = ready(net, Setup(Physics(Layout(), FAULTY), converters), x)
    single = []
    for seed in (0, 1, 2):
        program_chips(found, [seed])
        single.append(found(x))
    assert not torch.equal(single[0], single[1])
    program_chips(found, [0, 1, 2])
    together = found(on_chips({"x": x}, 3)["x"]).view(3, 6, 10)
    assert torch.allclose(together, torch.stack(single), atol=1e-5)
    with pytest.raises(PlanishError, match="cannot be shared out to 3 chips"):
        found(x[:4])


@pytest.mark.parametrize("scope", ["slice", "column"])
def test_bias_correction_behind_an_adc_is_that_of_the_composed_weight(scope: str) -> None:
    dense, x = linear(40, 300), torch.randn(300, 300, generator=torch.Generator().manual_seed(3))
    plan = {"0": LayerProtection(bias_correction="expected")}
    physics = Physics(rates=FaultRates(0.02, 0.09))
    fine = Converters(adc_bits=16, adc_scope=scope, adc_percentile=100)  # type: ignore[arg-type]
    composed = ready(nn.Sequential(dense), Setup(physics), x, protection=plan)(x)
    sliced = ready(nn.Sequential(dense), Setup(physics, fine), x, protection=plan)(x)
    assert relative(sliced, composed) < 0.01


def test_output_vote_takes_the_median_of_each_tile() -> None:
    """Three copies of every slice, one of them voted away: against a loop over the tiles."""
    plan = LayerProtection(slices=torch.full((6,), 4, dtype=torch.uint8), copies=3, vote="output")
    setup = Setup(Physics(Layout(), FAULTY, (16, 64)), Converters(), dtype=torch.float64)
    layer = CrossbarLinear(linear(6, 40), setup, "a", plan)
    assert not layer.exact
    x = torch.randint(-127, 128, (1, 3, 40)).double()
    found = layer.sliced().codes(x)
    for k in range(4):
        wanted = torch.zeros(3, 6, dtype=torch.float64)
        for first in range(0, 40, 16):
            tile = slice(first, first + 16)
            copies = [x[0, :, tile] @ layer.cells.levels[c, 0, 0, k, :, tile].double().t() for c in range(3)]
            wanted += torch.stack(copies).median(dim=0).values
        assert torch.equal(found[0, k, 0], wanted)
    mean = CrossbarLinear(linear(6, 40), setup, "a", replace(plan, vote="mean"))
    assert mean.exact


def test_read_noise_has_the_same_size_on_both_paths() -> None:
    physics = Physics(Layout(), device=custom(0.0, 0.02, 0.0))
    x = torch.randn(1, 200, 300)
    sizes = []
    for adc in (None, 16):
        layer = CrossbarLinear(linear(50, 300), Setup(physics, Converters(adc_bits=adc)))
        calibrate(layer, [{"x": x[0]}], lambda batch, layer=layer: layer(batch["x"]))
        layer.program((0,))
        first, second = layer(x[0]), layer(x[0])
        sizes.append(float((first - second).std()))
        layer.program((0,))
        assert torch.equal(layer(x[0]), first)  # the same reads again
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)
    significance = torch.tensor([64.0, 16.0, 4.0, 1.0])
    spread = 0.02 * 3 * float(significance.norm()) * float(layer.quantised.scale)
    assert sizes[0] == pytest.approx(spread * float(x.norm(dim=-1).mean()) * 2**0.5, rel=0.1)


def test_calibration_does_not_use_up_read_noise() -> None:
    physics, x = Physics(Layout(), device=custom(0.0, 0.02, 0.0)), torch.randn(8, 30)
    layer = CrossbarLinear(linear(5, 30), Setup(physics, Converters(dac_range="calibrated")))
    seen = []
    for batches in (1, 3):
        calibrate(layer, [{"x": x}] * batches, lambda batch: layer(batch["x"]))
        seen.append(layer(x))
    assert torch.equal(*seen)


def test_calibration_passes_over_what_is_empty_and_refuses_what_is_no_number() -> None:
    layer = CrossbarLinear(linear(5, 30), Setup(converters=Converters(dac_range="calibrated")), "0")
    calibrate(layer, [{"x": torch.zeros(0, 30)}, {"x": torch.randn(3, 30)}], lambda batch: layer(batch["x"]))
    with pytest.raises(PlanishError, match="layer '': its calibration inputs hold NaN or infinity"):
        calibrate(layer, [{"x": torch.full((2, 30), float("nan"))}], lambda batch: layer(batch["x"]))
    with pytest.raises(PlanishError, match="a weight matrix of 5 x 0 holds nothing"):
        CrossbarLinear(linear(5, 0), Setup())


def test_a_layer_under_two_names_is_one_set_of_crossbars_under_both() -> None:
    net = nn.ModuleDict({"a": linear(6, 6)})
    net["b"] = nn.Sequential(net["a"], nn.ReLU())
    to_crossbars(net, Setup())
    assert isinstance(net["a"], CrossbarLinear)
    assert net["b"][0] is net["a"]
    with pytest.raises(ConfigError, match=r"a single Linear, .* wrap it"):
        to_crossbars(linear(6, 6), Setup())


@pytest.mark.parametrize("dac_range", ["vector", "calibrated"])
def test_the_short_cut_of_one_chip_is_the_plain_product(dac_range: str) -> None:
    """Inputs of any leading dimensions, the same bits at every call, and new ranges and cells are noticed."""
    layer = CrossbarLinear(linear(20, 75), Setup(Physics(rates=FAULTY), Converters(dac_range=dac_range)))  # type: ignore[arg-type]
    draws = torch.Generator().manual_seed(1)
    for spread in (1.0, 3.0):
        x = spread * torch.randn(2, 7, 75, generator=draws)
        calibrate(layer, [{"x": x}], lambda batch: layer(batch["x"]))
        for part in (x, x[0], x[0, 0], x[:, :1]):
            vectors = part.reshape(1, -1, 75)
            wanted = fast(layer.inputs(vectors), layer.effective_weight()) + layer.bias
            first = layer(part)
            assert torch.equal(first, layer(part))
            torch.testing.assert_close(first, wanted.view(*part.shape[:-1], 20), rtol=1e-5, atol=1e-5)
    before = layer(x)
    layer.program((1,))
    assert relative(layer(x), before) > 0.01


def test_half_precision_keeps_its_format() -> None:
    layer = CrossbarLinear(linear(8, 12).half())
    x = torch.randn(4, 12).half()
    assert layer(x).dtype == torch.float16
    assert relative(layer(x).float(), linear(8, 12)(x.float())) < 0.02


# ---- which layers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("converters", [Converters(), Converters(adc_bits=8, adc_range="max")])
def test_a_forward_pass_needs_no_switch_for_gradients(converters: Converters) -> None:
    """Norms before a layer ask for gradients of its input; conversions have none, and say so by their result."""
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4))
    x = torch.randn(3, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RangeWarning)
        to_crossbars(net, Setup(converters=converters))
        y = net(x)
        with torch.no_grad():
            assert torch.equal(y, net(x))
    inside = net[2].product(net[1](torch.randn(3, 8)))
    assert not inside.requires_grad


def test_tied_heads_attention_projections_and_skipped_layers_stay_digital() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(10, 8)
            self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
            self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.first(self.encoder(self.table(ids))))

    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    assert list(mapped_layers(net)) == ["encoder.linear1", "encoder.linear2", "first"]
    assert list(mapped_layers(net, ["enc*"])) == ["first"]
    with pytest.raises(ConfigError, match="matches no layer"):
        mapped_layers(net, ["decoder.*"])
    ids = torch.arange(10).view(2, 5)
    before = net(ids)
    to_crossbars(net, Setup(Physics(rates=FaultRates(p_lrs=0.3))), skip=["first"])
    with torch.inference_mode(), plain_attention():
        assert relative(net(ids), before) > 0.01  # torch's fused layer would have passed by the cells
    assert net.head.weight is net.table.weight


def test_transposed_linear_layers_of_transformers() -> None:
    pytest.importorskip("transformers")
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(6, 9).requires_grad_(False)
    assert torch.equal(matrix(layer), layer.weight.t())
    x = torch.randn(4, 9)
    assert relative(CrossbarLinear(layer)(x), layer(x)) < 0.03


def test_layers_that_cannot_be_mapped_are_named() -> None:
    grouped = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    with pytest.raises(ConfigError, match="layer '0': a convolution with groups = 2"):
        mapped_layers(grouped)
    with pytest.raises(ConfigError, match="groups = 2"):
        CrossbarConv2d(grouped[0])
    assert mapped_layers(grouped, ["0"]) == {}
    with pytest.raises(ConfigError, match="no linear layer"):
        to_crossbars(nn.Sequential(nn.ReLU()))
    with pytest.raises(ConfigError, match="protection names the layer 'x'"):
        to_crossbars(nn.Sequential(linear(2, 2)), protection={"x": NO_PROTECTION})
    poisoned = linear(3, 3)
    poisoned.weight[1, 1] = float("nan")
    with pytest.raises(PlanishError, match="layer 'bad': a weight matrix holds NaN"):
        CrossbarLinear(poisoned, name="bad")


def test_ranges_that_were_never_measured_are_an_error() -> None:
    layer = CrossbarLinear(linear(3, 4), Setup(converters=Converters(adc_bits=8)))
    with pytest.raises(PlanishError, match="calibrate the network first"):
        layer(torch.ones(1, 4))
    net = nn.Sequential(linear(3, 4), linear(2, 3))
    to_crossbars(net, Setup(converters=Converters(adc_bits=8)))
    with pytest.raises(PlanishError, match="no calibration batch reaches it"):
        calibrate(net, [{"x": torch.ones(1, 4)}], lambda batch: net[0](batch["x"]))
    for bad in (
        {"dac_bits": 1},
        {"adc_bits": 0},
        {"dac_bits": None, "dac_serial": True},
        {"adc_percentile": 10.0},
    ):
        with pytest.raises(ConfigError):
            Converters(**bad)  # type: ignore[arg-type]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_codes_are_the_same_on_a_gpu() -> None:
    dense, x = linear(768, 768), torch.randn(2, 32, 768)
    layer = CrossbarLinear(dense, Setup(Physics(rates=FAULTY), Converters(adc_bits=8)))
    calibrate(layer, [{"x": x[0]}], lambda batch: layer(batch["x"]))
    found = []
    for device in ("cpu", "cuda"):
        layer.to(device)
        layer.program((0, 1))
        sliced = layer.sliced()
        found.append(sliced.codes(sliced.kept(layer.inputs(x.to(device)))).cpu())
    assert torch.equal(*found)
    assert len(crossbars(layer)) == 1
