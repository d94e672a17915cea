"""The pipeline stage, local models, and what other distributions may add."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import promptv_designs as designs
import pytest

from planish.errors import ConfigError, PlanishError, RunError
from planish_promptv import hooks
from planish_promptv.agents.generate import generate
from planish_promptv.agents.prompts import PACKS, load_pack
from planish_promptv.config import GenerationConfig
from planish_promptv.models.opening import open_provider
from planish_promptv.models.scripted import Script
from planish_promptv.models.server import ScriptedServer


def pruned() -> Any:
    """A network with one layer in the pattern 2:4."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Linear(16, 4)
    with torch.no_grad():
        groups = layer.weight.view(-1, 4)
        groups.scatter_(1, groups.abs().topk(2, dim=1, largest=False).indices, 0.0)
    return torch.nn.Sequential(layer)


@pytest.mark.model
def test_circuit_of_a_pruned_layer_by_hand_and_by_agents(simulator: Any, tmp_path: Path) -> None:
    import planish
    from planish_promptv.hardware import hardware_tasks

    model = pruned()
    by_hand = planish.Pipeline().then("promptv", vectors=64).run(model, tmp_path / "hand", measure="none")
    folder = by_hand.artifact.root / "mac-2-4"
    assert {path.name for path in folder.iterdir()} >= {"nm_mac.v", "tb.sv"}
    (design,) = by_hand.artifact.load().designs
    assert (design["vectors"], design["mismatches"]) == (64, 0)
    (task,) = hardware_tasks(model, vectors=64)
    wrong = str(task.reference).replace("posedge", "negedge")
    script = designs.script(coder=wrong, teacher=designs.advice("the edge"), learner_code=task.reference)
    with ScriptedServer(Script.model_validate(script)) as server:
        pipeline = planish.Pipeline().then(
            "promptv", generator="agents", vectors=64, base_url=server.url, model="scripted", synthesis=False
        )
        by_agents = pipeline.run(model, tmp_path / "agents", measure="none")
        assert len(server.requests) == 3
    assert (by_agents.artifact.root / "mac-2-4" / "nm_mac.v").read_text().strip() == str(
        task.reference
    ).strip()
    script = designs.script(coder=wrong, teacher=designs.advice())
    with ScriptedServer(Script.model_validate(script)) as server:
        options = {
            "generator": "agents",
            "vectors": 64,
            "base_url": server.url,
            "model": "m",
            "max_restarts": 0,
        }
        with pytest.raises(RunError, match="the agents ended in 'stalled' after 2 calls"):
            planish.Pipeline().then("promptv", **options).run(model, tmp_path / "failed", measure="none")
    assert not [
        path
        for path in (tmp_path / "failed").iterdir()
        if path.name.startswith("01-") and path.suffix != ".tmp"
    ]


@pytest.mark.model
def test_preflight_asks_for_what_is_missing(iverilog: None) -> None:
    import torch

    import planish

    problems = planish.Pipeline().then("promptv", generator="agents").check(pruned())
    assert any("base_url" in problem for problem in problems)
    problems = planish.Pipeline().then("promptv").check(torch.nn.Sequential(torch.nn.LayerNorm(4)))
    assert any("no spiking neuron and no linear layer" in problem for problem in problems)


@pytest.mark.model
def test_local_transformer_of_random_weights_runs_through_the_loop(simulator: Any, tmp_path: Path) -> None:
    """Two layers and a character tokenizer, made on the spot: it babbles, and every token is accounted for."""
    from planish_promptv.models.local import TransformersProvider
    from planish_sdk.fixtures import tiny
    from planish_sdk.testing.material import character_tokenizer

    model, tokenizer = tiny("llama"), character_tokenizer()
    model.config.max_position_embeddings = 16384  # rotary positions have no table that would end
    provider = TransformersProvider("cpu", {"tiny": (model.eval(), tokenizer)})
    config = GenerationConfig(provider="transformers", model="tiny", max_tokens=16, max_restarts=0)
    results = [
        asyncio.run(
            generate(designs.TASK, config, provider=provider, simulator=simulator, out=tmp_path / name)
        )
        for name in ("one", "two")
    ]
    first = results[0]
    assert first.state in ("format_error", "exhausted")
    assert first.calls == 4, "coder and bencher, each asked twice"
    calls = [
        json.loads(line)["reply"] for line in (tmp_path / "one" / "calls.jsonl").read_text().splitlines()
    ]
    assert sum(call["usage"]["completion"] for call in calls) == first.completion_tokens
    assert all(0 < call["usage"]["completion"] <= 16 and not call["usage"]["estimated"] for call in calls)
    texts = [
        sorted(path.read_text().count('"text"') for path in tmp_path.glob(f"{n}/*.jsonl"))
        for n in ("one", "two")
    ]
    assert texts[0] == texts[1]
    replies = [
        sorted(
            json.loads(line)["reply"]["text"]
            for line in (tmp_path / n / "calls.jsonl").read_text().splitlines()
        )
        for n in ("one", "two")
    ]
    assert replies[0] == replies[1], "the same seeds give the same text, in whatever order"


