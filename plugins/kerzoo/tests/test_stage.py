"""The stage on real tasks, PEFT, and the comparison's batched model."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import planish
from planish.cli import listing
from planish.errors import DataError, PlanishError
from planish_kerzoo.benchmark import compare, table
from planish_kerzoo.config import KerZOOConfig
from planish_kerzoo.contest import ADAMW, AUTHORS, MEZO, Budget, Plan
from planish_kerzoo.estimator import Estimator
from planish_kerzoo.log import RunLog, replay
from planish_kerzoo.optimizer import KerZOO
from planish_kerzoo.population import Population, Run
from planish_kerzoo.prompts import Prompts, load
from planish_kerzoo.stacked import StackedLlama
from planish_sdk.fixtures import tiny
from planish_sdk.testing.material import tiny_model, tiny_task

pytestmark = [pytest.mark.model, pytest.mark.slow]
needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="PEFT is not installed")


def classification(rows: int = 64) -> planish.Classification:
    x = torch.linspace(-1, 1, rows * 4).view(rows, 4)
    values = {"train_x": x, "train_y": (x[:, 0] > 0).long(), "test_x": x, "test_y": (x[:, 0] > 0).long()}
    return planish.Classification(data=planish.Tensors(values=values), input="input")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def test_a_network_of_ones_own_learns_and_its_log_rebuilds_it(tmp_path: Path) -> None:
    options = {"steps": 150, "lr": 3e-2, "kernel": "nodes3", "unit": 50}
    pipeline = planish.Pipeline(task=classification()).then("kerzoo", **options)
    result = pipeline.run(small(), out=tmp_path / "run", measure="none", device="cpu")
    facts = result.records[0].facts
    assert facts["loss of the last tenth of steps"] < 0.7 * facts["loss of the first tenth of steps"]
    assert facts["forward passes"] == 300
    assert facts["log bytes"] == (result.stages[0] / facts["log"]).stat().st_size
    assert facts["checkpoint bytes"] == 4 * (4 * 8 + 8 + 8 * 2 + 2)
    assert json.dumps(listing.run_folder(tmp_path / "run")).count('"log bytes"') == 1
    final = result.load(module=small()).module
    base = small()
    config = KerZOOConfig.model_validate(options)
    rest = config.model_dump(include={"kernel", "lr"})
    replay(RunLog(result.stages[0] / facts["log"]), KerZOO(base, **rest))
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), final.parameters(), strict=True))


@needs_peft
def test_lora_is_trained_and_merged(tmp_path: Path) -> None:
    source = planish.Source(
        "tiny", module=tiny("llama"), tokenizer=tiny_model("llama").tokenizer, task=tiny_task()
    )
    options = {"adapter": "lora", "steps": 4, "batch": 2, "length": 16, "lr": 1e-1, "eps": 1e-2, "rank": 2}
    pipeline = planish.Pipeline().then("kerzoo", **options).then("kerzoo", steps=1, length=16, lr=1e-12)
    result = pipeline.run(source, out=tmp_path / "run", measure="none")
    trained = [record.facts["trained parameters"] for record in result.records]
    assert trained[0] < trained[1] == sum(p.numel() for p in tiny("llama").parameters())
    result = planish.Pipeline().then("kerzoo", **options).run(source, out=tmp_path / "run", measure="none")
    before, after = tiny("llama").state_dict(), result.load().module.state_dict()
    assert before.keys() == after.keys()
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "v_proj"}
    wrong = planish.Pipeline().then("kerzoo", adapter="lora", targets=("nowhere",))
    assert any("no layer has such a name" in line for line in wrong.check(source))


@needs_peft
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_peft_models_are_trained_as_they_are(kind: str) -> None:
    from peft import LoraConfig, PrefixTuningConfig, get_peft_model

    torch.manual_seed(0)
    settings = (
        LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
        if kind == "lora"
        else PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    )
    model = get_peft_model(tiny("llama"), settings)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    ids = torch.arange(24).view(2, 12)
    optimizer = KerZOO(model, lr=1e-2, eps=1e-2)
    assert all(work.segment.parameter.requires_grad for work in optimizer.works)
    assert {work.segment.name for work in optimizer.works} == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    before = [work.segment.local().clone() for work in optimizer.works]
    for _ in range(3):
        optimizer.step(lambda: model(input_ids=ids, labels=ids).loss)
    assert any(not torch.equal(b, w.segment.local()) for b, w in zip(before, optimizer.works, strict=True))
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


def test_frozen_layers_stay_and_a_frozen_model_is_refused_before_any_compute(tmp_path: Path) -> None:
    half = small()
    half[0].requires_grad_(False)  # type: ignore[index]
    pipeline = planish.Pipeline(task=classification()).then("kerzoo", steps=3, lr=1e-2)
    result = pipeline.run(half, out=tmp_path / "run", measure="none").load(module=small()).module
    assert torch.equal(result[0].weight, small()[0].weight)  # type: ignore[index]
    assert not torch.equal(result[2].weight, small()[2].weight)  # type: ignore[index]
    assert any("all are frozen" in line for line in pipeline.check(small().requires_grad_(False)))


def test_bad_tasks_are_one_line(tmp_path: Path) -> None:
    graph = planish.NodeClassification(data=planish.Tensors(values={"x": torch.ones(2, 4)}))
    short = tiny_task()
    cases = [
        (graph, {}, small(), "kerzoo trains on language-modelling and on classification"),
        (classification(0), {}, small(), "holds no samples"),
        (short, {"length": 60000}, None, "fewer than length"),
    ]
    for number, (task, options, module, message) in enumerate(cases):
        model = tiny_model("llama")
        tokenizer = None if module else model.tokenizer
        source = planish.Source("in memory", module=module or model.module, tokenizer=tokenizer)
        with pytest.raises(DataError) as caught:
            planish.Pipeline(task=task).then("kerzoo", steps=1, **options).run(
                source, out=tmp_path / str(number), measure="none"
            )
        assert message in str(caught.value)


def prompts(count: int = 12, vocabulary: int = 96) -> Prompts:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (count, 10), generator=generator)
    last = torch.randint(2, 10, (count,), generator=generator)
    return Prompts(ids, last, torch.arange(count) % 2, torch.tensor([5, 9]), count - 4)


def test_stacked_model_and_population_do_what_the_optimizer_does() -> None:
    """One run of the population against KerZOO with restore exact on the transformers model, on the same batches."""
    for estimator, options in (
        (Estimator("order3", n=2), {"kernel": "order3", "n": 2}),
        (Estimator("mezo", n=3, sides=1), {"kernel": "mezo", "n": 3, "sides": 1}),
    ):
        model, task = tiny("llama-tied"), prompts()
        shape = StackedLlama.of(model)
        population = Population(shape, shape.pack(model), [task], batch=4)
        runs = [Run(0, 7, 1e-2), Run(0, 8, 1e-3)]
        logits = model(input_ids=task.ids).logits[torch.arange(12), task.last][:, task.words]
        stacked = shape.answers(population.start[None], task.ids[None], task.last[None], task.words[None])
        torch.testing.assert_close(stacked[0], logits, rtol=1e-4, atol=1e-5)
        curves = population.zeroth_order(runs, estimator, 1e-2, 3 * estimator.forwards, evaluations=3)
        assert curves.forwards == [0, *(k * estimator.forwards for k in (1, 2, 3))]
        for index, run in enumerate(runs):
            alone = tiny("llama-tied")
            optimizer = KerZOO(alone, lr=run.lr, seed=run.seed, eps=1e-2, restore="exact", **options)
            order = population._order(runs, 3)

            def loss(rows: torch.Tensor, net: nn.Module = alone, task: Prompts = task) -> torch.Tensor:
                found = net(input_ids=task.ids[rows]).logits[torch.arange(len(rows)), task.last[rows]]
                return nn.functional.cross_entropy(found[:, task.words], task.label[rows])

            for step in range(3):
                optimizer.step(
                    lambda step=step, loss=loss, order=order, index=index: loss(order[step, index])
                )
            with torch.no_grad():
                objective = float(loss(torch.arange(task.train)))
            assert float(curves.objective[-1, index]) == pytest.approx(objective, abs=5e-4)


def test_adamw_ceiling_equals_torchs() -> None:
    model, task = tiny("llama-tied"), prompts()
    shape = StackedLlama.of(model)
    population = Population(shape, shape.pack(model), [task], batch=4)
    runs = [Run(0, 7, 1e-2)]
    curves = population.first_order(runs, 4, evaluations=1)
    theta = nn.Parameter(population.start[None].clone())
    optimizer = torch.optim.AdamW([theta], lr=1e-2)
    for rows in population._order(runs, 4):
        optimizer.zero_grad()
        population._loss(theta, runs, rows).sum().backward()
        optimizer.step()
    expected, _, _ = population._evaluate(theta.detach(), runs)
    torch.testing.assert_close(curves.objective[-1], expected, rtol=1e-4, atol=1e-4)


def test_prompts_of_all_tasks(shared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k", local_files_only=True)
    for name in ("sst2", "cb", "wsc", "copa"):
        task = load(name, shared / "data", tokenizer, train=40, test=10)
        assert len(task.ids) == 50
        assert task.train == 40
        assert set(task.label.tolist()) <= set(range(len(task.words)))
        assert bool((task.ids[torch.arange(50), task.last] > 0).all())
    with pytest.raises(DataError, match="task cb"):
        load("cb", shared / "nowhere", tokenizer)


def test_a_comparison_is_continued_and_keeps_to_its_time(shared: Path) -> None:
    plan = Plan(8, (1e-5,), (100,), (MEZO, "leave-one-out, n=4", AUTHORS, ADAMW))
    budget = Budget({"stories260k": plan}, ("copa",), (10, 11), 2, (1e-3,), {"train": 8, "test": 4}, 1)
    kept: list[list[str]] = []
    nothing = compare(shared, budget, "cpu", until=0)
    assert len(nothing["left out"]) == 4
    first = dataclasses.replace(
        budget, plans={"stories260k": dataclasses.replace(plan, estimators=plan.estimators[:2])}
    )
    earlier = json.loads(json.dumps(compare(shared, first, "cpu")))
    result = compare(
        shared, budget, "cpu", lambda r: kept.append(list(r["stories260k"])[-1:]), earlier=earlier
    )
    assert kept == [[AUTHORS], [ADAMW]]
    assert result["left out"] == []
    assert result["stories260k"][MEZO] == earlier["stories260k"][MEZO]
    assert result["bar"]["last"]["best of ours on the tuning seeds"] == "leave-one-out, n=4"
    rows = list(table(result, budget, "this", "command"))
    assert len(rows) == 1 + 3 * 3
    assert sum(row.bar is not None for row in rows) == 1
    with pytest.raises(DataError, match="other seeds"):
        compare(shared, dataclasses.replace(budget, seeds=(1, 2)), "cpu", earlier=earlier)


def test_only_llama_is_stacked() -> None:
    with pytest.raises(PlanishError, match="only Llama with tied embeddings"):
        StackedLlama.of(tiny("opt"))
