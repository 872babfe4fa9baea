"""Below the quorum, with a fallback: the best of the members that answered."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.ensemble import Boosting, Cascade, Member, Parallel, Spec, WeightedMix, children
from orchestrator.config.measure import Metric
from orchestrator.ensemble.epochs import reweighted
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.tree import Prediction, distinct, replay
from orchestrator.errors import QuorumError
from tests.compression.toys import signature
from tests.ensemble.toys import MEMBERS, A, B, C, D, outputs, values

TABLE, LABELS = outputs()
TREE = fit(Parallel(members=MEMBERS, quorum=3, fallback="best"), TABLE, LABELS, Metric(), "classification")


def without(missing: Collection[str], tree: Any = TREE) -> Prediction:
    left = {member: TABLE[plain] for member, plain in zip(distinct(tree), MEMBERS, strict=True)}
    return replay(tree, {m: found for m, found in left.items() if m.name not in missing}, "classification")


@pytest.mark.parametrize(("missing", "best"), [("ab", "d"), ("ad", "c"), ("cd", "b"), ("bcd", "a")])
def test_the_best_that_is_left_answers_alone_and_says_what_that_is_worth(missing: str, best: str) -> None:
    found = without(missing)
    (used,) = (member for member, rows in found.members.items() if rows.any())
    assert used.name == best
    assert found.degraded.all()
    assert {member.name for member in found.missing} == set(missing)
    alone = replay(used, {used: TABLE[Member(name=best, digest=best * 64)]}, "classification")
    np.testing.assert_array_equal(found.outputs, alone.outputs)
    assert found.expected is not None
    assert found.expected.value == pytest.approx((alone.outputs.argmax(axis=1) == LABELS).mean(), abs=1e-6)


def test_at_the_quorum_all_that_are_left_answer() -> None:
    assert sum(rows.any() for rows in without("d").members.values()) == 3
    assert without("").missing == {}


def test_other_weights_leave_it_as_it_is() -> None:
    mix = WeightedMix(members=MEMBERS, quorum=3, fallback="best")
    tree = fit(mix, TABLE, LABELS, Metric(), "classification")
    spec = Spec(name="mix", tree=tree, signature=signature((4,)))
    for weights in ((0.4, 0.3, 0.2, 0.1), (0.1, 0.2, 0.3, 0.4)):
        spec = reweighted(spec, weights=weights)
        for missing in ("ab", "ad", "bcd"):
            before, found = without(missing, tree), without(missing, spec.tree)
            np.testing.assert_array_equal(found.outputs, before.outputs)
            assert found.expected == before.expected
        # What was measured with the old weights is not said of the new ones.
        assert without("", tree).expected is not None
        assert without("", spec.tree).expected is without("d", spec.tree).expected is None
    assert Spec.model_validate_json(spec.model_dump_json()) == spec


def test_with_nobody_left_and_without_a_fallback_it_is_an_error() -> None:
    steps: Any = WeightedMix(members=(A, B), weights=(0.5, 0.5), quorum=2, fallback="best")
    with pytest.raises(QuorumError):
        replay(fit(steps, TABLE, LABELS, Metric(), "classification"), {C: TABLE[C]}, "classification")
    with pytest.raises(QuorumError):
        without("ab", TREE.model_copy(update={"fallback": None}))


def test_a_member_that_answered_only_some_rows_is_no_fallback() -> None:
    tree = fit(
        Cascade(stages=(A, B), thresholds=(0.9,), quorum=2, fallback="best"),
        TABLE,
        LABELS,
        Metric(),
        "classification",
    )
    first, second = distinct(tree)
    found = replay(tree, {first: TABLE[A]}, "classification")
    assert found.members[first].all()
    with pytest.raises(QuorumError):
        replay(tree, {second: TABLE[B]}, "classification")


def test_the_best_of_an_error_metric_has_the_least() -> None:
    table, truth = values()
    tree = fit(
        Parallel(members=(A, B, D), quorum=3, fallback="best"),
        table,
        truth,
        Metric(name="rmse"),
        "regression",
    )
    first, second, _ = distinct(tree)
    found = replay(tree, {first: table[A], second: table[B]}, "regression")
    np.testing.assert_array_equal(found.outputs, table[B])


def test_small_targets_have_a_best_member_too() -> None:
    table, truth = values()
    scaled = {member: (1e-9 * output).astype(np.float32) for member, output in table.items()}
    asked = Parallel(members=(A, B, D), quorum=3, fallback="best")
    tree = fit(asked, scaled, (1e-9 * truth).astype(np.float32), Metric(name="rmse"), "regression")
    first, second, _ = distinct(tree)
    found = replay(tree, {first: scaled[A], second: scaled[B]}, "regression")
    np.testing.assert_array_equal(found.outputs, scaled[B])
    assert found.expected is not None
    assert 0 < found.expected.low < found.expected.value < found.expected.high


def test_a_later_stage_of_a_boosting_never_answers_alone() -> None:
    boosted = Boosting(policy="boosting", base="a", members=(A, B), factors=(1.0, 0.5), quorum=2)
    tree = fit(
        Parallel(members=(boosted, C), quorum=2, fallback="best"), TABLE, LABELS, Metric(), "classification"
    )
    first, second, other = distinct(tree)
    assert replay(tree, {first: TABLE[A]}, "classification").members[first].all()
    assert replay(tree, {second: TABLE[B], other: TABLE[C]}, "classification").members[other].all()
    with pytest.raises(QuorumError):
        replay(tree, {second: TABLE[B]}, "classification")


def test_a_part_of_another_ensemble_loses_it() -> None:
    own = fit(Parallel(members=(A, B), quorum=1, fallback="best"), TABLE, LABELS, Metric(), "classification")
    outer = bind(Parallel(members=(Member(name="own"), Member(name="c"))), {"own": own, "c": C})
    inner = children(type(outer).model_validate(outer.plain()))[0]
    assert isinstance(inner, Parallel)
    assert (inner.quorum, inner.fallback) == (1, None)


def test_it_belongs_to_the_root_and_needs_a_quorum_and_changes_no_digest_where_it_is_not() -> None:
    with pytest.raises(ValidationError, match="needs a quorum"):
        Parallel(members=(A, B), fallback="best")
    with pytest.raises(ValidationError, match="needs a quorum"):
        Boosting(policy="boosting", base="a", fallback="best")
    with pytest.raises(ValidationError, match="outermost"):
        Parallel(members=(Parallel(members=(A, B), quorum=1, fallback="best"), C))
    assert "fallback" not in Parallel(members=(A, B)).plain()
    plain = fit(Parallel(members=(A, B), quorum=1), TABLE, LABELS, Metric(), "classification").plain()
    assert "alone" not in plain["expected"]
    again = type(TREE).model_validate(TREE.plain())
    assert again == TREE
