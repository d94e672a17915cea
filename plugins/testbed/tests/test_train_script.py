from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish_testbed import corpus, lm

SCRIPT = Path(__file__).parents[1] / "train" / "train_lm.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_lm", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_lm"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokens(script: ModuleType) -> tuple[Any, np.ndarray]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(lm.folder(), local_files_only=True)
    size = len(tokenizer)
    folder = lm.folder()

    class Renamed:
        """`tokenizer-SIZE.json` of a prepared corpus is the shipped tokenizer.json."""

        def __truediv__(self, name: str) -> Path:
            return folder / "tokenizer.json"

    return tokenizer, script.merge_parents(Renamed(), size)


@given(rate=st.floats(0, 1), seed=st.integers(0, 1000))
def test_undone_merges_keep_the_text(
    script: ModuleType, tokens: tuple[Any, np.ndarray], rate: float, seed: int
) -> None:
    tokenizer, parents = tokens
    text = "    def heappush(heap, item):\n        Push item onto heap, maintaining the heap invariant.\n"
    ids = np.array(tokenizer(text)["input_ids"])
    split = script.undo_merges(ids, parents, rate, np.random.default_rng(seed))
    assert tokenizer.decode(split) == text
    assert len(split) >= len(ids)
    if rate == 1:
        assert len(split) > len(ids)


def test_batches_are_windows_of_the_documents(script: ModuleType, tokens: tuple[Any, np.ndarray]) -> None:
    documents = [np.arange(1, 1500), np.arange(1500, 2500)]
    recipe = script.Recipe("x", batch=2)
    source = script.batches(documents, tokens[1], recipe, np.random.default_rng(0))
    again = script.batches(documents, tokens[1], recipe, np.random.default_rng(0))
    for _ in range(5):
        rows = next(source)
        assert rows.shape == (2, script.CONTEXT + 1)
        assert np.array_equal(rows, next(again))
        inside = (rows[:, 1:] == rows[:, :-1] + 1).mean()
        assert inside > 0.98


def test_validation_is_training_text(script: ModuleType) -> None:
    train = {document.name for document in corpus.train_documents()}
    assert train >= script.VALIDATION
    assert not script.VALIDATION & {document.name for document in corpus.heldout_documents()}


def test_unknown_recipe_field_is_refused(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="unknown recipe field 'droput'; valid: attention_dropout, "):
        script.read_recipe({"name": "x", "droput": 0.1})


@pytest.mark.slow
def test_train_distil_and_ship(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tiny recipes end to end: the folder loads, the values are finite, a second call trains nothing."""
    monkeypatch.setattr(script, "VOCABULARIES", (512,))
    train, heldout = corpus.train_documents()[::40], corpus.heldout_documents()[:2]
    monkeypatch.setattr(corpus, "train_documents", lambda: train)
    monkeypatch.setattr(corpus, "heldout_documents", lambda: heldout)
    monkeypatch.setattr(script, "VALIDATION", frozenset({train[0].name}))
    script.prepare(tmp_path / "corpus")
    tiny = {
        "vocab": 512,
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "intermediate": 64,
        "batch": 2,
    }
    teacher = script.read_recipe(
        {"name": "a", **tiny, "epochs": 0.1, "split": 0.1, "noise": 0.1, "samples": 4}
    )
    student = script.read_recipe(
        {"name": "b", **tiny, "epochs": 0.1, "teachers": ["a"], "sampled_share": 0.5}
    )
    logs = [script.train_one(r, tmp_path / "corpus", tmp_path, "cpu") for r in (teacher, student)]
    assert all(0 < log["validation_bits_per_byte"] < 10 and log["finished"] for log in logs)
    script.ship(logs[1], tmp_path / "corpus", tmp_path, tmp_path / "lm")
    measured = script.measure(tmp_path / "lm", tmp_path / "corpus", "cpu")
    assert 1 < measured["heldout_bits_per_byte"] < 10
    stamp = (tmp_path / "b.safetensors").stat().st_mtime_ns
    assert script.train_one(student, tmp_path / "corpus", tmp_path, "cpu") == logs[1] | {
        "recipe": logs[1]["recipe"] | {"teachers": ["a"]},
        "curve": [list(point) for point in logs[1]["curve"]],
    }
    assert (tmp_path / "b.safetensors").stat().st_mtime_ns == stamp
    assert torch.isfinite(script.read_model(tmp_path, "b", "cpu").lm_head.weight).all()
