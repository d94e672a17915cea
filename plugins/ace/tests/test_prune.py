"""Pruning whole models: what goes, what stays, in which order, and what a report says about it."""

from __future__ import annotations

import json

import ace_reference as reference
import pytest
import torch
from torch import Tensor, nn

from planish.errors import DataError, PlanishError
from planish_ace.config import AceConfig
from planish_ace.metrics import Metric
from planish_ace.prune import calibration_windows, prune
from planish_sdk.blocks import find_blocks, weight_views
from planish_sdk.fixtures import TINY, tiny

WINDOWS = torch.randint(3, 96, (6, 10), generator=torch.Generator().manual_seed(5))
MOE = ("mixtral", "qwen2_moe", "gpt_oss")
ONE_OF_EACH = [
    AceConfig(metric="magnitude", sparsity=0.3),
    AceConfig(sparsity=0.6),
    AceConfig(metric="cosp+varp", base="ria", pattern="2:4", propagate="dense"),
    AceConfig(metric="cosp", pattern="4:8"),
]


class Store:
    """Units kept in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[str, Tensor]] = {}

    def __call__(self, name: str) -> Store.Unit:
        return Store.Unit(self.kept, name)

    class Unit:
        def __init__(self, kept: dict[str, dict[str, Tensor]], name: str) -> None:
            self._kept, self._name = kept, name

        def load(self) -> dict[str, Tensor] | None:
            return self._kept.get(self._name)

        def save(self, tensors: dict[str, Tensor]) -> None:
            self._kept[self._name] = {key: tensor.clone() for key, tensor in tensors.items()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Every prunable matrix [d_out, d_in] by its full name."""
    path, blocks = find_blocks(model)
    return {
        f"{path}.{i}.{name}": view.read().clone()
        for i, block in enumerate(blocks)
        for name, view in weight_views(block, model=model).items()
    }


def assert_counts(before: Tensor, after: Tensor, config: AceConfig) -> None:
    """The zeros of every row are those asked for (the random weights held none)."""
    assert (before != 0).all()
    columns = after.shape[1]
    group = config.group
    expected = int(columns * config.row_sparsity) if group is None else group.pruned_of(columns)
    assert (after == 0).sum(1).eq(expected).all()
    if group is not None:
        full = columns - columns % group.m
        assert (after[:, :full].reshape(-1, group.m) == 0).sum(1).eq(group.pruned).all()


