from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planish.errors import PlanishError
from planish_sdk.blocks import find_blocks
from planish_sdk.fixtures import PlainDecoder, tiny
from planish_sdk.views import weight_views

pytestmark = pytest.mark.model


def views_of(name: str, **options: bool):
    return weight_views(find_blocks(tiny(name))[1][0], **options)


def test_names_and_shapes_of_a_grouped_query_block():
    shapes = {name: view.shape for name, view in views_of("llama").items()}
    assert shapes == {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (56, 32),
        "mlp.up_proj": (56, 32),
        "mlp.down_proj": (32, 56),
    }


def test_conv1d_reads_transposed_without_a_copy():
    block = find_blocks(tiny("gpt2"))[1][0]
    view = weight_views(block)["mlp.c_fc"]
    assert view.shape == (56, 32)
    assert torch.equal(view.read(), block.mlp.c_fc.weight.T)
    assert view.read().data_ptr() == block.mlp.c_fc.weight.data_ptr()


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "gpt_oss"])
def test_every_expert_has_views_and_routers_have_none(name):
    views = views_of(name)
    experts = [view for view in views.values() if view.routed_by is not None]
    assert sum(view.shape[0] * view.shape[1] for view in experts) == 4 * 3 * 24 * 32
    assert len({view.family for view in experts}) in (2, 3)
    assert all(view.shape[1] in (24, 32) and view.shape[0] in (24, 32, 48) for view in experts)
    downs = [view for view in experts if view.shape[1] == 24]
    assert len(downs) == 4
    assert not any(view.shape[0] in (1, 4) for view in views.values())
    routers = set(views_of(name, include_routers=True)) - set(views)
    assert {4} <= {views_of(name, include_routers=True)[router].shape[0] for router in routers} <= {1, 4}


def test_expert_slices_cover_the_fused_parameter_once():
    block = find_blocks(tiny("gpt_oss"))[1][0]
    views = weight_views(block)
    stacked = torch.stack([views[f"mlp.experts.gate_up_proj[{e}]"].read() for e in range(4)])
    assert torch.equal(stacked, block.mlp.experts.gate_up_proj.transpose(1, 2))


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(["llama", "gpt2", "mixtral", "gpt_oss"]),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    pick=st.integers(0, 100),
)
def test_zero_writes_zeros_and_nothing_else(name, seed, dtype, pick):
    block = find_blocks(tiny(name, dtype=dtype))[1][0]
    before = {key: value.clone() for key, value in block.state_dict().items()}
    views = weight_views(block)
    view = views[sorted(views)[pick % len(views)]]
    mask = torch.rand(view.shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    expected = torch.where(mask, 0.0, view.read())
    view.zero_(mask)
    assert torch.equal(view.read(), expected)
    changed = sum(int((value != before[key]).sum()) for key, value in block.state_dict().items())
    assert changed == int(mask.sum())


@pytest.mark.parametrize("bad", [torch.ones(16, 32), torch.ones(32, 16, dtype=torch.bool)])
def test_zero_refuses_a_mask_that_does_not_fit(bad):
    view = views_of("llama")["self_attn.k_proj"]
    before = view.read().clone()
    with pytest.raises(PlanishError, match=r"self_attn\.k_proj.*\[16, 32\]"):
        view.zero_(bad)
    assert torch.equal(view.read(), before)


def test_views_follow_weights_that_are_loaded_anew():
    block = find_blocks(tiny("llama"))[1][0]
    view = weight_views(block)["mlp.up_proj"]
    block.load_state_dict({k: torch.full_like(v, 3) for k, v in block.state_dict().items()}, assign=True)
    assert (view.read() == 3).all()


def test_a_weight_used_twice_is_tied_and_listed_once():
    model = PlainDecoder()
    model.blocks[1].q_proj.weight = model.blocks[0].q_proj.weight
    model.blocks[0].k_proj.weight = model.blocks[0].v_proj.weight
    alone, known = weight_views(model.blocks[0]), weight_views(model.blocks[0], model=model)
    assert "k_proj" in alone
    assert "v_proj" not in alone
    assert [name for name, view in alone.items() if view.tied] == ["k_proj"]
    assert [name for name, view in known.items() if view.tied] == ["q_proj", "k_proj"]


def test_a_list_of_attention_heads_is_not_one_of_experts():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleList(nn.Linear(8, 2) for _ in range(4))
            self.proj = nn.Linear(8, 8)

    views = weight_views(nn.ModuleDict({"attn": Heads()}))
    assert all(view.routed_by is None for view in views.values())
    assert len(views) == 5


def test_a_narrow_expert_is_no_router():
    moe = nn.ModuleDict(
        {
            "gate": nn.Linear(8, 4),
            "shared_gate": nn.Linear(8, 1),
            "experts": nn.ModuleList(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 1)) for _ in range(4)),
        }
    )
    views = weight_views(nn.ModuleDict({"mlp": moe}))
    assert set(views) == {f"mlp.experts.{expert}.{layer}" for expert in range(4) for layer in range(2)}
    assert {view.routed_by for view in views.values()} == {moe}
    assert {view.family for view in views.values()} == {"mlp.experts.*.0", "mlp.experts.*.1"}


def test_quantised_weights_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(PlanishError, match=r"torch\.int8"):
        weight_views(nn.ModuleDict({"fc": layer}))
