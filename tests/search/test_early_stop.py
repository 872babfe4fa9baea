"""Which trials go on."""

from __future__ import annotations

import pytest

from orchestrator.config.search import Halving, Median
from orchestrator.search.early_stop import Report, Rule, rule_of


def asked(rule: Rule, trial: str, epoch: int, metric: float, cost: float = 1.0, epochs: int = 9) -> bool:
    return rule.goes_on(Report(trial, epoch, cost, metric, epochs))


def test_without_a_rule_all_go_on() -> None:
    assert asked(rule_of(None), "a", 1, 0.0)


def test_halving_keeps_the_best_third_of_each_rung() -> None:
    rule = rule_of(Halving(grace=1, factor=3))
    # The first two cannot be compared yet.
    assert asked(rule, "a", 1, 0.5)
    assert asked(rule, "b", 1, 0.4)
    assert not asked(rule, "c", 1, 0.3)
    assert asked(rule, "d", 1, 0.9)
    assert [asked(rule, name, 1, metric) for name, metric in (("e", 0.8), ("f", 0.95))] == [False, True]
    # Between the rungs nothing is stopped; at the next one only those that came there count.
    assert asked(rule, "a", 2, 0.0)
    assert asked(rule, "a", 3, 0.1)


def test_halving_compares_a_cheap_trial_with_cheaper_ones_only() -> None:
    rule = rule_of(Halving(grace=1, factor=2))
    assert all(asked(rule, f"costly {number}", 1, 0.9, cost=10) for number in range(2))
    assert asked(rule, "cheap", 1, 0.5, cost=1)
    assert not asked(rule, "costly and worse", 1, 0.4, cost=10)


def test_halving_ranks_large_and_small_ones_by_how_many_rivals_are_better() -> None:
    """Every trial is better than the smaller ones; those alone that a smaller one beats are stopped."""
    rule = rule_of(Halving(grace=1, factor=3))
    assert all(asked(rule, f"size {size}", 1, 0.5 + size / 100, cost=size) for size in range(1, 9))
    # Only of the two smallest it is the better one.
    assert not asked(rule, "badly trained", 1, 0.525, cost=8)
    assert asked(rule, "well trained", 1, 0.7, cost=4)


def test_a_report_that_comes_twice_counts_once() -> None:
    rule = rule_of(Halving(grace=1, factor=2))
    assert asked(rule, "a", 1, 0.5)
    assert asked(rule, "a", 1, 0.5)
    assert not asked(rule, "b", 1, 0.4)
    assert not asked(rule, "b", 1, 0.4)


def test_median_stops_what_falls_behind() -> None:
    rule = rule_of(Median(grace=2, least=3))
    for trial, metric in (("a", 0.5), ("b", 0.6), ("c", 0.7)):
        assert asked(rule, trial, 1, metric)
        assert asked(rule, trial, 2, metric) == (trial in "abc")
    assert asked(rule, "d", 1, 0.1)
    assert not asked(rule, "d", 2, 0.1)
    # Its best so far counts, and dearer trials do not.
    assert asked(rule, "e", 1, 0.65)
    assert asked(rule, "e", 2, 0.2)
    assert asked(rule, "f", 1, 0.1, cost=0.5)
    assert asked(rule, "f", 2, 0.1, cost=0.5)


@pytest.mark.parametrize("settings", [Halving(grace=2, factor=2), Median(grace=2, least=2)])
def test_a_long_training_is_not_judged_by_short_ones(settings: Halving | Median) -> None:
    """A short one has brought its learning rate down by then, and looks better than a long one does there."""
    rule = rule_of(settings)
    for number in range(4):
        assert asked(rule, f"short {number}", 2, 0.8, epochs=2)
    assert asked(rule, "long", 2, 0.5, epochs=16)
    # The other way round it counts: what beats a short training before it came to rest is better.
    for number in range(4):
        asked(rule, f"longer {number}", 2, 0.6, epochs=16)
    assert not asked(rule, "short and worse", 2, 0.4, epochs=3)


@pytest.mark.parametrize("settings", [Halving(grace=2, factor=2), Median(grace=2, least=2)])
def test_a_trial_at_its_last_epoch_goes_on_and_others_are_judged_by_it(settings: Halving | Median) -> None:
    rule = rule_of(settings)
    for number in range(4):
        assert asked(rule, f"good {number}", 2, 0.8, epochs=4)
    assert asked(rule, "done", 2, 0.1, epochs=2)
    assert not asked(rule, "half done", 2, 0.1, epochs=4)
