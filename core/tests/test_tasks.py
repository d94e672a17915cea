"""Tasks and metrics, against direct computations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from planish import (
    Classification,
    LanguageModelling,
    NodeClassification,
    SkeletonAction,
    Tensors,
    Text,
    TorchModel,
)
from planish.errors import ConfigError, DataError, PlanishError
from planish.evaluators import accuracy, perplexity
from planish.tasks import TASKS, Task, make_task

model = pytest.mark.model


@pytest.fixture
def llama(make_llama: Callable[..., Any], tokenizer: Any) -> TorchModel:
    return TorchModel(make_llama(), "transformers", tokenizer)


def language(text: str, **options: Any) -> LanguageModelling:
    return LanguageModelling(evaluation=Text(text=text), **{"window": 32, "length": 16, **options})


@model
class TestPerplexity:
    @pytest.mark.parametrize("batch_size", [1, 3, 8])
    def test_equals_a_direct_computation(self, batch_size: int, llama: TorchModel, text: str) -> None:
        task = language(text, windows=7)
        value, bits = perplexity(llama, task, batch_size)
        ids = llama.tokenizer(text.strip())["input_ids"]
        losses = []
        for start in range(0, 7 * 32, 32):
            window = torch.tensor([ids[start : start + 32]])
            with torch.no_grad():
                losses.append(float(llama.module(window, labels=window).loss))
        mean = sum(losses) / len(losses)
        spread = torch.tensor(losses, dtype=torch.float64).std().item() / math.sqrt(7)
        assert value.value == pytest.approx(math.exp(mean), rel=1e-5)
        assert value.spread == pytest.approx(math.exp(mean) * spread, rel=1e-3)
        assert (value.repeats, value.lower_is_better) == (7, True)
        # Every token of this tokenizer is one byte.
        assert bits.value == pytest.approx(mean / math.log(2), rel=1e-5)
        assert bits.unit == "bit"

    def test_bits_per_byte_of_wider_characters(self, llama: TorchModel, text: str) -> None:
        """The same tokens, of which the tokenizer swallows some bytes: fewer bits a byte."""
        task = language("é" * 200, windows=2)
        assert task.bytes_a_token(llama.tokenizer) == pytest.approx(1.0)
        doubled: Any = lambda document, **_: {"input_ids": llama.tokenizer(document)["input_ids"][::2]}  # noqa: E731
        assert task.bytes_a_token(doubled) == pytest.approx(2.0)

    def test_one_window_has_no_spread(self, llama: TorchModel, text: str) -> None:
        assert perplexity(llama, language(text, windows=1))[0].spread == 0.0

    def test_shorter_than_a_window(self, llama: TorchModel) -> None:
        with pytest.raises(DataError, match="has 5 tokens, fewer than window = 32"):
            perplexity(llama, language("short"))
        with pytest.raises(DataError, match="has 5 tokens, fewer than length = 16"):
            language("short").example(llama)

    def test_the_tail_is_dropped(self, llama: TorchModel) -> None:
        assert language("x" * 100).evaluation_windows(llama.tokenizer).shape == (3, 32)
        assert language("x" * 64).evaluation_windows(llama.tokenizer).shape == (2, 32)

    def test_without_a_tokenizer(self, llama: TorchModel, text: str) -> None:
        llama.tokenizer = None
        with pytest.raises(DataError, match="the model has no tokenizer"):
            language(text).evaluate(llama)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_weights_that_are_no_numbers(self, value: float, llama: TorchModel, text: str) -> None:
        llama.module.model.layers[0].mlp.up_proj.weight.data[0, 0] = value
        with pytest.raises(PlanishError, match="NaN or infinity"):
            language(text).evaluate(llama)

    def test_documents_are_tokenised_one_by_one(self, llama: TorchModel) -> None:
        task = LanguageModelling(evaluation=Text(text="ab|cd", separator="|"))
        ids = task.tokens("evaluation", llama.tokenizer)
        assert ids.tolist() == llama.tokenizer("ab")["input_ids"] + llama.tokenizer("cd")["input_ids"]
        marked = LanguageModelling(evaluation=Text(text="ab|cd", separator="|", before="<end>"))
        assert marked.tokens("evaluation", llama.tokenizer).tolist() == [256, *ids[:2], 256, *ids[2:]]
        with pytest.raises(DataError, match="no calibration text"):
            task.tokens("calibration", llama.tokenizer)

    def test_example(self, llama: TorchModel) -> None:
        task = language("abcdefgh" * 5, batch=5, length=16)  # 40 tokens: two rows
        rows = task.example(llama)["input_ids"]
        assert rows.shape == (5, 16)
        assert rows[0].equal(rows[2])
        assert task.example(llama, 1)["input_ids"].shape == (1, 16)

    def test_loss_is_the_library_s_own(self, llama: TorchModel, text: str) -> None:
        rows = language(text).evaluation_windows(llama.tokenizer)[:2]
        loss = language(text).loss(llama, {"input_ids": rows}, rows)
        assert loss.item() == pytest.approx(llama.module(rows, labels=rows).loss.item(), rel=1e-5)
        loss.backward()
        assert llama.module.lm_head.weight.grad is not None


def labelled(count: int = 30, right: int = 24) -> tuple[TorchModel, Classification]:
    """A model that answers with its input, and data of which it gets ``right`` right."""
    labels = torch.arange(count) % 3
    x = nn.functional.one_hot(labels, 3).float()
    x[right:] = x[right:].roll(1, dims=1)
    data = Tensors(values={"test_x": x, "test_y": labels, "train_x": x[:4], "train_y": labels[:4]})
    return TorchModel(Given(), "module"), Classification(data=data, input="scores", batch=7)


class Given(nn.Module):
    def forward(self, scores: torch.Tensor) -> torch.Tensor:
        return scores


class TestAccuracy:
    def test_equals_the_share(self) -> None:
        (measured,) = labelled()[1].evaluate(labelled()[0])
        assert measured.value == pytest.approx(80.0)
        assert measured.spread == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 30))
        assert (measured.repeats, measured.unit, measured.lower_is_better) == (30, "%", False)

    def test_no_sample(self) -> None:
        with pytest.raises(PlanishError, match="no test sample"):
            labelled(0, 0)[1].evaluate(labelled()[0])

    def test_logits_that_are_no_numbers(self) -> None:
        given, task = labelled()
        task.data.values["test_x"][5, 1] = math.nan  # type: ignore[index]
        with pytest.raises(PlanishError, match="NaN"):
            accuracy(given, task)

    def test_labels_of_another_shape(self) -> None:
        """A column of labels would be compared with every answer."""
        given, task = labelled()
        values = dict(task.data.values or {})
        values["test_y"] = values["test_y"].unsqueeze(1)
        with pytest.raises(PlanishError, match=r"labels have the shape \(7, 1\), answers \(7,\)"):
            accuracy(given, Classification(data=Tensors(values=values), input="scores", batch=7))

    def test_batches_and_example(self) -> None:
        given, task = labelled()
        assert [len(y) for _, y in task.batches("test")] == [7, 7, 7, 7, 2]
        assert [len(y) for _, y in task.batches("train")] == [4]
        assert task.example(given)["scores"].shape == (7, 3)
        assert task.example(given, 2)["scores"].shape == (2, 3)

    def test_loss(self) -> None:
        given, task = labelled()
        batch, labels = next(task.batches("test"))
        expected = nn.functional.cross_entropy(batch["scores"], labels)
        torch.testing.assert_close(task.loss(given, batch, labels), expected)

    def test_nodes_of_the_test_split_only(self) -> None:
        class Graph(nn.Module):
            def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
                assert edge_index.shape == (2, 1)
                return x

        mask = torch.tensor([True, True, False, True])
        data = {
            "x": torch.eye(4),
            "edge_index": torch.tensor([[0], [1]]),
            "y": torch.tensor([0, 2, 0, 3]),
            "test_mask": mask,
        }
        task = NodeClassification(data=Tensors(values=data))
        (measured,) = task.evaluate(TorchModel(Graph(), "module"))
        assert measured.value == pytest.approx(200 / 3)
        assert measured.repeats == 3


def _variants() -> list[Task]:
    data, other = Tensors(values={"x": torch.ones(2)}), Tensors(values={"x": torch.zeros(2)})
    a, b = Text(text="a"), Text(text="b")
    return [
        LanguageModelling(evaluation=a),
        LanguageModelling(evaluation=b),
        LanguageModelling(evaluation=a, calibration=b),
        LanguageModelling(evaluation=Text(text="a", before="<s>")),
        LanguageModelling(evaluation=a, window=128),
        LanguageModelling(evaluation=a, windows=3),
        LanguageModelling(evaluation=a, batch=2),
        LanguageModelling(evaluation=a, length=64),
        Classification(data=data),
        Classification(data=other),
        Classification(data=data, batch=2),
        Classification(data=data, input="image"),
        SkeletonAction(data=data),
        NodeClassification(data=data),
        NodeClassification(data=other),
    ]


def test_fingerprints_follow_content_and_settings() -> None:
    fingerprints = [task.fingerprint() for task in _variants()]
    assert fingerprints == [task.fingerprint() for task in _variants()]
    assert len(set(fingerprints)) == len(fingerprints)


def test_offers() -> None:
    offers = [task.offers for task in _variants()]
    assert offers[0] == set()
    assert offers[2] == offers[8] == offers[13] == {"calibration", "training"}


def test_axes_name_inputs_of_the_example() -> None:
    task = NodeClassification(data=Tensors(values={"x": torch.eye(4), "edge_index": torch.zeros(2, 3)}))
    example = task.example(TorchModel(Given(), "module"))
    assert task.axes == {"x": {0: "nodes"}, "edge_index": {1: "edges"}}
    assert task.axes.keys() == example.keys()
    assert labelled()[1].axes is None


def test_every_task_has_a_metric() -> None:
    from planish.registry import host

    assert all(host().evaluators(kind) for kind in TASKS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "task: kind = None is not one of language-modelling, classification"),
        ({"kind": "chess"}, "kind = 'chess'"),
        ({"kind": ["chess"]}, "kind = ['chess']"),
        ({"kind": "classification"}, "task classification: field 'data' is required"),
        ({"kind": "language-modelling", "evaluation": {"text": "a"}, "window": 1}, "window = 1"),
        ({"kind": "language-modelling", "evaluation": {"text": "a", "paht": "b"}}, "'evaluation.paht' (fields: path, text"),
        ({"kind": "language-modelling", "evaluation": {}}, "give either path or text"),
        ({"kind": "classification", "data": {"path": "a", "b": 1}}, "unknown field 'data.b' (fields: path, values)"),
    ],
)  # fmt: skip
def test_bad_tasks_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_task(options)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_tasks_are_immutable() -> None:
    with pytest.raises(ValidationError):
        labelled()[1].batch = 3  # type: ignore[misc]