@pytest.mark.model
@pytest.mark.parametrize("config", ONE_OF_EACH, ids=lambda c: f"{c.metric}-{c.pattern}")
@pytest.mark.parametrize("family", TINY)
def test_every_family_loses_exact_counts_and_nothing_else_changes(family: str, config: AceConfig) -> None:
    model = tiny(family)
    before, all_before = matrices(model), state(model)
    report = prune(model, WINDOWS, config)
    after = matrices(model)
    assert report.layers.keys() == before.keys()
    for name, weight in after.items():
        assert_counts(before[name], weight, config)
        assert torch.equal(weight[weight != 0], before[name][weight != 0])
        assert report.layers[name] == (weight == 0).float().mean(dtype=torch.float64).item()
    touched = {id(view.parameter) for block in find_blocks(model)[1] for view in weight_views(block).values()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in touched:
            assert torch.equal(parameter, all_before[name]), name
    zeros = sum(int((weight == 0).sum()) for weight in after.values())
    assert (report.zeros, report.weights) == (zeros, sum(weight.numel() for weight in after.values()))
    with torch.no_grad():
        assert torch.isfinite(getattr(out := model(WINDOWS), "logits", out)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    model = tiny(family, dtype=dtype)
    before = matrices(model)
    prune(model, WINDOWS, AceConfig(metric="cosp+varp", sparsity=0.5))
    for name, weight in matrices(model).items():
        assert weight.dtype == dtype
        assert torch.equal(weight[weight != 0], before[name][weight != 0])
        assert (weight == 0).sum(1).ge(weight.shape[1] // 2).all()


@pytest.mark.model
@pytest.mark.parametrize("metric", [Metric("varp"), Metric("cosp"), Metric("ria")], ids=lambda m: m.name)
@pytest.mark.parametrize("propagate", ["pruned", "dense"])
def test_order_of_operations(metric: Metric, propagate: str) -> None:
    model, expected = tiny("llama"), tiny("llama")
    blocks = find_blocks(expected)[1]
    linears = [[m for m in block.modules() if isinstance(m, nn.Linear)] for block in blocks]
    if propagate == "dense":
        linears = [[layer for block in linears for layer in block]]
    for layers in linears:
        reference.block_sequential(expected, WINDOWS[:2], layers, metric, 0.5)
    prune(model, WINDOWS[:2], AceConfig(metric=metric.name, sparsity=0.5, propagate=propagate))
    for name, weight in matrices(expected).items():
        assert torch.equal(matrices(model)[name], weight), name


def test_propagation_matters() -> None:
    pruned, dense = tiny("llama"), tiny("llama")
    prune(pruned, WINDOWS, AceConfig(sparsity=0.7))
    prune(dense, WINDOWS, AceConfig(sparsity=0.7, propagate="dense"))
    a, b = matrices(pruned), matrices(dense)
    assert all(torch.equal(a[name], b[name]) for name in a if ".0." in name and "down" not in name)
    assert any(not torch.equal(a[name], b[name]) for name in a if ".2." in name)


def test_conv1d_is_scored_on_its_transpose() -> None:
    model = tiny("gpt2")
    layer = find_blocks(model)[1][0].mlp.c_fc  # weight [d_in, d_out]
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    with torch.no_grad():
        model(WINDOWS)
    hook.remove()
    before = layer.weight.detach().clone()
    score = reference.scores(before.T, seen[0].reshape(-1, before.shape[0]), Metric("cosp"))
    prune(model, WINDOWS, AceConfig(metric="cosp", sparsity=0.5))
    for output in range(before.shape[1]):
        gone = (layer.weight[:, output] == 0).nonzero().flatten().tolist()
        assert gone == reference.lowest(score[output], before.shape[0] // 2)


@pytest.mark.model
@pytest.mark.parametrize("family", MOE)
def test_experts_without_tokens_fall_back_to_magnitude(family: str) -> None:
    model, by_magnitude = tiny(family), tiny(family)
    report = prune(model, WINDOWS[:1, :1], AceConfig(sparsity=0.5))  # one token reaches two of four experts
    prune(by_magnitude, None, AceConfig(metric="magnitude", sparsity=0.5))
    routed = [name for name in report.layers if "experts" in name and "shared" not in name]
    assert len(report.fallbacks) == len(routed) // 2
    assert set(report.fallbacks) < set(routed)
    after, expected = matrices(model), matrices(by_magnitude)
    assert all(torch.equal(after[name], expected[name]) for name in report.fallbacks)
    others = set(routed) - set(report.fallbacks)
    assert any(not torch.equal(after[name], expected[name]) for name in others)


def test_no_expert_falls_back_with_tokens_enough() -> None:
    assert prune(tiny("mixtral"), WINDOWS.repeat(2, 1), AceConfig()).fallbacks == []


def test_tied_weights_stay() -> None:
    model = tiny("llama-tied")
    before = model.get_input_embeddings().weight.detach().clone()
    prune(model, WINDOWS, AceConfig())
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight

    shared = tiny("plain")
    shared.blocks[1].fc1.weight = shared.blocks[0].fc1.weight
    before = shared.blocks[0].fc1.weight.detach().clone()
    report = prune(shared, WINDOWS, AceConfig())
    assert report.skipped == ["blocks.0.fc1", "blocks.1.fc1"]
    assert torch.equal(shared.blocks[0].fc1.weight, before)
    assert not set(report.skipped) & set(report.layers)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_batch_size_changes_no_mask(family: str) -> None:
    one, all_at_once = tiny(family), tiny(family)
    prune(one, WINDOWS, AceConfig(batch_size=1))
    prune(all_at_once, WINDOWS, AceConfig(batch_size=64))
    same = [
        torch.equal(a, b) for a, b in zip(matrices(one).values(), matrices(all_at_once).values(), strict=True)
    ]
    assert all(same)


def test_skip_bos_leaves_the_first_position_out() -> None:
    model = tiny("llama")
    layer = find_blocks(model)[1][0].mlp.up_proj
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    with torch.no_grad():
        model(WINDOWS)
    hook.remove()
    weight = layer.weight.detach().clone()
    metric = Metric("cosp")
    skipped, whole = (reference.scores(weight, x.flatten(0, 1), metric) for x in (seen[0][:, 1:], seen[0]))
    prune(model, WINDOWS, AceConfig(metric="cosp", skip_bos=True, batch_size=4))
    masks = [(row == 0).nonzero().flatten().tolist() for row in layer.weight]
    count = weight.shape[1] // 2
    assert masks == [reference.lowest(row, count) for row in skipped]
    assert masks != [reference.lowest(row, count) for row in whole]


def test_skip_bos_is_refused_for_experts() -> None:
    with pytest.raises(PlanishError, match=r"^skip_bos = true: .*expert"):
        prune(tiny("mixtral"), WINDOWS, AceConfig(skip_bos=True))


RESUMED = [
    ("llama", AceConfig()),
    ("llama", AceConfig(propagate="dense", metric="cosp", pattern="2:4")),
    ("mixtral", AceConfig(propagate="dense")),
    ("gpt_oss", AceConfig()),
    ("llama", AceConfig(pattern="structured", ffn_sparsity=0.3, head_sparsity=0.5, reconstruct=True)),
    ("llama", AceConfig(pattern="structured", ffn_sparsity=0.3, propagate="dense")),
    ("gpt2", AceConfig(metric="magnitude")),
]


@pytest.mark.model
@pytest.mark.parametrize(
    ("family", "config"), RESUMED, ids=lambda value: str(getattr(value, "pattern", value))
)
@pytest.mark.parametrize("died_after", [1, 2, 3])
def test_a_killed_run_resumes_to_the_same_bytes(family: str, config: AceConfig, died_after: int) -> None:
    class Killed(Exception):
        pass

    def die(done: int, total: int, text: str) -> None:
        if done == died_after:
            raise Killed

    windows = WINDOWS[:1, :2]
    whole, resumed, store = tiny(family), tiny(family), Store()
    expected = prune(whole, windows, config)
    with pytest.raises(Killed):
        prune(tiny(family), windows, config, unit=store, progress=die)
    report = prune(resumed, windows, config, unit=store)
    assert report.resumed == [f"{find_blocks(whole)[0]}.{i}" for i in range(died_after)]
    assert state(whole).keys() == state(resumed).keys()
    assert all(torch.equal(a, state(resumed)[name]) for name, a in state(whole).items())
    for name in ("layers", "fallbacks", "kept", "changes", "removed"):
        assert getattr(report, name) == getattr(expected, name)


@pytest.mark.model
def test_blocks_on_the_meta_device_are_loaded_one_at_a_time() -> None:
    source, expected, model, store = tiny("llama"), tiny("llama"), tiny("llama"), Store()
    prune(expected, WINDOWS, AceConfig())
    weights = source.state_dict()
    for block in find_blocks(model)[1]:
        block.to("meta")

    def load(name: str, block: nn.Module) -> None:
        part = {
            key.removeprefix(f"{name}."): value
            for key, value in weights.items()
            if key.startswith(f"{name}.")
        }
        block.load_state_dict({key: value.clone() for key, value in part.items()}, assign=True)

    prune(model, WINDOWS, AceConfig(), unit=store, load=load)
    for name, weight in matrices(expected).items():
        block, _, matrix = name.partition("s.")[2].partition(".")
        assert torch.equal(store.kept[f"model.layers.{block}"][matrix], weight)


def test_same_seed_same_windows_and_report() -> None:
    tokens = torch.arange(3, 90).repeat(9)
    config = AceConfig(calibration="fast", nsamples=5)
    models = [tiny("llama") for _ in range(3)]
    reports = [prune(model, tokens, config, seed=seed) for model, seed in zip(models, (7, 7, 8), strict=True)]
    assert (reports[0].samples, reports[0].seqlen, reports[0].tokens) == (5, 16, 80)
    first, second, other = (state(model) for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    facts = json.loads(json.dumps(reports[0].as_dict()))
    assert facts["options"]["metric"] == "varp"
    assert facts["seed"] == 7
    assert set(facts["seconds"]) == {"calibration", "scoring", "loading"}
    assert all(value >= 0 for value in facts["seconds"].values())
    assert facts["sparsity"] == 0.5


@pytest.mark.parametrize(
    ("options", "seqlen"),
    [({}, 64), ({"calibration": "fast"}, 16), ({"calibration": "fast", "seqlen": 20}, 20)],
)
def test_window_length(options: dict[str, object], seqlen: int) -> None:
    windows = calibration_windows(tiny("llama"), torch.arange(90), AceConfig(**options), seed=0)
    assert windows.shape == (128, seqlen)


BAD_DATA: list[tuple[Tensor | None, dict[str, object], str]] = [
    (None, {}, 'metric "varp" needs token ids, got none'),
    (torch.zeros(0, dtype=torch.long), {}, "got none"),
    (
        torch.ones(15, dtype=torch.long),
        {"calibration": "fast"},
        "15 tokens, fewer than one sample of seqlen = 16",
    ),
    (torch.ones(900, dtype=torch.long), {"seqlen": 65}, "seqlen = 65: the model's context is 64 tokens"),
    (torch.ones(2, 65, dtype=torch.long), {}, "seqlen = 65: the model's context is 64 tokens"),
    (torch.ones(9, dtype=torch.long), {"seqlen": 1, "skip_bos": True}, "no position is left"),
    (torch.full((90,), 5000), {}, "token ids from 5000 to 5000, the model knows 0 to"),
    (torch.full((90,), -1), {}, "token ids from -1 to -1"),
    (torch.ones(90), {}, "must be integer token ids"),
    (torch.ones(2, 3, 16, dtype=torch.long), {}, "of shape (2, 3, 16), must be"),
    (None, {"metric": "magnitude", "pattern": "structured", "reconstruct": True}, "needs token ids"),
]


@pytest.mark.parametrize(("tokens", "options", "message"), BAD_DATA, ids=lambda value: str(value)[:30])
def test_bad_calibration_is_one_line(tokens: Tensor | None, options: dict[str, object], message: str) -> None:
    model = tiny("llama")
    before = state(model)
    with pytest.raises(DataError) as caught:
        prune(model, tokens, AceConfig(**options))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(model).items())


def test_magnitude_reads_no_data() -> None:
    report = prune(tiny("llama"), None, AceConfig(metric="magnitude"))
    assert (report.tokens, report.fallbacks, report.sparsity) == (0, [], 0.5)


@pytest.mark.parametrize("metric", ["magnitude", "varp", "cosp"])
def test_a_bad_weight_names_its_layer(metric: str) -> None:
    model = tiny("llama")
    with torch.no_grad():
        find_blocks(model)[1][1].mlp.up_proj.weight[3, 4] = float("nan")
    with pytest.raises(PlanishError, match=r"^model\.layers\.1\.mlp\.up_proj: the weight holds NaN"):
        prune(model, WINDOWS, AceConfig(metric=metric))


def test_a_model_without_own_weights_is_refused() -> None:
    model = tiny("plain")
    for block in model.blocks[1:]:
        for name, module in block.named_modules():
            if isinstance(module, nn.Linear):
                module.weight = model.blocks[0].get_submodule(name).weight
    with pytest.raises(PlanishError, match="no linear weight of their own"):
        prune(model, WINDOWS, AceConfig())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("config", ONE_OF_EACH, ids=lambda c: f"{c.metric}-{c.pattern}")
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_blocks_are_pruned_on_the_gpu(family: str, config: AceConfig, dtype: torch.dtype) -> None:
    model, same = tiny(family, dtype=dtype), tiny(family, dtype=dtype)
    before = matrices(model)
    prune(model, WINDOWS, config, device="cuda")
    prune(same, WINDOWS, config, device="cuda")
    for name, weight in matrices(model).items():
        assert weight.device.type == "cpu"  # a block returns to where it was
        assert torch.equal(weight, matrices(same)[name])
        assert torch.equal(weight[weight != 0], before[name][weight != 0])
        if dtype == torch.float32:
            assert_counts(before[name], weight, config)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_structured_on_the_gpu() -> None:
    model = tiny("llama")
    config = AceConfig(pattern="structured", ffn_sparsity=0.3, head_sparsity=0.5, reconstruct=True)
    report = prune(model, WINDOWS, config, device="cuda")
    assert report.uniform
    with torch.no_grad():
        assert model(WINDOWS).logits.isfinite().all()
