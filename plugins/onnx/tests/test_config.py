from __future__ import annotations

import pytest
from pydantic import ValidationError

from planish_onnx.config import OnnxConfig


def test_defaults_and_round_trip():
    config = OnnxConfig()
    assert (config.quantize, config.exporter, config.opset, config.threads) == ("none", "dynamo", None, None)
    assert OnnxConfig.model_validate_json(config.model_dump_json()) == config


def test_every_field_is_described():
    assert all(field.description for field in OnnxConfig.model_fields.values())


@pytest.mark.parametrize(
    "options",
    [
        {"quantise": "int8"},
        {"quantize": "int4"},
        {"exporter": "jit"},
        {"opset": 9},
        {"threads": 0},
        {"verify_tolerance": 0},
        {"verify_tolerance": 1},
        {"quantize": "int8", "dtype": "keep"},
        {"exporter": "optimum", "dtype": "keep"},
    ],
)
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(ValidationError):
        OnnxConfig(**options)
