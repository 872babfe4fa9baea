"""Explanation as arrays: what each member said in each row, and what that counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.config.ensemble import Boosting, Cascade, Member, Node, Parallel, Stacking, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.ensemble.attribution import disagreement, member_answers, member_weights, used
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import Prediction, distinct, predict, replay
from tests.ensemble.toys import A, B, C, D, lookup, outputs, values

TABLE, LABELS = outputs()
MIX = WeightedMix(members=(B, C), weights=(0.25, 0.75))


def fitted(tree: Any) -> Node:
    return fit(tree, {m: TABLE[m] for m in distinct(tree)}, LABELS, Metric(), "classification")


def answered(tree: Node, missing: tuple[Member, ...] = ()) -> Prediction:
    left = {m: TABLE[Member(name=m.name, digest=m.digest)] for m in distinct(tree)}
    names = {member.name for member in missing}
    return replay(tree, {m: found for m, found in left.items() if m.name not in names}, "classification")


def rebuilt(tree: Node, prediction: Prediction) -> np.ndarray:
    """Probabilities from what the members said and what that counted."""
    answers = member_answers(tree, prediction, "classification")
    weights = member_weights(tree, prediction, "classification")
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    return np.asarray((weights[:, :, None] * answers).sum(axis=1))


@pytest.mark.parametrize(
    "tree",
    [
        Parallel(members=(A, B, C)),
        MIX,
        Parallel(members=(A, MIX, D)),
        WeightedMix(members=(A, Parallel(members=(A, B)), C), weights=(0.2, 0.5, 0.3)),
        Cascade(stages=(A, MIX, D), thresholds=(0.8, 0.7)),
        Cascade(stages=(A, MIX, D), thresholds=(0.8, 0.7), combine="mean"),
        Parallel(members=(Cascade(stages=(A, B), thresholds=(0.7,)), C)),
        Cascade(stages=(A, Cascade(stages=(B, MIX), thresholds=(0.9,))), thresholds=(0.8,)),
        Cascade(stages=(A, MIX), thresholds=(0.0,)),
        WeightedMix(members=(A, B, C), method="gate"),
        A,
    ],
    ids=[
        "mean",
        "mix",
        "nested",
        "shared",
        "cascade",
        "mean cascade",
        "inner",
        "both",
        "early",
        "gate",
        "one",
    ],
)
def test_weighted_answers_of_the_members_are_the_ensembles(tree: Any) -> None:
    tree = tree if isinstance(tree, Member) else fitted(tree)
    prediction = answered(tree)
    assert prediction.probs is not None
    np.testing.assert_allclose(rebuilt(tree, prediction), prediction.probs, atol=1e-5)


@pytest.mark.parametrize("lost", [A, B, C])
@pytest.mark.parametrize(
    "tree",
    [
        Parallel(members=(A, B, C), quorum=2),
        WeightedMix(members=(A, B, C), quorum=1),
        Cascade(stages=(A, Parallel(members=(B, C), quorum=1), D), thresholds=(0.8, 0.7), quorum=2),
    ],
    ids=["mean", "mix", "cascade"],
)
def test_without_a_member_the_others_weights_are_those_that_they_answer_with(tree: Any, lost: Member) -> None:
    tree = fitted(tree)
    prediction = answered(tree, (lost,))
    assert prediction.probs is not None
    np.testing.assert_allclose(rebuilt(tree, prediction), prediction.probs, atol=1e-5)
    position = [member.name for member in prediction.members].index(lost.name)
    assert (member_weights(tree, prediction, "classification")[:, position] == 0).all()


@pytest.mark.parametrize(
    "tree",
    [
        Parallel(members=(A, B, C, D), quorum=3, fallback="best"),
        Parallel(members=(Parallel(members=(A, B)), Parallel(members=(C, D))), quorum=1, fallback="best"),
        Cascade(stages=(Parallel(members=(A, B)), D), thresholds=(0.8,), quorum=2, fallback="best"),
    ],
    ids=["mean", "nested", "cascade"],
)
def test_the_best_alone_counts_for_the_whole_answer_and_agrees_with_it(tree: Any) -> None:
    known = fitted(tree)
    prediction = answered(known, (A, D))
    (best,) = used(known, prediction)
    weights = member_weights(known, prediction, "classification")
    names = [member.name for member in prediction.members]
    np.testing.assert_array_equal(weights, np.tile([name == best.name for name in names], (len(LABELS), 1)))
    answers = member_answers(known, prediction, "classification")
    assert not disagreement(answers, weights, prediction, "classification").any()


def test_weights_of_classes_are_those_of_the_rows_top_class() -> None:
    tree = fitted(WeightedMix(members=(A, B, C), method="per_class", strength=0.1))
    assert isinstance(tree, WeightedMix)
    prediction = answered(tree)
    assert prediction.probs is not None
    top = prediction.probs.argmax(axis=1)
    expected = np.array(tree.class_weights)[:, top].T
    np.testing.assert_allclose(member_weights(tree, prediction, "classification"), expected, atol=1e-6)


def test_votes_and_stacks_count_their_members_alike() -> None:
    for tree in (
        Parallel(members=(A, B, C), rule="vote"),
        Stacking(policy="stacking", members=(A, B, C)),
    ):
        prediction = answered(fitted(tree))
        found = member_weights(fitted(tree), prediction, "classification")
        np.testing.assert_allclose(found, 1 / 3, atol=1e-6)


def test_disagreement_is_the_share_that_says_another_class() -> None:
    tree = Parallel(members=(A, B, C))
    prediction = answered(tree)
    answers = member_answers(tree, prediction, "classification")
    weights = member_weights(tree, prediction, "classification")
    assert prediction.probs is not None
    found = disagreement(answers, weights, prediction, "classification")
    others = np.stack([TABLE[m].argmax(axis=1) for m in (A, B, C)]) != prediction.probs.argmax(axis=1)
    np.testing.assert_allclose(found, others.mean(axis=0), atol=1e-6)
    assert found.dtype == np.float32
    assert 0 < found.mean() < 1


def test_values_and_their_deviation_of_a_regression() -> None:
    table, _ = values()
    tree = WeightedMix(members=(A, B), weights=(0.3, 0.7))
    prediction = replay(tree, {A: table[A], B: table[B]}, "regression")
    answers = member_answers(tree, prediction, "regression")
    weights = member_weights(tree, prediction, "regression")
    np.testing.assert_array_equal(answers[:, 0], table[A])
    np.testing.assert_allclose((weights[:, :, None] * answers).sum(axis=1), prediction.outputs, rtol=1e-5)
    expected = np.sqrt(0.3 * 0.7) * np.abs(table[A] - table[B])
    np.testing.assert_allclose(
        disagreement(answers, weights, prediction, "regression"), expected.mean(axis=1), rtol=1e-4
    )


@pytest.mark.parametrize(("missing", "counted"), [((), [1, 1, 1]), ((C,), [1, 1, 0]), ((B,), [1, 0, 0])])
def test_stages_of_a_sum_count_alike_as_far_as_it_goes(
    missing: tuple[Member, ...], counted: list[int]
) -> None:
    tree = fitted(Boosting(policy="boosting", base="a", members=(A, B, C), factors=(1.0, 0.5, 0.2), quorum=1))
    weights = member_weights(tree, answered(tree, missing), "classification")
    np.testing.assert_allclose(weights, np.tile(np.array(counted) / sum(counted), (len(weights), 1)))


def test_a_stage_of_a_regressions_sum_says_what_the_sum_up_to_it_is() -> None:
    """Else corrections, which lie around zero, would differ from every answer."""
    table, truth = values()
    table = {A: table[A], B: truth - table[A], C: np.zeros_like(truth)}
    own = Boosting(policy="boosting", base="a", members=(A, B, C), factors=(1.0, 0.5, 0.2), quorum=1)
    tree = fit(Parallel(members=(own, D)), table | {D: truth}, truth, Metric(name="rmse"), "regression")
    said = {m: (table | {D: truth})[Member(name=m.name, digest=m.digest)] for m in distinct(tree)}
    for gone, counted in ((None, 3), ("c", 2)):
        prediction = replay(tree, {m: v for m, v in said.items() if m.name != gone}, "regression")
        answers = member_answers(tree, prediction, "regression")
        sums = np.stack([table[A], table[A] + 0.5 * table[B], table[A] + 0.5 * table[B]], axis=1)
        np.testing.assert_allclose(answers[:, :counted], sums[:, :counted], rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answers[:, 3], truth)


def test_a_sum_that_no_row_was_asked_of_says_nothing() -> None:
    later = Boosting(policy="boosting", base="b", members=(B, C), factors=(1.0, 0.5))
    tree = Cascade(stages=(A, later), thresholds=(0.0,))
    rows = np.arange(5)[:, None]
    found = member_answers(tree, predict(tree, lookup(TABLE), rows, "classification"), "classification")
    assert found[:, 0].any()
    assert not found[:, 1:].any()


@pytest.mark.parametrize(
    ("tree", "missing", "made_by"),
    [
        (Parallel(members=(Parallel(members=(A, B)), C), quorum=1), (A,), "c"),
        (Parallel(members=(Parallel(members=(A, B)), B), quorum=1), (A,), "b"),
        (Parallel(members=(Parallel(members=(A, B), quorum=1), C), quorum=1), (A,), "bc"),
        (
            Boosting(policy="boosting", base="a", members=(A, B, C), factors=(1.0, 0.5, 0.5), quorum=1),
            (B,),
            "a",
        ),
        (WeightedMix(members=(A, B, C), weights=(0.0, 0.5, 0.5), quorum=2), (B,), "ac"),
        (Parallel(members=(A, B, C), quorum=3, fallback="best"), (C,), "b"),
        (Cascade(stages=(A, B), thresholds=(0.9,), quorum=1), (B,), "a"),
    ],
    ids=["in vain", "elsewhere too", "inner quorum", "boosting", "no weight", "fallback", "cascade"],
)
def test_an_answer_is_made_by_those_whose_answers_it_is_made_of(
    tree: Any, missing: tuple[Member, ...], made_by: str
) -> None:
    known = fitted(tree)
    prediction = answered(known, missing)
    assert prediction.degraded.any()
    assert "".join(member.name for member in used(known, prediction)) == made_by
