"""Structured pruning: sizes, what is kept, that the result opens as a plain model, and the refit."""

from __future__ import annotations

from pathlib import Path

import ace_reference as reference
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from planish.errors import PlanishError
from planish_ace.config import AceConfig
from planish_ace.metrics import Metric
from planish_ace.prune import prune
from planish_ace.structured import Plan, channels_kept, choose, groups_kept, refit
from planish_sdk.blocks import find_blocks
from planish_sdk.fixtures import tiny

WINDOWS = torch.randint(3, 96, (8, 12), generator=torch.Generator().manual_seed(5))
BOTH = AceConfig(pattern="structured", ffn_sparsity=0.3, head_sparsity=0.5)


def logits(model: nn.Module, tokens: Tensor = WINDOWS) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


@given(count=st.integers(2, 400), share=st.floats(0.01, 0.99), multiple=st.integers(1, 32))
def test_channels_are_a_multiple_near_the_share(count: int, share: float, multiple: int) -> None:
    nearest = max(1, round(count * (1 - share) / multiple)) * multiple
    if nearest >= count:
        with pytest.raises(PlanishError, match=f"of {count} channels with multiple = {multiple}"):
            channels_kept(count, share, multiple)
        return
    kept = channels_kept(count, share, multiple)
    assert kept % multiple == 0
    assert 0 < kept < count
    assert abs(kept - count * (1 - share)) <= multiple / 2 + 1e-6 or kept == multiple


def test_sizes_by_hand() -> None:
    assert [channels_kept(172, share, 8) for share in (0.25, 0.5, 0.99)] == [128, 88, 8]
    assert [groups_kept(4, share) for share in (0.25, 0.5, 0.99)] == [3, 2, 1]
    with pytest.raises(PlanishError, match=r"^head_sparsity = 0\.2: removes none of 4"):
        groups_kept(4, 0.2)
    with pytest.raises(
        PlanishError, match=r"^ffn_sparsity = 0\.01: keeps 172 of 172 channels with multiple = 4"
    ):
        channels_kept(172, 0.01, 4)


def test_the_best_channels_and_groups_stay() -> None:
    plan = Plan("down", 4, 2, "out", 2, 1)
    scores = {"down": torch.tensor([[1.0, 5, 0, 2], [1, 0, 4, 1]]), "out": torch.tensor([[1.0, 1, 0, 3]])}
    kept = choose(plan, scores)
    assert (kept.channels, kept.groups) == ([1, 2], [1])
    tied = choose(plan, {"down": torch.ones(2, 4), "out": torch.ones(1, 4)})
    assert (tied.channels, tied.groups) == ([2, 3], [1])


@pytest.mark.model
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3", "gemma2"])
def test_tensors_shrink_and_a_plain_model_opens_the_result(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny(family)
    total = sum(p.numel() for p in model.parameters())
    report = prune(model, WINDOWS, BOTH)
    assert report.uniform
    assert set(report.kept) == {f"model.layers.{i}" for i in range(3)}
    assert all(sizes == {"ffn_channels": (56, 40), "kv_groups": (2, 1)} for sizes in report.kept.values())
    assert report.removed == total - sum(p.numel() for p in model.parameters()) > 0
    assert report.zeros == 0
    model.save_pretrained(tmp_path)
    opened = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert opened.config.intermediate_size == 40
    assert opened.config.num_key_value_heads == 1
    torch.testing.assert_close(logits(opened), logits(model))


@pytest.mark.model
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_cutting_channels_equals_zeroing_their_columns(family: str) -> None:
    model, masked = tiny(family), tiny(family)
    config = AceConfig(metric="magnitude", pattern="structured", ffn_sparsity=0.4)
    report = prune(model, None, config)
    for before, after in zip(find_blocks(masked)[1], find_blocks(model)[1], strict=True):
        plan = Plan.of(before, 0.4, 0.0, 8)
        assert plan.down is not None
        whole, left = before.get_submodule(plan.down), after.get_submodule(plan.down)
        transposed = family == "gpt2"
        columns = whole.weight.detach() if transposed else whole.weight.detach().T
        sums = columns.abs().double().sum(1)
        gone = reference.lowest(sums, plan.channels - plan.keep_channels)
        kept = [j for j in range(plan.channels) if j not in gone]
        assert torch.equal(left.weight if transposed else left.weight.T, columns[kept])
        columns[gone] = 0
    torch.testing.assert_close(logits(model), logits(masked), rtol=1e-4, atol=1e-5)
    assert report.removed > 0
    assert report.uniform


def test_whole_groups_go() -> None:
    model = tiny("llama")  # four query heads of width 8, two key-value heads
    weight = find_blocks(model)[1][0].self_attn.o_proj.weight.detach().clone()
    prune(model, None, AceConfig(metric="magnitude", pattern="structured", head_sparsity=0.5))
    sums = weight.abs().sum(0).view(2, 16).sum(1)
    best = int(sums.argmax())
    left = find_blocks(model)[1][0].self_attn
    assert torch.equal(left.o_proj.weight, weight[:, best * 16 : best * 16 + 16])
    assert (left.q_proj.weight.shape[0], left.k_proj.weight.shape[0], left.v_proj.weight.shape[0]) == (
        16,
        8,
        8,
    )


def test_channels_are_chosen_by_the_metric_and_not_by_weights_alone() -> None:
    by_metric, by_magnitude = tiny("llama"), tiny("llama")
    prune(by_metric, WINDOWS, AceConfig(pattern="structured", ffn_sparsity=0.5))
    prune(by_magnitude, None, AceConfig(metric="magnitude", pattern="structured", ffn_sparsity=0.5))
    layers = [find_blocks(model)[1][0].mlp.down_proj.weight for model in (by_metric, by_magnitude)]
    assert layers[0].shape == layers[1].shape
    assert not torch.equal(*layers)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), ridge=st.sampled_from([1e-9, 1e-2, 1.0]))
