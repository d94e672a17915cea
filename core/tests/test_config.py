"""Options that do not fit: one line that names the field, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from planish.config import MethodConfig, method_config, validate
from planish.errors import ConfigError
from planish.registry import host


def refuse(options: dict[Any, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        method_config(host().method("zero").record, options)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sparsty": 0.5},
            "zero: unknown field 'sparsty' (fields: sparsity, layers, label, inner, names)",
        ),
        ({"sparsity": 1.5}, "zero: sparsity = 1.5: input should be less than 1"),
        ({"sparsity": -1}, "zero: sparsity = -1: input should be greater than or equal to 0"),
        ({"sparsity": "half"}, "zero: sparsity = 'half': input should be a valid number"),
        ({"sparsity": None}, "zero: sparsity = None: input should be a valid number"),
        ({"layers": "last"}, "zero: layers = 'last': input should be 'all' or 'first'"),
        ({"inner": {"width": 9}}, "zero: inner.width = 9: input should be less than or equal to 8"),
        ({"inner": {"wide": 1}}, "zero: unknown field 'inner.wide' (fields: width)"),
        ({"names": ["a", 2]}, "zero: names.1 = 2: input should be a valid string"),
        ({"sparsity": 2, "layers": "last"}, "(and 1 more problem)"),
        ({"sparsity": 2, "layers": "last", "x": 1}, "(and 2 more problems)"),
    ],
)
def test_one_line(options: dict[str, Any], message: str) -> None:
    assert message in refuse(options)


def test_long_values_are_cut_and_other_keys_refused() -> None:
    assert len(refuse({"layers": "x" * 10_000})) < 200
    assert "1" in refuse({1: 2})


def test_required_and_defaults_are_checked() -> None:
    class Options(MethodConfig):
        rate: float

    class Wrong(MethodConfig):
        rate: int = "much"  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="owner: field 'rate' is required"):
        validate(Options, {}, "owner")
    with pytest.raises(ConfigError, match="rate = 'much'"):
        validate(Wrong, {}, "owner")


def test_options_are_immutable() -> None:
    config = method_config(host().method("zero").record, {"sparsity": 0.25})
    with pytest.raises(ValidationError):
        config.sparsity = 0.5  # type: ignore[attr-defined]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["sparsity", "layers", "label", "inner", "names", "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text("ab:é\n", max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=4), inner, max_size=3)
            ),
            max_leaves=5,
        ),
    )
)
def test_anything_is_accepted_or_refused_in_one_line(options: dict[str, Any]) -> None:
    problem = ""
    try:
        config = method_config(host().method("zero").record, options)
    except ConfigError as error:
        problem = str(error)
    if problem:
        assert len(problem.splitlines()) == 1
        assert problem.startswith("zero: ")
    else:
        assert 0 <= config.sparsity < 1  # type: ignore[attr-defined]
        again = method_config(host().method("zero").record, config.model_dump(mode="json"))
        assert again == config
