from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import planish_sdk
from planish.errors import PlanishError
from planish_sdk.fixtures import TINY, tiny


def test_importing_the_package_and_its_timer_is_light():
    program = (
        "import sys, planish_sdk, planish_sdk.timing; planish_sdk.interleaved;"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_name_of_the_package_resolves():
    for name in planish_sdk.__all__:
        assert getattr(planish_sdk, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = planish_sdk.nonsense


@pytest.mark.model
@pytest.mark.parametrize("name", TINY)
def test_fixtures_are_fixed_by_their_seed_and_leave_the_random_state(name):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = tiny(name)
    assert torch.equal(torch.rand(3), expected)
    assert not model.training
    states = [tiny(name).state_dict(), tiny(name, seed=1).state_dict()]
    assert all(torch.equal(value, states[0][key]) for key, value in model.state_dict().items())
    assert any(not torch.equal(value, states[1][key]) for key, value in model.state_dict().items())
    assert all(p.std() > 0 for p in model.parameters())
    logits = model(torch.arange(3, 11)[None])
    logits = getattr(logits, "logits", logits)
    assert logits.shape == (1, 8, 96)
    assert logits.isfinite().all()


@pytest.mark.model
def test_a_tied_fixture_is_tied_and_dtypes_are_kept():
    model = tiny("llama-tied", dtype=torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_unknown_fixtures_are_refused():
    with pytest.raises(PlanishError, match="got 'lama', choose from llama"):
        tiny("lama")