def test_refit_is_the_ridge_minimum(seed: int, ridge: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, x = torch.randn(4, 9, generator=generator), torch.randn(50, 9, generator=generator)
    x = x @ torch.randn(9, 9, generator=generator)
    stays = torch.randperm(9, generator=generator) < 5
    found = refit(weight, x.T @ x, stays, ridge).double()
    w, x = weight.double(), x.double()
    kept = x[:, stays]
    penalty = ridge * (kept.T @ kept).diagonal().mean()

    def cost(candidate: Tensor) -> float:
        return (
            (x @ w.T - kept @ candidate.T).square().sum() + penalty * (candidate - w[:, stays]).square().sum()
        ).item()

    best = cost(found)
    assert best <= cost(w[:, stays]) * (1 + 1e-6)
    for _ in range(5):
        nudge = 1e-2 * torch.randn(found.shape, generator=generator, dtype=torch.float64)
        assert cost(found + nudge) > best


def test_refit_of_a_dead_input_keeps_the_weight() -> None:
    weight, stays = torch.randn(3, 4), torch.tensor([True, False, True, True])
    assert torch.equal(refit(weight, torch.zeros(4, 4), stays, 1e-3), weight[:, stays])


@pytest.mark.model
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_reconstruction_brings_the_outputs_nearer(family: str) -> None:
    dense = logits(tiny(family))
    errors = []
    for reconstruct in (False, True):
        model = tiny(family)
        prune(model, WINDOWS, AceConfig(pattern="structured", ffn_sparsity=0.5, reconstruct=reconstruct))
        errors.append((logits(model) - dense).square().mean().item())
    assert errors[1] < errors[0]


@pytest.mark.parametrize("metric", ["varp", "cosp+varp", "ria"])
def test_structured_runs_with_every_kind_of_statistic(metric: str) -> None:
    report = prune(tiny("llama"), WINDOWS, BOTH.model_copy(update={"metric": metric}))
    assert report.uniform


def test_a_mixture_of_experts_is_refused_before_anything_changes() -> None:
    model = tiny("mixtral")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(PlanishError, match="mixture of experts"):
        prune(model, WINDOWS, BOTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_channel_has_the_sum_of_its_down_column() -> None:
    model = tiny("llama")
    down = find_blocks(model)[1][0].mlp.down_proj
    seen: list[Tensor] = []
    hook = down.register_forward_hook(lambda m, args, out: seen.append(args[0].detach().flatten(0, 1)))
    logits(model)
    hook.remove()
    before = down.weight.detach().clone()
    totals = reference.scores(before, seen[0], Metric("cosp")).sum(0)
    gone = reference.lowest(totals, 24)
    prune(model, WINDOWS, AceConfig(metric="cosp", pattern="structured", ffn_sparsity=0.45))
    kept = [j for j in range(56) if j not in gone]
    assert torch.equal(find_blocks(model)[1][0].mlp.down_proj.weight, before[:, kept])
