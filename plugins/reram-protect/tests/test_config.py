"""Options: what does not fit together is refused in one line with the field, the value and what is needed."""

from __future__ import annotations

from typing import Any

import pytest

from planish.config import method_config
from planish.errors import ConfigError
from planish_reram_protect import pruners
from planish_reram_protect.config import ReramProtectConfig


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"copies": 2}, 'copies = 2 with vote "bit": an even number only works with vote "healthy"'),
        ({"cell_bits": 3}, "cell_bits = 3 does not divide weight_bits = 8"),
        ({"tile_cols": 3}, "tile_cols = 3: a weight takes 4 neighbouring bit lines"),
        (
            {"target": 0.33},
            "target = 0.33: the copies need 0.3333; raise it, or set partial or allow_overhead",
        ),
        ({"protected_slices": 5}, "protected_slices = 5: a weight has 4 slices"),
        (
            {"embed": "lsb", "protected_slices": 2},
            "2 copies of 2 slices take 4 of the 2 slices that are left",
        ),
        ({"embed": "lsb", "target": 0.5}, 'target = 0.5 with embed "lsb": nothing is pruned'),
        ({"target": 1.5}, "target = 1.5: input should be less than 1"),
        ({"vote": "majority"}, "vote = 'majority'"),
        ({"copys": 3}, "unknown field 'copys'"),
    ],
)
def test_refused_in_one_line(options: dict[str, Any], text: str) -> None:
    (method,) = pruners()
    with pytest.raises(ConfigError) as caught:
        method_config(method, options)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_default_target_is_the_budget_identity_and_one_per_cent() -> None:
    assert ReramProtectConfig().goal == pytest.approx(1 / 3 + 0.01)
    assert ReramProtectConfig(cell_bits=1).needed == pytest.approx(1 / 3)  # two slices of eight
    assert ReramProtectConfig(cell_bits=1, protected_slices=1).needed == pytest.approx(0.2)
    assert ReramProtectConfig(protected_slices=2).needed == pytest.approx(0.5)
    assert ReramProtectConfig(copies=2, vote="healthy").needed == pytest.approx(0.2)


def test_less_is_allowed_where_it_is_asked_for() -> None:
    assert ReramProtectConfig(target=0.2, partial=True).goal == 0.2
    assert ReramProtectConfig(target=0.2, allow_overhead=True).goal == 0.2
    assert ReramProtectConfig(target=1 / 3).goal == pytest.approx(1 / 3)


def test_training_data_is_needed_only_for_pruning() -> None:
    assert ReramProtectConfig().needs == ("training",)
    assert ReramProtectConfig(embed="lsb").needs == ()
