from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planish.errors import PlanishError
from planish_sdk.blocks import BlockWalker, find_blocks
from planish_sdk.fixtures import TINY, PlainDecoder, tiny
from planish_sdk.views import weight_views

pytestmark = pytest.mark.model

MOE = ["mixtral", "qwen2_moe", "gpt_oss"]
MASKED = [name for name in TINY if name != "plain"]


def tokens(samples: int = 6, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 96, (samples, length), generator=torch.Generator().manual_seed(seed))


def padded(samples: int = 4, length: int = 12) -> dict[str, torch.Tensor]:
    """Left padding of 0, 1, 2, … positions."""
    mask = torch.ones(samples, length, dtype=torch.int64)
    for row in range(samples):
        mask[row, :row] = 0
    return {"input_ids": tokens(samples, length) * mask, "attention_mask": mask}


class Entering:
    """Records what enters modules during one run, as rows."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.rows: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
        self.hooks = [
            module.register_forward_pre_hook(
                lambda module, args, name=name: self.rows[name].append(args[0].reshape(-1, args[0].shape[-1]))
            )
            for name, module in modules.items()
        ]

    def __enter__(self):
        return self.rows

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


class Keep:
    """An observer that keeps what it is shown."""

    def __init__(self, views):
        self.views = views
        self.x, self.outputs = [], []

    def update(self, x, outputs):
        self.x.append(x.clone())
        self.outputs.append({name: y.clone() for name, y in outputs.items()})


def block_outputs(model, batches) -> list[list[torch.Tensor]]:
    """Output of every block in a plain run of the model, by batch and block."""
    seen: list[torch.Tensor] = []

    def record(module, args, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    hooks = [block.register_forward_hook(record) for block in find_blocks(model)[1]]
    runs = []
    with torch.no_grad():
        for batch in batches:
            seen.clear()
            model(**batch) if isinstance(batch, dict) else model(batch)
            runs.append(list(seen))
    for hook in hooks:
        hook.remove()
    return runs


def ordered(rows: torch.Tensor) -> torch.Tensor:
    """The rows of a matrix in an order that does not depend on how they came."""
    return rows[rows[:, 0].argsort()]


def prune(step, stats) -> None:
    """Zero half of each row by |W| * |x|; by |W| alone where no token came."""
    for name, view in step.views.items():
        score = view.read().float().abs()
        if name in stats:
            score = score * torch.cat(stats[name].x).float().square().sum(0).sqrt()
        order = score.argsort(dim=1, stable=True)
        mask = torch.zeros(view.shape, dtype=torch.bool)
        view.zero_(mask.scatter_(1, order[:, : view.shape[1] // 2], True))


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("llama", "model.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
        ("plain", "blocks"),
    ],
)
def test_find_blocks(name, path):
    found, blocks = find_blocks(tiny(name))
    assert found == path
    assert len(blocks) == 3


def test_find_blocks_ignores_experts_and_smaller_stacks():
    model = nn.ModuleDict({"tower": nn.ModuleList(nn.Linear(4, 4) for _ in range(9)), "lm": tiny("mixtral")})
    assert find_blocks(model)[0] == "lm.model.layers"


def test_find_blocks_says_what_it_looked_at():
    model = nn.ModuleDict({"parts": nn.ModuleList([nn.Linear(2, 2), nn.Embedding(2, 2)])})
    with pytest.raises(PlanishError, match=r"parts \(Embedding, Linear\)"):
        find_blocks(model)


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("name", TINY)
def test_walk_of_an_unchanged_model_equals_its_forward(name, propagate):
    model, windows = tiny(name), tokens()
    expected = block_outputs(model, windows.split(4))
    walker = BlockWalker(model, windows, batch_size=4, propagate=propagate)
    for step in walker:
        if step.index:
            for hidden, outputs in zip(walker.hidden, expected, strict=True):
                torch.testing.assert_close(hidden, outputs[step.index - 1], rtol=1e-5, atol=1e-5)
        step.collect(Keep)
    for hidden, outputs in zip(walker.hidden, expected, strict=True):
        torch.testing.assert_close(hidden, outputs[-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n in TINY if n not in MOE])
def test_observers_see_what_the_layers_see(name):
    model, windows = tiny(name), tokens()
    for step in BlockWalker(model, windows, batch_size=4):
        with Entering({name: view.module for name, view in step.views.items()}) as inputs:
            seen = step.collect(Keep, outputs=True)
        assert set(seen) == set(step.views)
        for key, view in step.views.items():
            x = torch.cat(seen[key].x)
            assert x.shape == (windows.numel(), view.shape[1])
            assert torch.equal(x, torch.cat(inputs[key]))
            y = torch.cat([outputs[key] for outputs in seen[key].outputs])
            torch.testing.assert_close(y, x @ view.read().T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("llama", [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]),
        ("phi", [("q_proj", "k_proj", "v_proj", "fc1"), ("dense",), ("fc2",)]),
        ("gpt2", [("c_attn",), ("c_proj",), ("c_fc",), ("c_proj",)]),
    ],
)
def test_weights_with_one_input_share_one_observer(name, groups):
    made = []

    def factory(views):
        made.append(tuple(view.name.rpartition(".")[2] for view in views))
        return Keep(views)

    step = next(iter(BlockWalker(tiny(name), tokens(), batch_size=2)))
    seen = step.collect(factory)
    assert sorted(made) == sorted(groups)
    for observer in seen.values():
        assert len(observer.x) == 3
        assert observer.outputs == [{}, {}, {}]
        assert all(seen[view.name] is observer for view in observer.views)


@pytest.mark.parametrize("name", MASKED)
def test_padding_is_removed(name):
    model, batch = tiny(name), padded()
    real = batch["attention_mask"].bool()
    expected = block_outputs(model, [batch])[0]
    walker = BlockWalker(model, [batch])
    for step in walker:
        if step.index:
            torch.testing.assert_close(
                walker.hidden[0][real], expected[step.index - 1][real], rtol=1e-5, atol=1e-5
            )
        outside = {n: v.module for n, v in step.views.items() if "experts" not in n and "shared" not in n}
        with Entering(outside) as inputs:
            seen = step.collect(Keep)
        for key, rows in inputs.items():
            assert torch.equal(torch.cat(seen[key].x), rows[0][real.flatten()])
        for key in set(step.views) - set(inputs):
            if step.views[key].routed_by is None:
                assert sum(len(x) for x in seen[key].x) == int(real.sum())


@pytest.mark.parametrize("with_padding", [False, True])
@pytest.mark.parametrize("name", MOE)
def test_experts_see_their_routed_tokens(name, with_padding):
    model = tiny(name)
    batch = padded() if with_padding else {"input_ids": tokens(4)}
    real = batch.get("attention_mask", torch.ones(4, 12)).bool().flatten()
    for step in BlockWalker(model, [batch]):
        every = weight_views(step.block, include_routers=True)
        router = next(v.module for n, v in every.items() if n not in step.views and v.shape[0] == 4)
        with Entering({"router": router}) as inputs:
            seen = step.collect(Keep)
        x = inputs["router"][0][real]  # a second pass over the real tokens alone may follow
        chosen = F.linear(x, router.weight, getattr(router, "bias", None)).topk(2).indices
        for key, view in step.views.items():
            if view.routed_by is None or view.shape[1] != 32:
                continue
            expert = view.expert if view.expert is not None else int(key.split(".experts.")[1].split(".")[0])
            routed = x[(chosen == expert).any(1)]
            assert (key in seen) == (len(routed) > 0)
            if key in seen:
                shown = torch.cat(seen[key].x)
                torch.testing.assert_close(ordered(shown), ordered(routed), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MOE)
def test_an_expert_without_tokens_has_no_observer(name):
    step = next(iter(BlockWalker(tiny(name), tokens(1, 1))))
    seen = step.collect(Keep)
    experts = {view.name for view in step.views.values() if view.routed_by is not None}
    assert len(experts & set(seen)) == len(experts) // 2
    assert set(step.views) - experts <= set(seen)


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "gpt_oss"])
def test_masks_are_captured_by_block_and_stored_once(name):
    walker = BlockWalker(tiny(name), [padded(2), padded(2), padded(2)])
    next(iter(walker))

    def masks(calls):
        return [value for call in calls for value in call.kwargs.values() if getattr(value, "ndim", 0) == 4]

    by_block = [masks(calls) for calls in walker._calls]
    assert all(len(found) == 3 for found in by_block)
    assert not torch.equal(by_block[0][0], by_block[1][0])
    assert len({mask.data_ptr() for found in by_block for mask in found}) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "gpt_oss"])
def test_half_precision(name, dtype):
    model, windows = tiny(name, dtype=dtype), tokens()
    expected = block_outputs(model, [windows])[0]
    walker = BlockWalker(model, windows)
    for step in walker:
        assert all(observer.x[0].dtype == dtype for observer in step.collect(Keep).values())
    torch.testing.assert_close(walker.hidden[0], expected[-1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "plain"])
def test_pruned_propagation_equals_the_pruned_model(name):
    model, windows = tiny(name), tokens()
    walker = BlockWalker(model, windows, batch_size=3)
    for step in walker:
        prune(step, step.collect(Keep))
    expected = block_outputs(model, windows.split(3))
    for hidden, outputs in zip(walker.hidden, expected, strict=True):
        torch.testing.assert_close(hidden, outputs[-1], rtol=1e-5, atol=1e-5)


def test_dense_propagation_equals_the_dense_model():
    model, windows = tiny("llama"), tokens()
    expected = block_outputs(model, [windows])[0]
    walker = BlockWalker(model, windows, propagate="dense")
    for step in walker:
        prune(step, step.collect(Keep))
    assert torch.equal(walker.hidden[0], expected[-1])
    assert not torch.equal(block_outputs(model, [windows])[0][-1], expected[-1])


@pytest.mark.parametrize("propagate", ["pruned", "dense"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2_moe"])
def test_a_resumed_walk_gives_the_same_weights(name, propagate):
    whole, resumed = tiny(name), tiny(name)
    for step in BlockWalker(whole, tokens(), batch_size=4, propagate=propagate):
        prune(step, step.collect(Keep))
    done = [copy.deepcopy(block.state_dict()) for block in find_blocks(whole)[1][:2]]
    for step in BlockWalker(resumed, tokens(), batch_size=4, propagate=propagate):
        if step.index < 2:
            if propagate == "dense":
                step.forward_dense()
            step.block.load_state_dict(done[step.index])
        else:
            prune(step, step.collect(Keep))
    for key, value in resumed.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key


def test_blocks_on_the_meta_device_get_weights_and_lose_them_again():
    model, windows = tiny("llama"), tokens()
    expected = block_outputs(model, [windows])[0]
    states = [copy.deepcopy(block.state_dict()) for block in find_blocks(model)[1]]
    find_blocks(model)[1].to("meta")
    walker = BlockWalker(model, windows)
    for step in walker:
        with pytest.raises(PlanishError, match=rf"{step.name}: has no weights"):
            step.collect(Keep)
        step.block.load_state_dict(states[step.index], assign=True)
        step.collect(Keep)
    assert torch.equal(walker.hidden[0], expected[-1])
    assert all(p.is_meta for p in find_blocks(model)[1].parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_modes_and_configs_are_left_alone(name):
    model = tiny(name).train()
    find_blocks(model)[1][1].eval()
    model.config.use_cache = True
    model.config.output_hidden_states = True

    def state():
        return (
            [module.training for module in model.modules()],
            {key: str(value) for key, value in vars(model.config).items()},
            ["forward" in vars(module) for module in model.modules()],
            [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        )

    before = state()

    class Broken(Keep):
        def update(self, x, outputs):
            raise RuntimeError("broken observer")

    for step in BlockWalker(model, [padded()]):
        assert state() == before
        with pytest.raises(RuntimeError, match="broken observer"):
            step.collect(Broken)
        assert state() == before
        step.collect(Keep)
    assert state() == before
    assert torch.is_grad_enabled()


def test_hidden_states_are_overwritten_in_place():
    walker = BlockWalker(tiny("llama"), tokens(), batch_size=2)
    addresses = set()
    for step in walker:
        addresses.add(tuple(hidden.data_ptr() for hidden in walker.hidden))
        step.collect(Keep)
    assert len(addresses) == 1


def test_capture_runs_no_block():
    model = PlainDecoder()
    runs = []
    for block in model.blocks:
        block.fc1.register_forward_hook(lambda *_: runs.append(1))
    walk = iter(BlockWalker(model, tokens(), batch_size=2))
    next(walk)
    assert not runs


def test_a_batch_may_be_a_mapping_a_tensor_or_a_split():
    model = tiny("gpt2")
    walks = [
        BlockWalker(model, tokens()),
        BlockWalker(model, [{"input_ids": tokens()}]),
        BlockWalker(model, iter(tokens().split(2))),
        BlockWalker(model, [{"input_ids": tokens(), "attention_mask": torch.ones(6, 12)}], batch_size=4),
    ]
    finals = []
    for walker in walks:
        for _ in walker:
            pass
        finals.append(torch.cat(walker.hidden))
    for final in finals[1:]:
        torch.testing.assert_close(final, finals[0], rtol=1e-5, atol=1e-5)


class InPlaceBlock(nn.Module):
    """Overwrites the inputs and outputs of its layers as soon as it may."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(32, 32, bias=False)
        self.gate = nn.Linear(32, 32, bias=False)
        self.down = nn.Linear(32, 32, bias=False)

    def forward(self, hidden):
        x = hidden * 2
        up = self.up(x)
        product = up.relu_() * self.gate(x)
        x.zero_()
        return hidden + self.down(product).mul_(3)


