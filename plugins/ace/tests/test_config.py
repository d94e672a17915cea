"""Options: defaults, bounds, fields that contradict each other, and a light import."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from planish.config import validate
from planish.errors import ConfigError
from planish_ace.config import PRESETS, AceConfig
from planish_ace.pattern import NM


def test_defaults_are_those_of_the_specification() -> None:
    config = AceConfig()
    assert (config.metric, config.base, config.cosp_form, config.aggregation) == (
        "varp",
        "wanda",
        "exact",
        "rms",
    )
    assert (config.pattern, config.row_sparsity, config.varp_reading, config.ria_exponent) == (
        "unstructured",
        0.5,
        "A",
        0.5,
    )
    assert (config.nsamples, config.calibration, config.propagate, config.skip_bos) == (
        128,
        "full",
        "pruned",
        False,
    )
    assert AceConfig(pattern="structured").shares == (0.25, 0.0)
    assert AceConfig(pattern="structured", head_sparsity=0.5).shares == (0.0, 0.5)
    assert AceConfig(pattern="4:8").group == NM(4, 8)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"pattern": "2:4", "sparsity": 0.5}, 'sparsity = 0.5 with pattern "2:4": the pattern alone decides'),
    ({"pattern": "structured", "sparsity": 0.5}, "ffn_sparsity and head_sparsity decides"),
    ({"ffn_sparsity": 0.5}, 'ffn_sparsity = 0.5 with pattern "unstructured": it needs pattern "structured"'),
    ({"pattern": "2:4", "head_sparsity": 0.5}, 'head_sparsity = 0.5 with pattern "2:4"'),
    ({"reconstruct": True}, "reconstruct with pattern"),
    ({"pattern": "4:2"}, "keeps 4 of 2"),
    ({"pattern": "half"}, "not one of"),
    ({"metric": "cosp+varp", "base": "weight"}, "choose wanda or ria"),
    ({"separable": True, "aggregation": "mean_abs"}, "choose rms or sqrt"),
    ({"metric": "sparsegpt"}, "metric = 'sparsegpt'"),
    ({"sparsity": 1.0}, "sparsity = 1.0"),
    ({"sparsity": -0.1}, "sparsity = -0.1"),
    ({"nsamples": 0}, "nsamples = 0"),
    ({"sparcity": 0.5}, "unknown field 'sparcity'"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_contradictions_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(AceConfig, options, "ace")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_field_has_a_description_and_a_round_trip() -> None:
    assert all(field.description for field in AceConfig.model_fields.values())
    config = AceConfig(metric="cosp", pattern="1:4", separable=True)
    assert AceConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: Any) -> None:
    config = AceConfig.preset(name, sparsity=0.6)
    assert config.sparsity == 0.6
    assert all(getattr(config, field) == value for field, value in PRESETS[name].items())


def test_unknown_presets_and_fields_of_presets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"preset 'sparsegpt' is not one of varp"):
        AceConfig.preset("sparsegpt")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        AceConfig.preset("varp", sparcity=0.5)


def test_options_import_without_torch() -> None:
    code = "import sys, planish_ace, planish_ace.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
