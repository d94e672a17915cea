"""A pipeline and its file are interchangeable, and a hostile or mistaken file is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish import Classification, LanguageModelling, Pipeline, Tensors, Text, recipe
from planish.errors import ConfigError

STAGES = "stages: [zero]\n"


def refuse(text: str) -> str:
    with pytest.raises(ConfigError) as error:
        recipe.parse(text)
    assert "\n" not in str(error.value)
    return str(error.value)


words = st.text("abz 2:4é\n'\"-#{}[]!&*0123456789.eE+_~<=", max_size=12) | st.sampled_from(
    [
        "2:4",
        "yes",
        "null",
        "1e-4",
        "0o7",
        "12:30:45",
        "=",
        "<<",
        "2001-01-01",
        "~",
        "on",
        "1_000",
        "0x1f",
        ".inf",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(words.filter(bool), st.dictionaries(words, values, max_size=4)), min_size=1, max_size=4
    ),
    st.integers(0, 2**63 - 1),
    st.none() | words.filter(lambda w: w and w not in (".", "/")),
)
def test_round_trip(stages: list[tuple[str, dict[str, Any]]], seed: int, source: str | None) -> None:
    pipeline = Pipeline(seed)
    for method, options in stages:
        pipeline = Pipeline(seed, None, (*pipeline.stages, recipe.Stage(method, options)))
    again, named = recipe.parse(recipe.dump(pipeline, source), Path("/nowhere"))
    assert (again.seed, again.task, named) == (pipeline.seed, None, source)
    assert [(s.method, dict(s.options)) for s in again.stages] == stages


def test_one_value_in_several_places_is_written_out() -> None:
    """YAML's own writer would use an alias, which the reader refuses."""
    shared = ["q_proj", "k_proj"]
    pipeline = Pipeline().then("zero", names=shared).then("zero", names=shared)
    assert recipe.parse(recipe.dump(pipeline))[0] == pipeline


def test_tuples_become_lists_and_other_objects_are_refused() -> None:
    stage = recipe.parse(recipe.dump(Pipeline().then("zero", names=("a", "b"))))[0].stages[0]
    assert stage.options == {"names": ["a", "b"]}
    with pytest.raises(ConfigError, match="is not text, a number, a list or a mapping"):
        recipe.dump(Pipeline().then("zero", label=object()))


def test_tasks_round_trip(tmp_path: Path) -> None:
    task = LanguageModelling(
        evaluation=Text(path=tmp_path / "a"), calibration=Text(text="x|y", separator="|"), window=64
    )
    pipeline = Pipeline(3, task).then("zero")
    assert recipe.parse(recipe.dump(pipeline)) == (pipeline, None)
    in_file = Pipeline(3, Classification(data=Tensors(path=tmp_path / "b.npz"))).then("zero")
    assert recipe.parse(recipe.dump(in_file)) == (in_file, None)
    with pytest.raises(ConfigError, match="holds data in memory"):
        recipe.dump(Pipeline(0, Classification(data=Tensors(values={"x": torch.ones(1)}))).then("zero"))


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "source: model\ntask: {kind: language-modelling, evaluation: {path: text.txt}, calibration: {path: /t}}\n"
        + STAGES
    )
    pipeline, source = recipe.read(path)
    assert source == str(tmp_path / "model")
    assert isinstance(pipeline.task, LanguageModelling)
    assert pipeline.task.evaluation.path == tmp_path / "text.txt"
    assert pipeline.task.calibration == Text(path=Path("/t"))
    path.write_text("source: testbed:lm\n" + STAGES)
    assert recipe.read(path)[1] == "testbed:lm"


def test_stage_forms() -> None:
    text = "stages:\n- zero\n- zero:\n- zero: {sparsity: 0.5}\n- planish-fake:zero: {layers: first}\n"
    pipeline, source = recipe.parse(text)
    assert source is None
    assert [(s.method, dict(s.options)) for s in pipeline.stages] == [
        ("zero", {}),
        ("zero", {}),
        ("zero", {"sparsity": 0.5}),
        ("planish-fake:zero", {"layers": "first"}),
    ]


