"""Greedy selection equals its definition written out, and keeps what the paper promises."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.measure import Metric
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.greedy import greedy_weights, selection
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.weights import likelihood_weights
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import MEMBERS, outputs, values

TABLE, TARGETS = outputs(rows=300)
SCORES = [log_softmax(TABLE[member]) for member in MEMBERS]
NLL = Metric(name="nll")


def weights_of(scores: list[Floats], objective: Objective, rounds: int = 100, bags: int = 1) -> Any:
    return greedy_weights(*objective.additive(scores), rounds, bags)


def by_definition(scores: list[Floats], targets: Any, metric: Metric, rounds: int) -> list[int]:
    """Every step from the members' outputs alone: the mean of every multiset is made and scored anew."""
    sign = -1.0 if metric.name == "accuracy" else 1.0

    def loss(multiset: list[int]) -> tuple[float, float]:
        mean = np.log(np.mean([np.exp(scores[member]) for member in multiset], axis=0))
        return round(sign * score(metric, mean, targets), 12), round(score(NLL, mean, targets), 12)

    ranked = sorted(range(len(scores)), key=lambda member: loss([member]))
    starts = [ranked[: count + 1] for count in range(len(ranked))]
    history = [min(starts, key=loss)]
    for _ in range(rounds):
        history.append(min(([*history[-1], member] for member in range(len(scores))), key=loss))
    return min(history, key=loss)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.sampled_from(["nll", "accuracy"]))
def test_it_equals_the_definition(seed: int, members: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=40)
    skills = rng.uniform(0, 2, size=members)
    scores = [log_softmax(rng.normal(size=(40, 3)) + skill * np.eye(3)[targets]) for skill in skills]
    metric = Metric(name=name)
    objective = Objective(targets, "classification", None if name == "nll" else metric)
    found = selection(*objective.additive(scores), rounds=12)
    assert sorted(found) == sorted(by_definition(scores, targets, metric, 12))


def test_many_rounds_come_near_the_optimum_of_the_likelihood() -> None:
    objective = Objective(TARGETS, "classification")
    optimum = objective.loss(pool(SCORES, likelihood_weights(SCORES, TARGETS), "classification"))[0]
    found = [
        objective.loss(pool(SCORES, weights_of(SCORES, objective, rounds), "classification"))[0]
        for rounds in (1, 10, 300)
    ]
    assert found == sorted(found, reverse=True)
    assert optimum - 1e-9 <= found[-1] < optimum + 1e-4


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "auroc"])
def test_the_metric_is_at_least_the_best_member_s_where_it_was_selected_by(name: str) -> None:
    metric = Metric(name=name)
    weights = weights_of(SCORES, Objective(TARGETS, "classification", metric))
    mixed = score(metric, pool(SCORES, weights, "classification"), TARGETS)
    assert mixed >= max(score(metric, scores, TARGETS) for scores in SCORES)
    by_likelihood = pool(SCORES, likelihood_weights(SCORES, TARGETS), "classification")
    assert mixed >= score(metric, by_likelihood, TARGETS)


def test_the_best_round_is_kept_not_the_last() -> None:
    """One row that only the first two members together get right; more of either loses it again."""
    parts = np.array([[0.0], [1.0]])
    found = selection(parts, lambda mean: (abs(float(mean[0]) - 0.5),), rounds=7)
    assert found == [0, 1]


def test_it_starts_with_the_best_members_together() -> None:
    # Errors of the first two cancel; the third is the worst and is never taken.
    parts = np.array([[1.0, -1.0], [-1.0, 1.0], [3.0, 3.0]])
    assert selection(parts, lambda mean: (float(np.square(mean).mean()),), rounds=5) == [0, 1]


def test_ties_go_to_the_first_and_a_tied_metric_is_decided_by_likelihood() -> None:
    objective = Objective(TARGETS, "classification", Metric())
    same = [SCORES[3], SCORES[3], SCORES[3]]
    assert weights_of(same, objective) == (1.0, 0.0, 0.0)
    # Equally accurate, the second is more confident where it is right.
    shy, sure = log_softmax(0.1 * TABLE[MEMBERS[3]]), SCORES[3]
    assert weights_of([shy, sure], objective) == (0.0, 1.0)


def test_the_order_of_members_and_a_second_time_do_not_matter() -> None:
    for metric in (None, Metric()):
        objective = Objective(TARGETS, "classification", metric)
        weights = weights_of(SCORES, objective)
        assert weights == weights_of(SCORES, objective)
        assert weights_of(SCORES[::-1], objective)[::-1] == pytest.approx(weights)


def test_bags_spread_the_weight_and_are_the_same_again() -> None:
    objective = Objective(TARGETS, "classification")
    bagged = weights_of(SCORES, objective, rounds=20, bags=30)
    assert bagged == weights_of(SCORES, objective, rounds=20, bags=30)
    assert sum(bagged) == pytest.approx(1)
    assert min(bagged) > min(weights_of(SCORES, objective, rounds=20))
    assert sorted(bagged) == list(bagged)


def test_a_regression_is_selected_by_scaled_squared_error_or_its_metric() -> None:
    table, truth = values(rows=300)
    scores = [table[member].astype(np.float64) for member in MEMBERS]
    plain = weights_of(scores, Objective(truth, "regression"))
    assert plain[3] == max(plain) > 0.3
    metric = Metric(name="mae")
    chosen = weights_of(scores, Objective(truth, "regression", metric))
    mixed = score(metric, pool(scores, chosen, "regression"), truth)
    assert mixed <= min(score(metric, found, truth) for found in scores)


def test_a_label_that_every_member_rules_out_does_not_stop_it() -> None:
    far = log_softmax(np.where(np.eye(4)[TARGETS] > 0, -2000.0, 0.0))
    for metric in (None, Metric()):
        weights = weights_of([far, far + 0.0, SCORES[0]], Objective(TARGETS, "classification", metric))
        assert weights[2] == max(weights)
        assert sum(weights_of([far, far + 0.0], Objective(TARGETS, "classification", metric))) == 1.0
