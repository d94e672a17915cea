from __future__ import annotations

import copy
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import PlanishError
from planish_onnx import files
from planish_onnx.verify import INT8_BOUND, at_other_sizes, compare, verify


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported("llama").folder, tmp_path / "copy")


def test_one_tampered_weight_is_noticed(exported, folder):
    case = exported("llama")
    data = np.fromfile(folder / files.DATA, dtype=np.float32)
    data[len(data) // 2] += 1.0
    data.tofile(folder / files.DATA)
    with pytest.raises(PlanishError, match=r"relative .* tolerance 0.0001") as error:
        verify(case.model, folder, case.inputs)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_numbers_are_noticed(exported, folder):
    case = exported("llama")
    np.full((folder / files.DATA).stat().st_size // 4, np.nan, dtype=np.float32).tofile(folder / files.DATA)
    for int8 in (False, True):
        with pytest.raises(PlanishError, match="does not compute"):
            verify(case.model, folder, case.inputs, int8=int8)


def test_a_model_trained_on_after_the_export_is_noticed(exported):
    case = exported("digits")
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        other.out.bias[0] += 0.01
    with pytest.raises(PlanishError, match="tolerance"):
        verify(other, case.folder, case.inputs)


def test_int8_garbage_is_noticed(exported, quantized, tmp_path):
    case = exported("llama")
    folder = shutil.copytree(quantized("llama")[0], tmp_path / "copy")
    data = np.fromfile(folder / files.DATA, dtype=np.int8)
    np.random.default_rng(0).shuffle(data)
    data.tofile(folder / files.DATA)
    with pytest.raises(PlanishError, match=f"does not compute.* bound {INT8_BOUND}"):
        verify(case.model, folder, case.inputs, int8=True)


def test_statistics_are_what_they_say():
    wanted = torch.tensor([[1.0, -3.0], [2.0, 0.0]])
    found = torch.tensor([[1.0, -3.0], [2.0, 3.0]])
    result = compare(wanted, found, {})
    assert (result.largest_logit, result.max_error) == (3.0, 3.0)
    assert (result.relative_error, result.top1) == (1.0, 0.5)
    assert result.rms_error == pytest.approx(1.5 / np.std([1, -3, 2, 0]))
    with pytest.raises(PlanishError, match="shape"):
        compare(wanted, found[:1], {})
    with pytest.raises(PlanishError, match="not finite"):
        compare(wanted / 0, found, {})


@given(st.integers(1, 9), st.integers(1, 40))
def test_other_sizes_differ_stay_valid_and_agree_between_inputs(rows, length):
    ids = torch.arange(rows * length).view(rows, length)
    inputs = {"input_ids": ids, "attention_mask": ids + 1000, "scores": torch.rand(rows, 5)}
    text = {0: "batch", 1: "sequence"}
    dims = {"input_ids": text, "attention_mask": text, "scores": {0: "batch"}}
    other = at_other_sizes(inputs, dims)
    assert other["input_ids"].shape[0] not in (rows, max(rows, 2))
    assert other["input_ids"].shape[1] not in (length, max(length, 2))
    assert set(other["input_ids"].unique().tolist()) <= set(ids.unique().tolist())
    assert torch.equal(other["attention_mask"], other["input_ids"] + 1000)
    assert other["scores"].shape == (rows + 3, 5)
    assert other["input_ids"].shape[1] <= max(length, 6)
