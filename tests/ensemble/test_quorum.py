"""Members without a sound answer: what the walk does without, what it says, and when it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.calibration import Record
from orchestrator.config.ensemble import Cascade, Combined, Member, Node, Parallel, WeightedMix
from orchestrator.ensemble.contributions import member_scores
from orchestrator.ensemble.node import Ask, Output
from orchestrator.ensemble.tree import Outcome, Prediction, predict, replay, walk
from orchestrator.errors import QuorumError
from tests.ensemble.toys import A, B, C, D, cascade, lookup, mix, outputs, parallel

TABLE, _ = outputs(rows=60)
BY_NAME = {member.name: output for member, output in TABLE.items()}


def two_of(*members: Node) -> Parallel:
    return Parallel(members=members, quorum=2)


def without(*missing: Member) -> dict[Member, Output]:
    return {member: output for member, output in TABLE.items() if member not in missing}


def answered(tree: Node, *missing: Member) -> Prediction:
    return replay(tree, without(*missing), "classification")


def drive(tree: Node, failing: dict[str, str], rows: int = 60) -> tuple[list[list[str]], Prediction]:
    """(names asked in each round, prediction) where members fail as said, by name."""
    steps, seen = walk(tree, rows, "classification"), []
    asks = next(steps)

    def outcome(ask: Ask) -> Outcome:
        reason = failing.get(ask.member.name)
        return Outcome(BY_NAME[ask.member.name][ask.rows]) if reason is None else Outcome(failure=reason)

    while True:
        seen.append([ask.member.name for ask in asks])
        try:
            asks = steps.send(tuple(outcome(ask) for ask in asks))
        except StopIteration as done:
            return seen, done.value


def test_survivors_answer_and_the_answer_says_so() -> None:
    _, found = drive(two_of(A, B, C), {"b": "timed out"})
    np.testing.assert_array_equal(found.scores, answered(parallel(A, C)).scores)
    assert found.degraded.all()
    assert found.missing == {B: "timed out"}
    assert [member.name for member, mask in found.members.items() if mask.any()] == ["a", "c"]
    assert set(found.said) == {A, C}
    assert found.expected is None  # never fitted


def test_a_complete_answer_is_the_one_without_a_quorum() -> None:
    found, plain = answered(two_of(A, B, C)), answered(parallel(A, B, C))
    np.testing.assert_array_equal(found.scores, plain.scores)
    assert not found.degraded.any()
    assert found.missing == {}


def test_below_the_quorum_every_lost_member_is_named() -> None:
    with pytest.raises(
        QuorumError,
        match=r"too few sound answers: a \(died\), c \(late\)\. 2 of 3 members must answer",
    ):
        drive(two_of(A, B, C), {"a": "died", "c": "late"})


def test_a_required_member_is_missed_whatever_the_quorum() -> None:
    needed = A.model_copy(update={"required": True})
    assert drive(Parallel(members=(needed, B, C), quorum=1), {"b": "x", "c": "y"})[1].degraded.all()
    with pytest.raises(QuorumError, match=r"from a required member: a \(died\)"):
        drive(Parallel(members=(needed, B, C), quorum=1), {"a": "died"})


def test_a_node_below_its_quorum_is_one_lost_member_of_the_node_above() -> None:
    tree = two_of(A, B, Parallel(members=(C, D), quorum=2))
    _, found = drive(tree, {"d": "died"})
    np.testing.assert_array_equal(found.scores, answered(parallel(A, B)).scores)
    assert found.missing == {D: "died"}
    inner = Parallel(members=(C, D), quorum=2, required=True)
    with pytest.raises(QuorumError, match=r"d \(died\)"):
        drive(two_of(A, B, inner), {"d": "died"})


def test_a_degraded_part_degrades_the_whole() -> None:
    tree = parallel(A, Parallel(members=(B, C, D), quorum=2))
    _, found = drive(tree, {"c": "died"})
    np.testing.assert_array_equal(found.scores, answered(parallel(A, parallel(B, D))).scores)
    assert found.degraded.all()


def test_a_lost_cause_asks_nothing_more() -> None:
    later = cascade(B, C, thresholds=(2.0,))
    steps = walk(parallel(A, later), 60, "classification")
    assert [ask.member.name for ask in next(steps)] == ["a", "b"]
    with pytest.raises(QuorumError, match=r"a \(died\)"):
        steps.send((Outcome(failure="died"), Outcome(TABLE[B])))


def test_rows_of_a_lost_stage_go_on_and_rows_of_a_lost_last_stage_keep_their_answer() -> None:
    tree = Cascade(stages=(A, B, C), thresholds=(0.7, 0.8), quorum=1)
    asked, found = drive(tree, {"a": "died"})
    assert asked == [["a"], ["b"], ["c"]]
    np.testing.assert_array_equal(found.scores, answered(cascade(B, C, thresholds=(0.8,))).scores)
    assert found.degraded.all()
    assert set(found.stages.tolist()) == {1, 2}

    _, found = drive(tree, {"b": "died"})
    np.testing.assert_array_equal(found.scores, answered(cascade(A, C, thresholds=(0.7,))).scores)
    # Rows that were sure at the first stage miss nothing.
    np.testing.assert_array_equal(found.degraded, found.stages == 2)
    assert 0 < found.degraded.sum() < 60

    _, found = drive(tree, {"c": "died"})
    whole = answered(cascade(A, B, C, thresholds=(0.7, 0.8)))
    first = answered(cascade(A, B, thresholds=(0.7,)))
    np.testing.assert_array_equal(found.scores, first.scores)
    np.testing.assert_array_equal(found.degraded, whole.stages == 2)
    with pytest.raises(QuorumError, match=r"a \(died\), b \(died\), c \(died\)"):
        drive(tree, {"a": "died", "b": "died", "c": "died"})
    with pytest.raises(QuorumError, match=r"a \(died\)"):
        drive(cascade(A, B, C, thresholds=(0.7, 0.8)), {"a": "died"})


def test_a_lost_member_is_not_asked_again() -> None:
    tree = Cascade(stages=(two_of(A, B, C), two_of(A, B, D)), thresholds=(2.0,))
    asked, found = drive(tree, {"b": "died"})
    assert asked == [["a", "b", "c"], ["d"]]
    assert found.missing == {B: "died"}


def fits(record: Record, output: Output) -> Prediction:
    """A walk in which a recorded member gives this output, the others zeros."""
    tree = two_of(A.model_copy(update={"record": record}), B, C)
    steps = walk(tree, 4, "classification")
    next(steps)
    try:
        steps.send((Outcome(output), Outcome(np.zeros((4, 3))), Outcome(np.zeros((4, 3)))))
    except StopIteration as done:
        found: Prediction = done.value
        return found
    raise AssertionError("the walk goes on")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (np.full((4, 3), np.inf), "not finite"),
        (np.where(np.eye(4, 3) > 0, np.nan, 0.0), "not finite"),
        (np.full((4, 3), 13.0), "output 13 to 13, far outside of -2 to 5"),
        (np.full((4, 3), -9.5), "far outside"),
        (np.zeros((4, 5)), r"output shape [4, 5] instead of [4, 3]"),
        (np.zeros((3, 3)), r"output shape [3, 3] instead of [4, 3]"),
    ],
)
def test_poison_is_left_out_and_reported(output: Output, reason: str) -> None:
    found = fits(Record(outputs=3, low=-2, high=5, opposed=(0.1,)), output)
    (told,) = found.missing.values()
    assert reason in told
    assert found.degraded.all()
    np.testing.assert_allclose(found.scores, -np.log(3))


def test_values_somewhat_beyond_the_record_are_answers() -> None:
    found = fits(Record(outputs=3, low=-2, high=5, opposed=(0.1,)), np.full((4, 3), 11.5))
    assert not found.missing


@pytest.mark.parametrize("kind", [Parallel, WeightedMix, Cascade])
def test_a_quorum_larger_than_the_ensemble_is_refused(kind: type[Combined]) -> None:
    field = "stages" if kind is Cascade else "members"
    with pytest.raises(ValueError, match="a quorum of 3 needs as many members, got 2"):
        kind.model_validate({field: (A, B), "quorum": 3})


def test_a_mix_without_weights_does_not_hide_behind_a_quorum() -> None:
    with pytest.raises(Exception, match="no weights"):
        answered(mix(A, B, C).model_copy(update={"quorum": 2}))


def test_rows_of_a_part_or_a_file_are_not_held_against_the_record() -> None:
    """One outlying row would take the member from all others, and a leaf alone would have no answer."""
    wild = A.model_copy(update={"record": Record(outputs=4, low=-1, high=1, opposed=(0.1,))})
    tree = two_of(wild, B, C)
    said = {member: TABLE[member] * (100 if member == A else 1) for member in (A, B, C)}
    known = {wild if member == A else member: output for member, output in said.items()}
    plain = replay(two_of(A, B, C), said, "classification")
    rows = np.arange(60)
    for found in (
        replay(tree, known, "classification"),
        predict(tree, lookup(known), rows, "classification", guarded=False),
    ):
        assert not found.degraded.any()
        np.testing.assert_array_equal(found.scores, plain.scores)
    assert len(member_scores(tree, known, "classification")) == 3
    assert predict(tree, lookup(known), rows, "classification").degraded.all()
