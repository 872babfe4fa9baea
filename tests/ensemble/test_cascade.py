"""Cascades walked and fitted: who leaves by which criterion, and what a fitted cascade records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.config.calibration import VectorScaling
from orchestrator.config.ensemble import Cascade, Ensemble, Node, Parallel
from orchestrator.config.guarantee import Guarantee
from orchestrator.config.measure import Metric
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.thresholds import NONE_LEAVES
from orchestrator.ensemble.tree import mean_cost, replay
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from tests.ensemble.toys import A, B, C, D, cascade, mix, outputs, parallel

TABLE, TARGETS = outputs(rows=400)
UNSEEN = outputs(rows=2000, seed=1)
ACCURACY = Metric()
MACS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 10.0}


def fitted(tree: Node, **more: Any) -> Cascade:
    found = fit(tree, TABLE, TARGETS, ACCURACY, "classification", **more)
    assert isinstance(found, Cascade)
    return found


def test_a_missing_member_agrees_with_nobody() -> None:
    """Else the one that is left would let every row leave."""
    tree = cascade(Parallel(members=(A, B, C), quorum=1), D, thresholds=(0.5,), criterion="agreement")
    alone = replay(tree, {member: TABLE[member] for member in (A, D)}, "classification")
    assert (alone.stages == 1).all()
    pair = replay(tree, {member: TABLE[member] for member in (A, B, D)}, "classification")
    agreed = TABLE[A].argmax(axis=1) == TABLE[B].argmax(axis=1)
    np.testing.assert_array_equal(pair.stages == 0, agreed)


def test_rows_leave_whose_members_agree() -> None:
    labels = {member: TABLE[member].argmax(axis=1) for member in (A, B, C)}
    tree = cascade(parallel(A, B), D, thresholds=(0.75,), criterion="agreement")
    agreed = labels[A] == labels[B]
    np.testing.assert_array_equal(replay(tree, TABLE, "classification").stages == 0, agreed)
    # By weight: A alone has three quarters, so a row leaves whenever the mix says what A says.
    tree = cascade(mix(A, C, weights=(0.75, 0.25)), D, thresholds=(0.5,), criterion="agreement")
    own = replay(tree.stages[0], TABLE, "classification").outputs.argmax(axis=1)
    left = replay(tree, TABLE, "classification").stages == 0
    np.testing.assert_array_equal(left, own == labels[A])
    assert 0 < left.sum() < 400


def test_a_single_model_cannot_agree() -> None:
    with pytest.raises(EnsembleError, match="no members that could agree"):
        fitted(cascade(A, D, criterion="agreement"))


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy"])
def test_every_criterion_lets_the_surest_rows_leave_first(criterion: str) -> None:
    right = TABLE[A].argmax(axis=1) == TARGETS
    found = fitted(cascade(A, D, criterion=criterion, tolerance=0.05))
    left = replay(found, TABLE, "classification").stages == 0
    assert 0.1 < left.mean() < 0.9
    assert right[left].mean() > right[~left].mean() + 0.1


def test_a_mean_joins_the_stages_that_a_row_has_seen() -> None:
    tree = cascade(A, B, C, thresholds=(0.6, 0.7), combine="mean")
    found = replay(tree, TABLE, "classification")
    expected: dict[int, Ensemble] = {1: parallel(A, B), 2: parallel(A, B, C)}
    for stage, together in expected.items():
        rows = found.stages == stage
        assert rows.any()
        alike = replay(together, TABLE, "classification").scores[rows]
        np.testing.assert_allclose(found.scores[rows], alike, atol=1e-12)
    left = found.stages == 0
    np.testing.assert_array_equal(found.scores[left], log_softmax(TABLE[A])[left])
    # It is the averaged answer that must be sure enough to leave at the second stage.
    pair = np.exp(replay(expected[1], TABLE, "classification").scores.max(axis=1))
    np.testing.assert_array_equal(pair[~left] >= 0.7, found.stages[~left] == 1)


def test_a_fitted_mean_is_judged_by_the_mean_of_all_stages() -> None:
    found = fitted(cascade(B, C, combine="mean"))
    walked = replay(found, TABLE, "classification")
    last = replay(parallel(*found.stages), TABLE, "classification")
    lost = (last.outputs.argmax(axis=1) == TARGETS) & (walked.outputs.argmax(axis=1) != TARGETS)
    assert not lost.any()
    assert (walked.stages == 0).any()


@pytest.mark.parametrize("max_cost", [0.4, 0.7])
def test_a_cost_is_kept_as_it_will_be_counted(max_cost: float) -> None:
    """A is asked once by both stages, so it counts once."""
    found = fitted(cascade(A, mix(A, D), max_cost=max_cost), cost=lambda member: MACS[member.name])
    walked = replay(found, TABLE, "classification")
    spent = mean_cost(walked, {member: MACS[member.name] for member in walked.members})
    assert max_cost - 0.02 < spent <= max_cost


def test_a_cost_that_cannot_be_met_is_refused_unless_it_is_one_aim_of_several() -> None:
    with pytest.raises(EnsembleError, match="max_cost needs the members' costs"):
        fitted(cascade(A, D, max_cost=0.5))
    dear: dict[str, Any] = {"cost": lambda member: {"a": 5.0, "d": 1.0}[member.name]}
    with pytest.raises(EnsembleError, match=r"first stage alone costs more .*: 0\.833 of the whole"):
        fitted(cascade(A, D, max_cost=0.5), **dear)
    alone = fitted(cascade(A, D, tolerance=0.05)).thresholds
    both = fitted(cascade(A, D, max_cost=0.5, tolerance=0.05), **dear).thresholds
    assert alone is not None
    assert both == pytest.approx(alone, abs=0.02)


def test_what_is_promised_goes_no_further_than_the_cost_needs() -> None:
    promise = {"max_loss": 0.2, "confidence": 0.9}
    cost: dict[str, Any] = {"cost": lambda member: MACS[member.name], "calibration": UNSEEN}
    shares = []
    aims: list[dict[str, Any]] = [{}, {"max_cost": 0.8}]
    for more in aims:
        found = fitted(cascade(A, D, guarantee=promise, **more), **cost)
        assert found.certificate is not None
        assert found.certificate.granted
        walked = replay(found, TABLE, "classification")
        shares.append(mean_cost(walked, {member: MACS[member.name] for member in walked.members}))
    assert shares[0] < 0.75 < shares[1] <= 0.8 + 1 / 11


def test_a_granted_guarantee_is_recorded_and_holds_on_other_rows() -> None:
    tree = cascade(A, C, D, guarantee={"max_loss": 0.05, "confidence": 0.9})
    found = fitted(tree, calibration=UNSEEN)
    assert found.guarantee == Guarantee(max_loss=0.05, confidence=0.9)
    assert found.certificate is not None
    assert found.certificate.granted
    assert found.certificate.rows == 2000
    for table, targets in (UNSEEN, outputs(rows=20_000, seed=2)):
        walked = replay(found, table, "classification")
        last = replay(found.stages[-1], table, "classification").outputs.argmax(axis=1)
        lost = (last == targets) & (walked.outputs.argmax(axis=1) != targets)
        assert 0.02 < lost.mean() <= 0.05
        assert (walked.stages < 2).mean() > 0.1
        if table is UNSEEN[0]:
            assert lost.sum() == found.certificate.lost


def test_a_tolerance_beside_a_guarantee_is_a_second_condition() -> None:
    promise = {"max_loss": 0.05, "confidence": 0.9}
    both = fitted(cascade(A, D, guarantee=promise, tolerance=0.0), calibration=UNSEEN)
    alone = fitted(cascade(A, D, guarantee=promise), calibration=UNSEEN)
    assert both.thresholds is not None
    assert alone.thresholds is not None
    assert alone.thresholds < both.thresholds < (NONE_LEAVES,)
    walked = replay(both, TABLE, "classification").outputs.argmax(axis=1)
    assert not ((TABLE[D].argmax(axis=1) == TARGETS) & (walked != TARGETS)).any()


def test_what_cannot_be_promised_lets_no_row_leave() -> None:
    few = ({member: output[:100] for member, output in UNSEEN[0].items()}, UNSEEN[1][:100])
    found = fitted(cascade(A, D, guarantee={}), calibration=few)
    assert found.thresholds == (NONE_LEAVES,)
    assert found.certificate is not None
    assert (found.certificate.granted, found.certificate.rows) == (False, 100)
    assert Cascade.model_validate_json(found.model_dump_json()) == found


def test_a_guarantee_needs_rows_of_its_own() -> None:
    with pytest.raises(EnsembleError, match="no calibration rows"):
        fitted(cascade(A, D, guarantee={}))
    inner = cascade(A, C, guarantee={})
    with pytest.raises(EnsembleError, match="holds another one"):
        fitted(cascade(inner, D, guarantee={}), calibration=UNSEEN)
    outer = fitted(cascade(inner, D), calibration=UNSEEN)
    assert isinstance(outer.stages[0], Cascade)
    assert outer.stages[0].certificate is not None


def test_members_agree_with_what_their_stage_says_once_it_is_calibrated() -> None:
    """A vector scaling may say a class that no member said: such a row is as unsure as can be."""
    shifted = VectorScaling(factors=(1.0, 1.0), shifts=(0.0, 2.0))
    stage = Parallel(members=(A, B), calibration=shifted)
    tree = cascade(stage, C, thresholds=(0.5,), criterion="agreement")
    logits = np.array([[1.0, 0.0], [9.0, 0.0], [0.0, 1.0]], np.float32)
    found = replay(tree, dict.fromkeys((A, B, C), logits), "classification")
    np.testing.assert_array_equal(found.stages, [1, 0, 0])