def test_layers_that_are_overwritten_in_place_are_seen_as_they_were():
    model = PlainDecoder(depth=1)
    model.blocks[0] = InPlaceBlock()
    step = next(iter(BlockWalker(model, tokens(), batch_size=2)))
    entering = model.embed(tokens()).reshape(-1, 32).detach() * 2
    seen = step.collect(Keep, outputs=True)
    assert torch.equal(torch.cat(seen["up"].x), entering)
    for name in ("up", "gate", "down"):
        y = torch.cat([outputs[name] for outputs in seen[name].outputs])
        expected = torch.cat(seen[name].x) @ step.views[name].read().T
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


class FromTheStart(PlainDecoder):
    """Hands the embeddings to every block, beside the hidden states."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(MixingBlock() for _ in range(3))

    def forward(self, tokens):
        start = hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden, start=start)
        return hidden


class MixingBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(32, 32)

    def forward(self, hidden, start):
        return hidden + self.fc(hidden + start)


def test_embeddings_that_every_block_receives_stay_what_they_were():
    model, windows = FromTheStart(), tokens()
    expected = block_outputs(model, [windows])[0]
    walker = BlockWalker(model, windows)
    for step in walker:
        step.collect(Keep)
    assert torch.equal(walker.hidden[0], expected[-1])


class Altering(PlainDecoder):
    def forward(self, tokens):
        hidden = self.embed(tokens)
        for block in self.blocks:
            hidden = block(hidden) * 2
        return hidden


class Backwards(PlainDecoder):
    def forward(self, tokens):
        hidden = self.embed(tokens)
        for block in reversed(self.blocks):
            hidden = block(hidden)
        return hidden


class Skipping(PlainDecoder):
    def forward(self, tokens):
        return self.blocks[0](self.embed(tokens))


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Altering, r"block 1"), (Backwards, "in order"), (Skipping, "called 1 of its 3 blocks")],
)
def test_models_that_do_not_chain_their_blocks_are_refused(model, reason):
    broken = model()
    with pytest.raises(PlanishError, match=reason):
        next(iter(BlockWalker(broken, tokens())))
    assert not any("forward" in vars(block) for block in broken.blocks)


def test_batched_experts_are_refused():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.up = nn.Parameter(torch.randn(4, 32, 48))
            self.down = nn.Parameter(torch.randn(4, 24, 32))

        def forward(self, x):
            up = torch.bmm(x.reshape(1, -1, 32).expand(4, -1, -1), self.up)
            return torch.bmm(up[..., :24], self.down).sum(0).view_as(x)

    model = PlainDecoder(depth=1)
    model.blocks[0].fc2 = nn.Sequential(nn.Linear(56, 32), Experts())
    with pytest.raises(PlanishError, match="one batched product"):
        next(iter(BlockWalker(model, tokens()))).collect(Keep)


def test_a_weight_that_is_never_multiplied_is_refused():
    model = PlainDecoder(depth=1)
    model.blocks[0].spare = nn.Linear(32, 32)
    with pytest.raises(PlanishError, match="spare"):
        next(iter(BlockWalker(model, tokens()))).collect(Keep)


def test_bad_arguments():
    model = tiny("plain")
    with pytest.raises(PlanishError, match=r"propagate.*pruned, dense"):
        BlockWalker(model, tokens(), propagate="sideways")
    with pytest.raises(PlanishError, match="batch_size: got 0"):
        BlockWalker(model, tokens(), batch_size=0)
    with pytest.raises(PlanishError, match="batches: got none"):
        next(iter(BlockWalker(model, [])))


def test_a_walker_is_used_once_and_a_dense_step_collects_once():
    walker = BlockWalker(tiny("plain"), tokens(), propagate="dense")
    for step in walker:
        step.collect(Keep)
        with pytest.raises(PlanishError, match="already passed"):
            step.collect(Keep)
    with pytest.raises(PlanishError, match="already iterated"):
        next(iter(walker))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_blocks_visit_the_gpu_and_return(name):
    model, windows = tiny(name), tokens()
    expected = block_outputs(model, windows.split(4))
    walker = BlockWalker(model, windows, batch_size=4, device="cuda")
    for step in walker:
        assert {p.device.type for p in step.block.parameters()} == {"cuda"}
        seen = step.collect(Keep, outputs=True)
        assert all(x.is_cuda for observer in seen.values() for x in observer.x)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    for hidden, outputs in zip(walker.hidden, expected, strict=True):
        torch.testing.assert_close(hidden.cpu(), outputs[-1], rtol=1e-3, atol=1e-3)
