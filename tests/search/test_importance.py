"""Importances over made-up trials whose deciding parameter is known."""

from __future__ import annotations

import random

import pytest

from orchestrator.search.importance import FEWEST_TRIALS, Value, constant, importance, on_log_scale

Config = dict[str, Value]


def draw(count: int, seed: int = 0) -> list[Config]:
    """A mixed space; `quantize.observer` exists only where something is quantized."""
    chance = random.Random(seed)
    found: list[Config] = []
    for _ in range(count):
        config: Config = {
            "prune_channels.amount": chance.uniform(0, 0.8),
            "recovery.learning_rate": 10 ** chance.uniform(-4, -1),
            "recovery.epochs": chance.randint(1, 8),
            "quantize": chance.choice(["none", "int8"]),
            "augment": chance.random() < 0.5,
            "seed": 7,
        }
        if config["quantize"] == "int8":
            config["quantize.observer"] = chance.choice(["minmax", "mse"])
        found.append(config)
    return found


@pytest.mark.parametrize(
    "name", ["prune_channels.amount", "recovery.learning_rate", "recovery.epochs", "quantize", "augment"]
)
def test_the_deciding_parameter_comes_first(name: str) -> None:
    configs = draw(300)
    losses = [
        float(config[name] in ("int8", True))
        if isinstance(config[name], (str, bool))
        else float(config[name])
        for config in configs
    ]
    noise = random.Random(1)
    found = importance(configs, [loss + 1e-6 * noise.random() for loss in losses])
    assert found.reason == ""
    assert next(iter(found.shares)) == name
    assert sum(found.shares.values()) == pytest.approx(1)
    assert list(found.shares.values()) == sorted(found.shares.values(), reverse=True)


def test_a_conditional_parameter_is_judged_and_a_constant_one_left_out() -> None:
    configs = draw(400)
    losses = [
        -float(config.get("quantize.observer") == "mse") + 1e-3 * index
        for index, config in enumerate(configs)
    ]
    found = importance(configs, losses)
    assert "seed" not in found.shares
    assert next(iter(found.shares)) == "quantize.observer"
    assert constant(configs) == {"seed": 7}


def test_it_says_why_there_is_none() -> None:
    few = draw(FEWEST_TRIALS - 1)
    assert "too few" in importance(few, [float(index) for index in range(len(few))]).reason
    many = draw(40)
    assert "equal" in importance(many, [1.0] * 40).reason
    same: list[Config] = [{"amount": 0.5, "precision": "bf16"}] * 40
    assert "more than one value" in importance(same, [float(index) for index in range(40)]).reason
    lonely: list[Config] = [{} for _ in range(39)] + [{"amount": 0.5}]
    assert importance(lonely, [float(index) for index in range(40)]).reason
    assert importance([], []).reason


def test_what_cannot_be_told_from_chance_is_not_shown() -> None:
    shown = []
    for seed in range(10):
        chance = random.Random(seed)
        found = importance(draw(16, seed), [chance.random() for _ in range(16)])
        assert found.reason or found.shares
        shown += list(found.shares)
    assert len(shown) <= 6  # of sixty


def test_a_failed_trial_without_a_number_is_left_aside() -> None:
    configs = draw(60)
    losses = [float(config["recovery.epochs"]) for config in configs]
    assert importance([*configs, {"odd": "x"}], [*losses, float("nan")]) == importance(configs, losses)


def test_mixed_values_and_a_name_with_any_letters() -> None:
    chance = random.Random(0)
    values: list[Value] = [1, "auto", True]
    configs: list[Config] = [
        {"</script> \u00e9": chance.choice(values), "other": chance.random()} for _ in range(80)
    ]
    losses = [float(config["</script> \u00e9"] == "auto") for config in configs]
    assert next(iter(importance(configs, losses).shares)) == "</script> \u00e9"


def test_numbers_over_two_decades_are_on_a_log_scale() -> None:
    assert on_log_scale([1e-4, 1e-1])
    assert not on_log_scale([1.0, 8.0])
    assert not on_log_scale([0.0, 1e6])
    assert not on_log_scale([])
