"""Answers without some members: calibrated, and worth what is said, for exactly the members that are left."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import (
    Cascade,
    Combined,
    Member,
    Parallel,
    PooledNode,
    Spec,
    WeightedMix,
)
from orchestrator.config.measure import Metric
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.epochs import reweighted
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.missing import fit_trend, sets_of
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import Prediction, replay
from orchestrator.ensemble.weights import likelihood_weights
from orchestrator.measure.metrics import score
from orchestrator.measure.quality import expected_calibration_error
from tests.compression.toys import signature
from tests.ensemble.likely import likely
from tests.ensemble.toys import A, B, C, D, outputs, values

FITTED, LABELS = likely(3_000, 2)
UNSEEN, TRUTH = likely(10_000, 3)
MEMBERS = tuple(FITTED)
Table = dict[Member, Output]


def without(table: Table, *missing: Member) -> Table:
    return {member: output for member, output in table.items() if member not in missing}


def tree_of(kind: type[Parallel | WeightedMix], quorum: int = 3) -> PooledNode:
    asked = kind(members=MEMBERS, quorum=quorum, calibration=TemperatureScaling())
    found = fit(asked, FITTED, LABELS, Metric(), "classification")
    assert isinstance(found, Parallel | WeightedMix)
    return found


def degraded(tree: PooledNode) -> dict[str, Prediction]:
    """Predictions on unseen rows with each one of four members missing."""
    return {member.name: replay(tree, without(UNSEEN, member), "classification") for member in MEMBERS}


def ece(found: Prediction) -> float:
    return expected_calibration_error(found.outputs, TRUTH)


def accuracy(found: Prediction) -> float:
    return score(Metric(), found.outputs, TRUTH)


@pytest.mark.parametrize("kind", [Parallel, WeightedMix])
def test_with_any_one_of_four_missing_confidence_and_expected_accuracy_hold(
    kind: type[Parallel | WeightedMix],
) -> None:
    tree = tree_of(kind)
    assert ece(replay(tree, UNSEEN, "classification")) <= 0.03
    for found in degraded(tree).values():
        assert found.degraded.all()
        assert ece(found) <= 0.03
        assert found.expected is not None
        assert found.expected.low <= accuracy(found) <= found.expected.high


def test_the_expected_accuracy_s_interval_holds_over_draws() -> None:
    """95 % intervals around 3,000 rows, held against 10,000 others, which have an error of their own."""
    inside = 0
    for draw in range(6):
        table, labels = likely(3_000, 100 + draw)
        unseen, truth = likely(10_000, 200 + draw)
        tree = fit(WeightedMix(members=MEMBERS, quorum=3), table, labels, Metric(), "classification")
        for member in MEMBERS:
            found = replay(tree, without(unseen, member), "classification")
            assert found.expected is not None
            inside += found.expected.low <= score(Metric(), found.outputs, truth) <= found.expected.high
    assert inside >= 20  # of 24, of which a draw's four rise and fall together


def test_without_the_subsets_calibration_both_are_visibly_worse() -> None:
    tree = tree_of(WeightedMix)
    whole = degraded(tree.model_copy(update={"survivors": ()}))
    own = degraded(tree)
    # The two members that carry nearly all the weight: m2 and m3.
    for name in ("m2", "m3"):
        assert ece(whole[name]) > 1.5 * ece(own[name])
    assert max(ece(found) for found in whole.values()) > 0.03
    assert tree.expected is not None
    assert tree.expected.complete is not None
    # What the complete ensemble promises does not hold without its best members.
    assert not any(accuracy(own[name]) >= tree.expected.complete.low for name in ("m2", "m3"))


def test_each_set_has_the_weights_and_the_temperature_that_it_would_get_alone() -> None:
    tree = tree_of(WeightedMix, quorum=2)
    assert len(tree.survivors) == 4 + 6
    assert isinstance(tree.calibration, TemperatureScaling)
    assert tree.calibration.temperature is not None
    for found in tree.survivors:
        left = [member for number, member in enumerate(tree.members) if number not in found.without]
        scores = [replay(member, without(FITTED), "classification").scores for member in left]
        assert found.weights == likelihood_weights(scores, LABELS)
        known = {MEMBERS[number] for number in found.without}
        unscaled = found.model_copy(update={"temperature": 1.0})
        raw = tree.model_copy(update={"calibration": None, "survivors": (unscaled,)})
        pool = replay(raw, without(FITTED, *known), "classification").scores
        best = fit_temperature(pool, LABELS)
        assert found.temperature * tree.calibration.temperature == pytest.approx(best, rel=2e-3)


@pytest.mark.parametrize("kind", ["vector", "isotonic"])
def test_a_set_s_temperature_comes_before_any_kind_of_calibration(kind: str) -> None:
    asked = WeightedMix(members=MEMBERS, quorum=3, calibration=kind)
    tree = fit(asked, FITTED, LABELS, Metric(), "classification")
    assert isinstance(tree, WeightedMix)

    def loss(found: WeightedMix, member: Member) -> float:
        answer = replay(found, without(FITTED, member), "classification").outputs
        return score(Metric(name="nll"), answer, LABELS)

    for number, member in enumerate(MEMBERS):
        (own,) = (found for found in tree.survivors if found.without == (number,))
        for temperature in (0.9 * own.temperature, 1.1 * own.temperature):
            other = own.model_copy(update={"temperature": temperature})
            assert loss(tree, member) < loss(tree.model_copy(update={"survivors": (other,)}), member)


def test_given_weights_are_renormalized_and_nothing_is_scaled_without_a_calibration() -> None:
    asked = WeightedMix(members=MEMBERS, weights=(0.1, 0.2, 0.3, 0.4), quorum=1)
    tree = fit(asked, FITTED, LABELS, Metric(), "classification")
    assert isinstance(tree, WeightedMix)
    by_set = {found.without: found for found in tree.survivors}
    assert len(by_set) == 14
    assert by_set[(1, 3)].weights == pytest.approx((0.25, 0.75))
    assert by_set[(0, 1, 2)].weights == pytest.approx((1.0,))
    assert {found.temperature for found in tree.survivors} == {1.0}


def test_with_other_weights_the_members_that_are_left_count_by_these_too() -> None:
    tree = tree_of(WeightedMix)
    spec = Spec(name="ten", tree=tree, signature=signature((4,)))
    other = reweighted(spec, weights=(0.0, 0.0, 0.5, 0.5)).tree
    assert isinstance(other, WeightedMix)
    first, second, third, last = MEMBERS
    found = replay(other, without(UNSEEN, first), "classification")
    same = replay(other, {**UNSEEN, second: UNSEEN[first]}, "classification")  # of no weight, as the first
    np.testing.assert_array_equal(found.outputs.argmax(axis=1), same.outputs.argmax(axis=1))
    alone = replay(other, without(UNSEEN, third), "classification")
    np.testing.assert_array_equal(alone.outputs.argmax(axis=1), UNSEEN[last].argmax(axis=1))
    before = {found.without: found.temperature for found in tree.survivors}
    assert {found.without: found.temperature for found in other.survivors} == before


def test_an_unfitted_quorum_renormalizes() -> None:
    table, _ = outputs(rows=50)
    tree = WeightedMix(members=(A, B, C), weights=(0.2, 0.3, 0.5), quorum=1)
    found = replay(tree, without(table, C, D), "classification").scores
    whole = replay(WeightedMix(members=(A, B), weights=(0.4, 0.6)), table, "classification").scores
    np.testing.assert_allclose(found, whole, atol=1e-12)
    alone = WeightedMix(members=(A, B, C), weights=(0.0, 0.0, 1.0), quorum=2)
    equal = replay(Parallel(members=(A, B)), table, "classification").scores
    np.testing.assert_allclose(
        replay(alone, without(table, C, D), "classification").scores, equal, atol=1e-12
    )


def test_expectations_know_every_set_that_leaves_an_answer_of_a_whole_tree() -> None:
    a, b, c, d = MEMBERS
    tree = Cascade(stages=(a, Parallel(members=(b, c, d), quorum=2)), thresholds=(0.8,), quorum=1)
    found = fit(tree, FITTED, LABELS, Metric(), "classification")
    assert isinstance(found, Combined)
    assert found.expected is not None
    # With a: anything may be missing (below two of b, c, d that stage is lost). Without a: one of b, c, d.
    sets = {known.without for known in found.expected.sets}
    assert sets == {s for s in sets_of(4) if 0 not in s or len(s) <= 2}
    for known in found.expected.sets:
        missing = [MEMBERS[number] for number in known.without]
        answer = replay(found, without(FITTED, *missing), "classification")
        assert known.value == pytest.approx(score(Metric(), answer.outputs, LABELS), abs=1e-6)
        assert answer.expected == known
        assert known.low < known.value < known.high


def test_a_part_of_another_ensemble_loses_what_it_is_worth_by_itself() -> None:
    tree = tree_of(Parallel)
    bound = bind(Parallel(members=(Member(name="x", required=True), A), quorum=1), {"x": tree})
    assert isinstance(bound, Parallel)
    assert bound.members[0] == tree.model_copy(update={"expected": None, "required": True})


def test_regression_gets_weights_and_an_expected_error_and_no_calibration() -> None:
    table, truth = values(rows=400)
    tree = fit(WeightedMix(members=(A, B, C, D), quorum=3), table, truth, Metric(name="rmse"), "regression")
    assert isinstance(tree, WeightedMix)
    found = replay(tree, without(table, D), "regression")
    assert found.expected is not None
    assert found.expected.value == pytest.approx(score(Metric(name="rmse"), found.outputs, truth), rel=1e-4)
    assert tree.expected is not None
    assert tree.expected.complete is not None
    assert found.expected.value > tree.expected.complete.high
    with pytest.raises(Exception, match="only a classification is calibrated: temperature"):
        fit(
            Parallel(members=(A, B), calibration=TemperatureScaling()),
            table,
            truth,
            Metric(name="rmse"),
            "regression",
        )


def test_eight_members_stay_of_sensible_size() -> None:
    table, labels = likely(300, 2, members=8)
    tree = fit(
        WeightedMix(members=tuple(table), quorum=1, calibration=TemperatureScaling()),
        table,
        labels,
        Metric(),
        "classification",
    )
    assert isinstance(tree, WeightedMix)
    assert tree.expected is not None
    assert len(tree.survivors) == len(tree.expected.sets) == 254
    assert len(tree.model_dump_json()) < 64_000
    assert WeightedMix.model_validate_json(tree.model_dump_json()) == tree


def test_many_members_follow_a_rule_that_is_near_the_truth() -> None:
    table, labels = likely(1_500, 3, members=10)
    asked = Parallel(members=tuple(table), quorum=5, calibration=TemperatureScaling())
    tree = fit(asked, table, labels, Metric(), "classification")
    assert isinstance(tree, Parallel)
    assert tree.trend is not None
    assert not tree.survivors
    assert len(tree.model_dump_json()) < 8_000
    bare = tree.model_copy(update={"trend": None})
    rng = np.random.default_rng(0)
    ruled, unruled = [], []
    for _ in range(8):
        missing = [tree.members[i] for i in rng.choice(10, size=int(rng.integers(2, 6)), replace=False)]
        left = {m: o for m, o in table.items() if m.digest not in {lost.digest for lost in missing}}
        answer = replay(tree, left, "classification")
        best = fit_temperature(replay(bare, left, "classification").scores, labels)
        ruled.append(abs(np.log(fit_temperature(answer.scores, labels))))
        unruled.append(abs(np.log(best)))
        assert answer.expected is not None
        assert answer.expected.low <= score(Metric(), answer.outputs, labels) <= answer.expected.high
    # Temperatures still missing after the rule are small, and much smaller than without it.
    assert max(ruled) < 0.06
    assert np.mean(ruled) < 0.5 * np.mean(unruled)


def test_a_nested_tree_of_many_members_knows_what_it_is_worth_without_each_one_alone() -> None:
    """By the rule, five members of one child cost five times what they cost: the child is lost by any."""
    table, labels = likely(300, 3, members=10)
    all_of_them = tuple(table)
    halves = (Parallel(members=all_of_them[:5]), Parallel(members=all_of_them[5:]))
    tree = fit(Parallel(members=halves, quorum=1), table, labels, Metric(), "classification")
    for member in all_of_them:
        answer = replay(tree, without(table, member), "classification")
        assert answer.expected is not None
        assert answer.expected.value == pytest.approx(score(Metric(), answer.outputs, labels), abs=1e-6)
    assert replay(tree, without(table, *all_of_them[:5]), "classification").expected is None


def test_the_rule_is_exact_where_losses_add_up() -> None:
    effects = np.array([0.1, 0.0, -0.2, 0.4, 0.3, 0.05, 0.0, 0.1, 0.2])

    def change(missing: tuple[int, ...]) -> float | None:
        if 1 in missing:
            return None
        return float(effects[list(missing)].sum() * (1.5 if len(missing) > 1 else 1.0))

    found = fit_trend(9, 4, change)
    assert found.effects == pytest.approx(effects)
    assert found.factor == pytest.approx(1.5)
    assert found.spread == pytest.approx(0, abs=1e-6)
    assert fit_trend(9, 1, change).factor == 1.0


def test_sets_are_all_but_the_complete_and_the_empty_one() -> None:
    assert len(sets_of(8)) == 2**8 - 2
    assert sets_of(3) == [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
    assert all(list(found) == sorted(found) for found in sets_of(4))
    assert set(sets_of(4)) == {s for size in (1, 2, 3) for s in combinations(range(4), size)}