def test_a_pattern_is_no_number_in_base_sixty() -> None:
    stage = recipe.parse("stages: [{ace: {pattern: 2:4, blocks: [1:2], steps: 100, hex: 0x10}}]")[0].stages[0]
    assert stage.options == {"pattern": "2:4", "blocks": ["1:2"], "steps": 100, "hex": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping with the fields planish, source, seed, task, stages"),
        ("- a\n- b\n", "must be a mapping"),
        ("just text", "must be a mapping"),
        (STAGES + "sed: 1", "unknown field 'sed' (fields: planish, source, seed, task, stages)"),
        (STAGES + "1: 2", "unknown field 1"),
        (STAGES + "planish: 2", "planish = 2, this version reads format 1"),
        (STAGES + "seed: many", "seed = 'many' must be a whole number"),
        (STAGES + "seed: -1", "seed = -1 must be"),
        (STAGES + "seed: 1.5", "seed = 1.5 must be"),
        (STAGES + "seed: true", "seed = True must be"),
        (STAGES + "seed: null", "seed = None must be"),
        (STAGES + f"seed: {2**63}", "from 0 to 2**63 - 1"),
        (STAGES + "source: 5", "source = 5 must be text"),
        (STAGES + "source: ''", "source = '' must be text"),
        (STAGES + "source: [a]", "source = ['a'] must be text"),
        (STAGES + "task: text", "task = 'text' must be a mapping with a kind"),
        (STAGES + "task: {kind: chess}", "kind = 'chess' is not one of language-modelling"),
        (STAGES + "task: {kind: classification, data: {path: a}, size: 3}", "unknown field 'size'"),
        ("seed: 1", "stages must be a list such as"),
        ("stages: []", "stages must be a list"),
        ("stages: {zero: {}}", "stages must be a list"),
        ("stages: [5]", "stage 5 must be METHOD or {METHOD: {OPTION: VALUE}}"),
        ("stages: [{a: 1}]", "must be METHOD"),
        ("stages: [{a: {}, b: {}}]", "must be METHOD"),
        ("stages: [{}]", "must be METHOD"),
        ("stages: [{5: {}}]", "must be METHOD"),
        (STAGES + STAGES, "line 1: key 'stages' stands twice"),
        ("stages:\n- zero:\n    sparsity: 0.1\n    sparsity: 0.9\n", "line 3: key 'sparsity' stands twice"),
        ("stages: [{zero: {1: a, true: b}}]", "stands twice"),
        ("a: &x [1]\nb: *x\n", "recipe line 2: YAML aliases are not allowed"),
        ("a: {<<: *x}\n", "aliases are not allowed"),
        ("stages: [zero", "not YAML"),
        ("{[1]: 2}", "not YAML"),
        ("? {a: 1}\n: 2", "not YAML"),
        (
            "stages: !!python/object/apply:os.system ['touch x']",
            "not YAML: could not determine a constructor",
        ),
        ("stages: \x00", "not YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 50_000, "nested too deeply"),
    ],
    ids=range(38),
)
def test_mistakes(text: str, message: str) -> None:
    assert message in refuse(text)


def test_billion_laughs_end_at_once() -> None:
    lines = ["a0: &a0 [ha, ha]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    assert "line 2: YAML aliases are not allowed" in refuse("\n".join(lines))


def test_too_large_missing_or_not_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("#" * (recipe.MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="larger than 1048576 bytes"):
        recipe.read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"r.yaml"):
        recipe.read(path)
    for missing in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(missing)):
            recipe.read(missing)


def test_a_source_too_long_for_a_path_is_kept() -> None:
    assert recipe.parse(STAGES + f"source: {'x' * 5000}")[1] == "x" * 5000
