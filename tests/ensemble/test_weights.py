"""Mix weights: optimal by the KKT conditions, and by comparison with a general solver."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.ensemble import Rule
from orchestrator.ensemble.combine import pool
from orchestrator.ensemble.weights import (
    duality_gap,
    likelihood_weights,
    simplex_minimum,
    squared_error_weights,
    vote_weights,
)
from orchestrator.measure.metrics import log_softmax
from tests.ensemble.toys import MEMBERS, A, B, outputs, values


def likelihood_gap(scores: list[Any], targets: Any, weights: tuple[float, ...]) -> float:
    odds = np.exp(np.stack([member[np.arange(len(targets)), targets] for member in scores], axis=1))
    mixed = odds @ np.array(weights)
    return duality_gap(np.array(weights), -(odds / mixed[:, None]).mean(axis=0))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.floats(0.1, 30), st.integers(1, 80))
def test_likelihood_weights_fulfil_the_optimality_conditions(
    seed: int, members: int, scale: float, rows: int
) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=rows)
    scores = [log_softmax(scale * rng.normal(size=(rows, 3))) for _ in range(members)]
    weights = likelihood_weights(scores, targets)
    assert min(weights) >= 0
    assert sum(weights) == pytest.approx(1, abs=1e-12)
    # The gap bounds how much likelihood, in nats a row, any other weights could win.
    assert likelihood_gap(scores, targets, weights) < 2e-6


def test_likelihood_weights_equal_a_general_solver() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    table, targets = outputs(rows=400)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    odds = np.exp(np.stack([member[np.arange(400), targets] for member in scores], axis=1))
    reference = optimize.minimize(
        lambda w: -np.log(odds @ w).mean(),
        np.full(4, 0.25),
        bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(likelihood_weights(scores, targets), reference.x, atol=1e-5)


def test_a_mix_is_never_worse_than_its_best_member_where_it_was_fitted() -> None:
    table, targets = outputs(rows=300, seed=3)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    picked = np.stack([member[np.arange(300), targets] for member in scores], axis=1)
    mixed = np.log(np.exp(picked) @ np.array(likelihood_weights(scores, targets))).mean()
    assert mixed >= picked.mean(axis=0).max()


def test_a_useless_member_gets_no_weight_and_a_perfect_one_all() -> None:
    targets = np.arange(90) % 3
    perfect = log_softmax(30 * np.eye(3)[targets])
    wrong = log_softmax(30 * np.eye(3)[(targets + 1) % 3])
    flat = log_softmax(np.zeros((90, 3)))
    assert likelihood_weights([wrong, perfect, flat], targets) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("prior", [1, 5])
def test_a_prior_is_as_many_rows_that_each_member_alone_answers(prior: int) -> None:
    table, targets = outputs(rows=60, seed=5)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    chances = np.exp(np.stack([member[np.arange(60), targets] for member in scores]))
    # Expectation maximization finds the same maximum: mean shares with the rows added, until nothing moves.
    weights = np.full(4, 0.25)
    for _ in range(20_000):
        shares = weights[:, None] * chances
        counted = (shares / shares.sum(axis=0)).sum(axis=1) + prior
        weights = counted / counted.sum()
    np.testing.assert_allclose(likelihood_weights(scores, targets, prior), weights, atol=1e-5)


def test_a_prior_keeps_every_member_and_gives_way_to_rows() -> None:
    def least(rows: int) -> float:
        targets = np.arange(rows) % 3
        perfect = log_softmax(30 * np.eye(3)[targets])
        wrong = log_softmax(30 * np.eye(3)[(targets + 1) % 3])
        return likelihood_weights([wrong, perfect], targets, 1)[0]

    assert least(9) == pytest.approx(1 / 11, abs=1e-6)  # 1 of 9 rows + 2 added ones
    assert least(900) == pytest.approx(1 / 902, abs=1e-6)


def test_equal_members_and_hopeless_rows_do_not_upset_the_solver() -> None:
    table, targets = outputs(rows=50)
    same = log_softmax(table[A])
    weights = likelihood_weights([same, same, same], targets)
    assert sum(weights) == pytest.approx(1)
    far = log_softmax(np.where(np.eye(4)[targets] > 0, -2000.0, 0.0))
    assert likelihood_weights([far, same], targets)[1] == pytest.approx(1, abs=1e-6)
    assert sum(likelihood_weights([far, far + 0.0], targets)) == pytest.approx(1)


def test_weights_are_the_same_again_and_follow_the_members_order() -> None:
    table, targets = outputs(rows=150)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    weights = likelihood_weights(scores, targets)
    assert weights == likelihood_weights(scores, targets)
    turned = likelihood_weights(scores[::-1], targets)
    np.testing.assert_allclose(turned[::-1], weights, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 10))
def test_simplex_minimum_fulfils_the_optimality_conditions(seed: int, members: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(rank, members))
    matrix = factor.T @ factor
    linear = matrix @ rng.normal(size=members)
    weights = simplex_minimum(matrix, linear)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    scale = max(np.abs(matrix).max(), np.abs(linear).max())
    assert duality_gap(weights, matrix @ weights + linear) < 1e-9 * scale


def test_squared_error_weights_by_hand() -> None:
    targets = np.zeros((4, 1))
    plus, minus = np.ones((4, 1)), np.full((4, 1), -3.0)
    # w * 1 - (1 - w) * 3 = 0 at w = 3/4.
    assert squared_error_weights([plus, minus], targets, "regression") == pytest.approx((0.75, 0.25))
    assert squared_error_weights([plus, 2 * plus], targets, "regression") == (1.0, 0.0)


def test_squared_error_weighs_targets_of_different_units_alike() -> None:
    table, truth = values(rows=400)
    scores = [table[member].astype(np.float64) for member in MEMBERS]
    weights = squared_error_weights(scores, truth.astype(np.float64), "regression")
    scaled = squared_error_weights(
        [found * [1, 1000] for found in scores], truth * np.array([1.0, 1000.0]), "regression"
    )
    np.testing.assert_allclose(weights, scaled, atol=1e-8)
    assert weights[3] == max(weights)


def test_one_row_is_enough_to_answer() -> None:
    table, targets = outputs(rows=1)
    assert sum(likelihood_weights([log_softmax(table[A]), log_softmax(table[B])], targets)) == 1.0


def voters(accuracies: list[float], rows: int = 1000, classes: int = 3) -> tuple[list[Any], Any]:
    """Members of exactly these accuracies, whose errors fall on the next class."""
    targets = np.arange(rows) % classes
    wrong = [np.arange(rows) >= round(accuracy * rows) for accuracy in accuracies]
    return [log_softmax(np.eye(classes)[(targets + miss) % classes]) for miss in wrong], targets


def test_votes_are_worth_the_log_odds_of_the_accuracy() -> None:
    scores, targets = voters([0.9, 0.6, 0.5])
    odds = [901 / 101 * 2, 601 / 401 * 2, 501 / 501 * 2]
    assert vote_weights(scores, targets) == pytest.approx(np.log(odds) / np.log(odds).sum())
    # Better than chance among three classes, though right in less than half of the rows; and not better.
    assert vote_weights(voters([0.9, 0.4])[0], targets)[1] > 0
    assert vote_weights(voters([0.9, 0.3])[0], targets) == (1.0, 0.0)
    assert vote_weights(voters([0.1, 0.2])[0], targets) == (0.5, 0.5)
    assert vote_weights(voters([1.0, 1.0, 0.9])[0], targets)[0] < 0.5


def test_weighted_votes_of_independent_members_beat_equal_votes() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=4000)

    def member(accuracy: float) -> Any:
        shift = np.where(rng.random(4000) < accuracy, 0, rng.integers(1, 3, size=4000))
        return log_softmax(np.eye(3)[(targets + shift) % 3])

    scores = [member(accuracy) for accuracy in (0.9, 0.55, 0.55, 0.5, 0.5)]
    weights = vote_weights([found[:2000] for found in scores], targets[:2000])
    rest = [found[2000:] for found in scores]

    def accuracy(weights: tuple[float, ...] | None) -> float:
        rule: Rule = "vote" if weights is None else "weighted_vote"
        return float((pool(rest, weights, "classification", rule).argmax(axis=1) == targets[2000:]).mean())

    assert accuracy(weights) > accuracy(None) + 0.03
