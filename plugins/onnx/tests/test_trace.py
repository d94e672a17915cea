"""A graph that is used again equals one that is traced anew, and is used only where nothing but weights changed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from planish_onnx import files, trace
from planish_onnx.export import export
from planish_onnx.verify import verify

pytestmark = pytest.mark.model


@pytest.fixture
def traces(monkeypatch):
    """One entry for each time that torch's exporter runs."""
    done = []
    original = torch.onnx.export

    def counted(*args, **kwargs):
        done.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counted)
    monkeypatch.setattr(trace, "_kept", {})
    return done


def test_other_weights_use_the_same_trace_and_give_the_bytes_of_a_fresh_one(build, tokens, traces, tmp_path):
    inputs = {"input_ids": tokens(2, 8)}
    model = build["llama"](num_hidden_layers=1)
    export(model, inputs, tmp_path / "first")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    export(model, inputs, tmp_path / "again")
    assert len(traces) == 1
    trace._kept.clear()
    export(model, inputs, tmp_path / "fresh")
    assert len(traces) == 2
    for name in (files.GRAPH, files.DATA):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
    assert verify(model, tmp_path / "again", inputs).relative_error < 1e-5


class Net(nn.Module):
    def __init__(self, scale: float = 2.0) -> None:
        super().__init__()
        self.scale = scale
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.register_buffer("shift", torch.ones(6), persistent=False)

    def forward(self, x):
        return self.two(self.one(x)) * self.scale + self.shift


def tie(net):
    net.two.weight = net.one.weight


def hide(net):
    net.hidden = [nn.Linear(6, 6)]


CHANGES = {
    "a number": lambda net: setattr(net, "scale", 3.0),
    "a nested setting": lambda net: setattr(net, "settings", {"axes": [1, {2}]}),
    "a tensor that no checkpoint holds": lambda net: net.shift.mul_(2),
    "a tie": tie,
    "a layer's class": lambda net: setattr(net, "two", nn.Identity()),
    "training mode of a part": lambda net: net.one.train(),
    "a hook": lambda net: net.one.register_forward_hook(lambda *_: None),
    "a module that is not registered": hide,
    "a function": lambda net: setattr(net, "forward", lambda x, net=net: net.one(x)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_else_changes_is_traced_anew(change):
    torch.manual_seed(0)
    same, changed = Net().eval(), Net().eval()
    examples = [torch.ones(2, 6)]
    key = trace._key(same, examples, ())
    assert key is not None
    assert trace._key(Net().eval(), examples, ()) == key
    same.settings = {"_name_or_path": "here", "name": 1}
    changed.settings = {"_name_or_path": "there", "name": 1}
    assert trace._key(changed, examples, ()) == trace._key(same, examples, ()) != key
    key = trace._key(changed, examples, ())
    change(changed)
    assert trace._key(changed, examples, ()) != key


def test_inputs_options_and_local_classes_count():
    net, x = Net().eval(), torch.ones(2, 6)
    key = trace._key(net, [x], ())
    assert trace._key(net, [x.double()], ()) != key
    assert trace._key(net, [torch.ones(3, 6)], ()) != key
    assert trace._key(net, [x], ("other",)) != key

    def local(sign: int) -> nn.Module:
        class Local(nn.Module):
            def forward(self, x):
                return sign * x

        return Local()

    assert trace._key(local(1), [x], ()) != trace._key(local(-1), [x], ())


def test_few_graphs_are_kept(traces, tmp_path):
    for width in range(2, 3 + trace.KEPT):
        export(nn.Linear(width, 2), {"input": torch.ones(2, width)}, tmp_path / str(width))
    assert len(traces) == trace.KEPT + 1
    assert len(trace._kept) == trace.KEPT
    assert all(
        v.const_value is None for kept in trace._kept.values() for v in kept.graph.initializers.values()
    )


def test_a_kept_graph_keeps_no_weight_alive(traces, tmp_path):
    net = Net().eval()
    weight = weakref.ref(net.one.weight)
    export(net, {"x": torch.ones(2, 6)}, tmp_path)
    assert len(trace._kept) == 1
    del net
    traces.clear()
    gc.collect()
    assert weight() is None
