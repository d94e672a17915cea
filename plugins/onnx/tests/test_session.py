from __future__ import annotations

import numpy as np
import pytest
import torch

from planish.errors import PlanishError
from planish_onnx.session import OnnxModel

IDS = torch.ones(2, 8, dtype=torch.int64)


@pytest.mark.parametrize("name", ["llama", "shrunk", "gpt2"])
def test_generation_equals_torch(exported, tokens, torch_greedy, name):
    case = exported(name)
    ids = tokens(3, 5)
    assert torch.equal(OnnxModel(case.folder, threads=1).generate(ids, 9), torch_greedy(case.model, ids, 9))


def test_generation_stops_at_the_end_token(exported, tokens):
    model = OnnxModel(exported("llama").folder)
    ids = tokens(2, 5)
    free = model.generate(ids, 6)
    end = int(free[0, 5])
    ended = model.generate(ids, 6, eos_token_id=end)
    assert (ended[0, 5:] == end).all()
    assert model.generate(ids[:1], 6, eos_token_id=end).shape == (1, 6)


def test_arrays_in_arrays_out_tensors_in_tensors_out(exported, tokens):
    model = OnnxModel(exported("llama").folder, threads=1)
    ids = tokens(2, 8)
    array, tensor = model(input_ids=ids.numpy().astype(np.int32)), model(input_ids=ids)
    assert isinstance(array, np.ndarray)
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(array, tensor.numpy())
    assert model.inputs == ("input_ids",)
    assert not model.has_cache


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({}, "missing input_ids"),
        ({"input_ids": IDS, "labels": IDS}, "unknown labels"),
        ({"input_ids": IDS[0]}, "cannot run input_ids"),
        ({"input_ids": IDS + 10_000}, "cannot run input_ids"),
        ({"input_ids": IDS + 0.5}, "input_ids is float32, the graph takes int64"),
    ],
)
def test_bad_batches_are_refused_in_one_line(exported, batch, words):
    with pytest.raises(PlanishError, match=words) as error:
        OnnxModel(exported("llama").folder)(**batch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("ids", "new", "words"), [(IDS, 0, "max_new_tokens"), (IDS[0], 1, "input_ids")])
def test_bad_prompts_are_refused(exported, ids, new, words):
    with pytest.raises(PlanishError, match=words):
        OnnxModel(exported("llama").folder).generate(ids, new)


def test_a_provider_that_is_not_here_is_no_silent_cpu(exported):
    with pytest.raises(PlanishError, match=r"providers: 'Nowhere' is not one of .*CPUExecutionProvider"):
        OnnxModel(exported("llama").folder, providers=["Nowhere"])