@pytest.mark.model
def test_prompt_longer_than_the_context_is_a_state(simulator: Any) -> None:
    from planish_promptv.models.local import TransformersProvider
    from planish_sdk.fixtures import tiny
    from planish_sdk.testing.material import character_tokenizer

    model = tiny("llama")
    model.config.max_position_embeddings = 64
    provider = TransformersProvider("cpu", {"tiny": (model.eval(), character_tokenizer())})
    config = GenerationConfig(provider="transformers", model="tiny", max_tokens=16)
    result = asyncio.run(generate(designs.TASK, config, provider=provider, simulator=simulator))
    assert result.state == "context_overflow"
    assert "do not fit" in result.detail


def test_overflow_shortens_the_simulator_text_once(simulator: Any) -> None:
    too_long = {
        "status": 400,
        "body": '{"error": {"code": "context_length_exceeded", "message": "too long"}}',
    }
    script = designs.script(
        coder=designs.WRONG_EDGE,
        bencher=designs.GOOD_BENCH,
        teacher=[too_long, designs.advice("edge")],
        learner_code=designs.GOOD,
    )
    with ScriptedServer(Script.model_validate(script)) as server:
        config = GenerationConfig(base_url=server.url, model="m", simulator_text=6000)
        result = asyncio.run(generate(designs.TASK, config, simulator=simulator))
        lengths = [
            len(r["messages"][1]["content"])
            for r in server.requests
            if "Simulation" in r["messages"][1]["content"]
        ]
    assert result.state == "success"
    assert len(lengths) == 2
    assert lengths[1] <= lengths[0]


def test_extensions_add_providers_packs_linters_and_observers(
    simulator: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    stranger = ModuleType("stranger")
    script = Script.model_validate(
        designs.script(
            coder=designs.WRONG_EDGE,
            bencher=designs.GOOD_BENCH,
            teacher=designs.advice("edge"),
            learner_code=designs.GOOD,
        )
    )

    def register_llm_provider(name: str, config: Any) -> Any:
        from planish_promptv.models.scripted import ScriptedProvider

        return ScriptedProvider(script, "mine") if name == "mine" else None

    def on_event(event: Any) -> None:
        seen.append(event["event"])
        raise RuntimeError("observers may fail")

    implementations = {
        "register_llm_provider": register_llm_provider,
        "register_prompt_pack": lambda name: PACKS / "promptv-1" if name == "theirs" else None,
        "register_linter": lambda: ("house style", lambda task, code: [f"{task.top_name} uses negedge"]),
        "on_event": on_event,
    }
    for name, function in implementations.items():
        setattr(stranger, name, hooks.extension(function, specname=name))
    manager = hooks.manager_of([])
    manager.register(stranger)
    monkeypatch.setattr(hooks, "extensions", lambda: manager)
    config = GenerationConfig(provider="mine", prompt_pack="theirs")
    result = asyncio.run(generate(designs.TASK, config, simulator=simulator))
    assert result.state == "success"
    assert set(seen) == {"llm_call", "artifact", "sim", "decision"}
    assert load_pack("theirs").sha256 == load_pack("promptv-1").sha256
    assert hooks.lint(designs.TASK, "") == ["house style: counter uses negedge"]
    with pytest.raises(ConfigError, match="'nobody' is not one of openai"):
        open_provider(GenerationConfig(provider="nobody"))


def test_a_broken_extension_is_left_out() -> None:
    from importlib.metadata import EntryPoint

    manager = hooks.manager_of([EntryPoint("bad", "no_such_module_anywhere", hooks.GROUP)])
    assert manager.hook.register_llm_provider(name="x", config=None) is None


@pytest.mark.parametrize("source", ["verilogeval-v2:Nothing", "empty.txt"])
def test_sources_that_are_none(source: str, tmp_path: Path, verilog_data: Path) -> None:
    from planish_promptv.sources import task_of

    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(PlanishError, match=r"has no task|is empty"):
        task_of(str(tmp_path / source) if source.endswith("txt") else source)
