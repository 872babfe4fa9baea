"""Settings that the fit would pass by are refused, as long as somebody gave them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.toys import pair, refused, run

MIX = {"kind": "weighted_mix"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (MIX | {"strength": 3}, "strength 3 belongs to method per_class or gate, not likelihood"),
        (MIX | {"method": "gate", "rounds": 7}, "rounds 7 belongs to method greedy, not gate"),
        (MIX | {"bags": 4}, "bags 4 belongs to method greedy, not likelihood"),
        ({"trim": 0.3}, "trim 0.3 belongs to rule trimmed_mean, not mean"),
        ({"reject": {"keep": 0.9, "recall": 0.8}}, "reject: keep 0.9 would do nothing beside recall 0.8"),
    ],
)
def test_settings_of_another_method_are_not_passed_by(more: dict[str, Any], said: str) -> None:
    assert f"ensembles.x: {said}" in refused(ensembles={"x": pair("big", "small") | more})


def test_defaults_that_a_saved_run_writes_out_are_no_settings_of_another_method() -> None:
    mix = MIX | {"strength": None, "rounds": 100, "bags": 1}
    mean = {"trim": 0.1, "reject": {"keep": 0.95, "recall": 0.8}}
    both = {"x": pair("big", "small") | mix, "y": pair("big", "small") | mean}
    assert run(ensembles=both, elsewhere={"kind": "embedded"})
