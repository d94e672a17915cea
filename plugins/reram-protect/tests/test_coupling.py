"""Which gates are shared, over the families whose projections are laid out differently."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from planish_reram.mapping import mapped_layers, matrix
from planish_reram_protect.coupling import couple
from planish_reram_protect.gates import OPEN, Gated
from planish_sdk.fixtures import tiny

pytestmark = pytest.mark.model


def gated(module: nn.Module, last: str = "") -> dict[str, Gated]:
    shapes = {name: tuple(matrix(layer).shape) for name, layer in mapped_layers(module).items()}
    found = {layer.name: layer for layer in couple(module, shapes, last)}
    assert found.keys() == shapes.keys()
    for name, layer in found.items():
        assert (len(layer.rows), len(layer.columns)) == shapes[name]
    return found


def bert(kind: str) -> nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    if kind == "distilbert":
        sizes = {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **sizes)).eval()


def heads(
    layers: dict[str, Gated], prefix: str, names: tuple[str, str, str, str]
) -> Iterator[tuple[Tensor, ...]]:
    """Rows of q, k, v and columns of o, by head of 8 (q, o) or by key-value head (k, v)."""
    q, k, v, o = (layers[f"{prefix}.{name}"] for name in names)
    yield tuple(side.view(-1, 8) for side in (q.rows, k.rows, v.rows, o.columns))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "opt", "plain"])
def test_query_shares_with_key_and_value_with_output(family: str) -> None:
    module = tiny(family)
    layers = gated(module)
    path = next(name for name in layers if name.endswith("q_proj"))
    prefix = path.removesuffix(".q_proj") if "." in path else ""
    output = next(n for n in ("o_proj", "out_proj") if f"{prefix}.{n}" in layers)
    ((q, k, v, o),) = heads(layers, prefix, ("q_proj", "k_proj", "v_proj", output))
    group = len(q) // len(k)  # query heads of one key-value head share its gates
    assert torch.equal(q, k.repeat_interleave(group, 0))
    assert torch.equal(o, v.repeat_interleave(group, 0))
    assert not set(k.flatten().tolist()) & set(v.flatten().tolist())
    assert bool((layers[f"{prefix}.{output}"].rows == OPEN).all()), "the residual stream is not pruned"
    assert len(set(k.flatten().tolist())) == k.numel(), "each head has a mask of its own"


@pytest.mark.parametrize(
    ("family", "up", "down"),
    [("llama", ("gate_proj", "up_proj"), "down_proj"), ("opt", ("fc1",), "fc2"), ("plain", ("fc1",), "fc2")],
)
def test_feed_forward_shares_its_channels(family: str, up: tuple[str, ...], down: str) -> None:
    layers = gated(tiny(family))
    prefix = next(n.removesuffix(f".{down}") for n in layers if n.endswith(down))
    for name in up:
        assert torch.equal(layers[f"{prefix}.{name}"].rows, layers[f"{prefix}.{down}"].columns)
        assert layers[f"{prefix}.{name}"].drops_bias
    assert bool((layers[f"{prefix}.{down}"].rows == OPEN).all())


@pytest.mark.parametrize(
    ("kind", "prefix", "names", "ffn"),
    [
        (
            "bert",
            "bert.encoder.layer.1.",
            ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
            ("intermediate.dense", "output.dense"),
        ),
        (
            "distilbert",
            "distilbert.transformer.layer.1.",
            ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            ("ffn.lin1", "ffn.lin2"),
        ),
    ],
)
def test_encoders(kind: str, prefix: str, names: tuple[str, ...], ffn: tuple[str, str]) -> None:
    layers = gated(bert(kind), last="classifier")
    q, k, v, o = (layers[prefix + name] for name in names)
    assert torch.equal(q.rows, k.rows)
    assert torch.equal(v.rows, o.columns)
    assert torch.equal(layers[prefix + ffn[0]].rows, layers[prefix + ffn[1]].columns)
    for name in (names[3], ffn[1]):
        assert bool((layers[prefix + name].rows == OPEN).all())
    assert bool((layers["classifier"].rows == OPEN).all())


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "phi", "phi3", "gpt2", "gpt_neox", "falcon", "falcon-grouped"]
)
def test_dropping_a_shared_channel_on_one_side_or_on_both_is_the_same(family: str) -> None:
    """The proof that two sides belong together: once the reader's column is gone, its writer's row no longer matters."""
    module = tiny(family)
    layers = gated(module)
    ids = torch.arange(4, 14)[None]
    writers = {g for layer in layers.values() for g in layer.rows.tolist() if g != OPEN}
    readers = {g for layer in layers.values() for g in layer.columns.tolist()}
    shared = sorted(writers & readers)
    assert shared, "nothing is coupled"
    gone = torch.tensor(shared[::3])
    parts = mapped_layers(module)

    def logits() -> Tensor:
        with torch.inference_mode():
            out = module(ids)
        return getattr(out, "logits", out)

    before = logits()
    with torch.no_grad():
        for name, layer in layers.items():
            matrix(parts[name])[:, torch.isin(layer.columns, gone)] = 0
    columns_only = logits()
    with torch.no_grad():
        for name, layer in layers.items():
            rows = torch.isin(layer.rows, gone)
            matrix(parts[name])[rows] = 0
            if layer.drops_bias and parts[name].bias is not None:
                parts[name].bias[rows] = 0
    torch.testing.assert_close(logits(), columns_only)
    assert not torch.allclose(before, columns_only)


def test_plain_networks_have_gates_of_their_own_and_open_outputs() -> None:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    layers = gated(net, last="4")
    used = torch.cat(
        [side[side != OPEN] for layer in layers.values() for side in (layer.rows, layer.columns)]
    )
    assert len(used.unique()) == len(used) == 6 + 8 + 8 + 5 + 5
    assert bool((layers["4"].rows == OPEN).all())
    assert not any(layer.drops_bias for layer in layers.values())
