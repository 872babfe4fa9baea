"""Batches: fixed size, no repeats, the same suggestions for the same results."""

from __future__ import annotations

import random

import pytest

from orchestrator.config.search import Choice, SearchSettings, Space, Uniform
from orchestrator.errors import SearchError
from orchestrator.search.objectives import TrialRow
from orchestrator.search.space import Config, variant_key
from orchestrator.search.study import BatchStudy, Suggestion
from tests.search.rows import evaluated


def result(suggestion: Suggestion) -> TrialRow:
    """A made-up trade-off: pruning loses accuracy and time, each precision has its price."""
    amount = float(suggestion.config["amount"])
    precision = str(suggestion.config["precision"])
    price = {"fp32": 0.0, "bf16": 0.001, "int8_static": 0.01, "int8_dynamic": 0.02}
    whole = {"fp32": 4.0, "bf16": 2.0, "int8_static": 1.5, "int8_dynamic": 3.0}
    latency = (1 - amount) * whole[precision]
    row = evaluated(suggestion.number, suggestion.config, drop=0.05 * amount**2 + price[precision])
    if suggestion.config.get("criterion") == "fpgm" and amount == 0.5:
        return row.failed("cannot be pruned")
    return row.measured(latency, (latency, latency), 4 / latency, (4 / latency, 4 / latency))


def run(settings: SearchSettings, seed: int, shuffle: random.Random | None = None) -> list[Config]:
    study, configs = BatchStudy(settings, seed), []
    while batch := study.ask():
        rows = [result(suggestion) for suggestion in batch]
        if shuffle:
            shuffle.shuffle(rows)
        study.tell(rows)
        configs += [suggestion.config for suggestion in batch]
    return configs


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_suggestions_repeat_whatever_the_order_of_results(sampler: str) -> None:
    settings = SearchSettings.model_validate({"trials": 18, "batch": 4, "sampler": sampler})
    first = run(settings, seed=3)
    assert len(first) == 18
    assert run(settings, seed=3, shuffle=random.Random(1)) == first
    assert run(settings, seed=4) != first


@pytest.mark.parametrize("sampler", ["tpe", "random", "nsga2"])
def test_no_variant_is_suggested_twice(sampler: str) -> None:
    settings = SearchSettings.model_validate({"trials": 40, "batch": 4, "sampler": sampler})
    keys = [variant_key(config, settings) for config in run(settings, seed=0)]
    assert len(keys) == len(set(keys)) == 40


def test_a_used_up_space_ends_the_search() -> None:
    space = Space(amount=Choice(values=(0.0, 0.5)), criterion=("l2",), precision=("fp32", "bf16"))
    settings = SearchSettings(trials=30, batch=4, space=space)
    # 2 whole ones, 2 temperatures x 2 precisions.
    assert len(run(settings, seed=0)) == 6


def test_the_first_suggestions_are_the_plain_precisions() -> None:
    configs = run(SearchSettings(trials=12, batch=4), seed=0)
    assert [config["precision"] for config in configs[:4]] == ["fp32", "bf16", "int8_static", "int8_dynamic"]
    assert all(config["amount"] == 0 for config in configs[:4])


def test_batches_have_the_fixed_size_and_the_last_what_is_left() -> None:
    study, sizes = BatchStudy(SearchSettings(trials=10, batch=4), seed=0), []
    while batch := study.ask():
        sizes.append(len(batch))
        study.tell([result(suggestion) for suggestion in batch])
    assert sizes == [4, 4, 2]


def test_a_continuous_space_works() -> None:
    settings = SearchSettings(trials=12, batch=4, space=Space(amount=Uniform(low=0.1, high=0.6)))
    amounts = [float(config["amount"]) for config in run(settings, seed=0)]
    assert len(set(amounts)) == 12
    assert all(0.1 <= amount <= 0.6 for amount in amounts)


def test_asking_before_telling_and_telling_the_wrong_rows_is_refused() -> None:
    study = BatchStudy(SearchSettings(), seed=0)
    batch = study.ask()
    with pytest.raises(SearchError, match="before"):
        study.ask()
    with pytest.raises(SearchError, match="do not match"):
        study.tell([result(batch[0])])


def test_tpe_keeps_to_the_constraint_more_than_random() -> None:
    """Only amounts up to about 0.6 keep the drop; pruning more is always faster."""
    space = Space(amount=Uniform(low=0.05, high=0.95), criterion=("l2",), precision=("fp32",))

    def feasible(sampler: str) -> int:
        settings = SearchSettings.model_validate(
            {"trials": 40, "batch": 4, "sampler": sampler, "space": space}
        )
        found = [config for seed in range(3) for config in run(settings, seed)[20:]]
        return sum(result(Suggestion(0, config)).feasible for config in found)

    assert feasible("tpe") > 1.2 * feasible("random")
