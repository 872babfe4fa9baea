"""Contributions of members: Shapley's axioms on real trees, and figures made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.ensemble import Cascade, Member, Node, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.ensemble.contributions import all_coalitions, contributions, restricted, shapley
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct, replay
from tests.ensemble.toys import A, B, C, D, cascade, mix, outputs, parallel, values

TREES = {
    "parallel": parallel(A, B, C),
    "weighted_mix": mix(A, B, C, weights=(0.5, 0.2, 0.3)),
    "cascade": cascade(A, B, C, thresholds=(0.9, 0.8)),
    "nested": parallel(cascade(A, B, thresholds=(0.7,)), mix(C, D, weights=(0.4, 0.6)), A),
}


def test_shapley_of_a_game_of_gloves() -> None:
    # 0 has a left glove, 1 and 2 a right one: a pair is worth 1. Known values: 2/3, 1/6, 1/6.
    worth = {found: float(0 in found and len(found) > 1) for found in all_coalitions(3)}
    assert shapley(worth, 3) == pytest.approx((2 / 3, 1 / 6, 1 / 6))


def test_shapley_of_an_additive_game_is_each_ones_own_worth() -> None:
    own = (3.0, -1.0, 0.0, 0.5)
    worth = {found: sum(own[member] for member in found) for found in all_coalitions(4)}
    assert shapley(worth, 4) == pytest.approx(own)


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_shares_sum_to_the_whole(tree: Node) -> None:
    members, targets = outputs()
    found = contributions(tree, members, targets, "classification")
    assert found is not None
    scores = replay(tree, members, "classification").scores
    whole = {
        "accuracy": (scores.argmax(axis=1) == targets).mean() - 1 / 4,
        "nll": scores[np.arange(len(targets)), targets].mean() + np.log(4),
    }
    assert set(found) == set(whole)
    for measure, expected in whole.items():
        assert sum(one.shapley or 0.0 for one in found[measure]) == pytest.approx(expected)
        assert all(one.shapley is not None for one in found[measure])


def test_symmetric_members_have_equal_shares() -> None:
    members, targets = outputs()
    twin = Member(name="twin", digest="t" * 64)
    members[twin] = members[B]
    found = contributions(parallel(B, A, twin), members, targets, "classification")
    assert found is not None
    for shares in found.values():
        assert shares[0].shapley == pytest.approx(shares[2].shapley)
        assert shares[0].leave_one_out == pytest.approx(shares[2].leave_one_out)
        assert shares[0].alone == pytest.approx(shares[2].alone)
        assert shares[0].shapley != pytest.approx(shares[1].shapley)


def test_a_constant_member_has_no_share_in_the_accuracy() -> None:
    members, _ = outputs()
    targets = np.tile(np.arange(4), 50)
    rng = np.random.default_rng(0)
    for member in (A, B):
        members[member] = (np.eye(4)[targets] + rng.normal(size=(200, 4))).astype(np.float32)
    members[C] = np.zeros((200, 4), dtype=np.float32)
    found = contributions(parallel(A, B, C), members, targets, "classification")
    assert found is not None
    accuracy = found["accuracy"]
    assert (accuracy[2].alone, accuracy[2].leave_one_out, accuracy[2].shapley) == pytest.approx((0, 0, 0))
    assert min(accuracy[0].shapley or 0, accuracy[1].shapley or 0) > 0.1


def test_a_member_without_weight_counts_only_where_nobody_else_has_any() -> None:
    members, targets = outputs()
    found = contributions(mix(A, B, weights=(1.0, 0.0)), members, targets, "classification")
    assert found is not None
    assert found["accuracy"][1].leave_one_out == 0
    alone = (members[B].argmax(axis=1) == targets).mean() - 1 / 4
    assert found["accuracy"][1].alone == pytest.approx(alone)
    # Of two members: half of what it is worth alone.
    assert found["accuracy"][1].shapley == pytest.approx(alone / 2)


def test_regression_counts_squared_error_saved_against_the_mean_of_the_targets() -> None:
    members, targets = values(targets=1)
    found = contributions(mix(A, B, weights=(0.3, 0.7)), members, targets, "regression")
    assert found is not None
    (measure,) = found
    assert measure == "squared_error"

    def error(prediction: np.ndarray) -> float:
        return float(np.square(prediction - targets).mean())

    nothing = float(targets.var())
    both = error(0.3 * members[A].astype(np.float64) + 0.7 * members[B].astype(np.float64))
    one, other = error(members[A]), error(members[B])
    first, second = found[measure]
    assert first.alone == pytest.approx(nothing - one, rel=1e-5)
    assert second.leave_one_out == pytest.approx(one - both, rel=1e-5)
    assert first.shapley == pytest.approx((nothing - one + other - both) / 2, rel=1e-5)


def test_a_restricted_mix_has_renormalised_weights_and_a_cascade_its_own_thresholds() -> None:
    left = restricted(mix(A, B, C, weights=(0.5, 0.2, 0.3)), (0, 2))
    assert isinstance(left, WeightedMix)
    assert left.members == (A, C)
    assert left.weights == pytest.approx((0.625, 0.375))
    stages = restricted(cascade(A, B, C, thresholds=(0.9, 0.8)), (1, 2))
    assert isinstance(stages, Cascade)
    assert (stages.stages, stages.thresholds) == ((B, C), (0.8,))
    first = restricted(cascade(A, B, C, thresholds=(0.9, 0.8)), (0, 1))
    assert isinstance(first, Cascade)
    assert (first.stages, first.thresholds) == ((A, B), (0.9,))
    assert restricted(A, (0,)) is None


def test_many_members_have_no_shapley_value_but_the_rest() -> None:
    members, targets = outputs(rows=40)
    many = [Member(name=f"m{place}", digest=f"{place:064d}") for place in range(11)]
    table = {member: members[(A, B, C, D)[place % 4]] for place, member in enumerate(many)}
    found = contributions(parallel(*many), table, targets, "classification")
    assert found is not None
    assert [one.shapley for one in found["nll"]] == [None] * 11
    without = replay(parallel(*many[1:]), table, "classification").scores
    whole = replay(parallel(*many), table, "classification").scores
    rows = np.arange(40)
    expected = whole[rows, targets].mean() - without[rows, targets].mean()
    assert found["nll"][0].leave_one_out == pytest.approx(expected)


def test_fitted_trees_are_restricted_with_their_temperatures() -> None:
    members, targets = outputs()
    fitted = fit(mix(A, B, C), members, targets, Metric(), "classification")
    found = contributions(fitted, members, targets, "classification")
    assert found is not None
    leaf = distinct(fitted)[0]
    alone = replay(leaf, members, "classification").scores[np.arange(len(targets)), targets].mean()
    assert found["nll"][0].alone == pytest.approx(alone + np.log(4))
