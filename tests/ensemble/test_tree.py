"""The walk: what it asks, when, and what it does with the answers."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.ensemble import Member, Node
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.tree import (
    Outcome,
    Prediction,
    Walk,
    distinct,
    mean_cost,
    predict,
    replay,
    walk,
)
from orchestrator.errors import EnsembleError, ExecutionError, QuorumError
from tests.ensemble.toys import MEMBERS, A, B, C, D, cascade, lookup, mix, outputs, parallel, values

TABLE, _ = outputs(rows=60)


def answers(asks: tuple[Ask, ...]) -> tuple[Outcome, ...]:
    return tuple(Outcome(TABLE[ask.member][ask.rows]) for ask in asks)


def rounds(tree: Node, rows: int = 60) -> tuple[list[list[tuple[str, int]]], Prediction]:
    """(names and row counts asked in each round, prediction)."""
    steps, seen = walk(tree, rows, "classification"), []
    asks = next(steps)
    while True:
        seen.append([(ask.member.name, len(ask.rows)) for ask in asks])
        try:
            asks = steps.send(answers(asks))
        except StopIteration as done:
            return seen, done.value


def test_members_of_a_parallel_are_asked_together() -> None:
    assert rounds(parallel(A, B, C))[0] == [[("a", 60), ("b", 60), ("c", 60)]]


def test_a_cascade_asks_later_stages_for_undecided_rows_only() -> None:
    asked, found = rounds(cascade(A, B, C, thresholds=(0.7, 0.8)))
    assert [[name for name, _ in step] for step in asked] == [["a"], ["b"], ["c"]]
    first, second, third = (step[0][1] for step in asked)
    assert first == 60 > second > third > 0
    assert np.bincount(found.stages).tolist() == [60 - second, second - third, third]
    assert {member.name: int(mask.sum()) for member, mask in found.members.items()} == {
        "a": first,
        "b": second,
        "c": third,
    }


def test_a_nested_node_sees_only_its_rows() -> None:
    inner = cascade(B, C, thresholds=(0.9,))
    asked, found = rounds(cascade(A, parallel(inner, D), thresholds=(0.7,)))
    below = asked[1][0][1]
    assert asked[1] == [("b", below), ("d", below)]
    assert 0 < asked[2][0][1] < below < 60
    assert set(found.stages.tolist()) == {0, 1}


def test_cascades_side_by_side_ask_in_the_same_rounds() -> None:
    tree = parallel(cascade(A, C, thresholds=(2.0,)), cascade(B, D, thresholds=(2.0,)))
    assert rounds(tree)[0] == [[("a", 60), ("b", 60)], [("c", 60), ("d", 60)]]


def test_a_shared_member_is_asked_once_for_a_row() -> None:
    asked, _ = rounds(cascade(A, mix(A, D, weights=(0.3, 0.7)), thresholds=(2.0,)))
    assert asked == [[("a", 60)], [("d", 60)]]
    # B has only the undecided rows of the cascade before the outer node asks it for all.
    late = parallel(cascade(A, cascade(B, C, thresholds=(2.0,)), thresholds=(0.7,)), D)
    asked, found = rounds(cascade(late, B, thresholds=(2.0,)))
    counts = [dict(step).get("b", 0) for step in asked]
    assert sum(counts) == 60
    assert 0 < counts[1] < 60
    assert found.members[B].all()


def test_nothing_is_asked_when_all_is_known() -> None:
    assert rounds(cascade(parallel(A, B), A, thresholds=(2.0,)))[0] == [[("a", 60), ("b", 60)]]


def test_equal_leaves_under_two_names_are_one_member() -> None:
    alias = Member(name="alias", digest=A.digest)
    other = Member(name="other", digest=A.digest, execution="aoti")
    assert distinct(parallel(A, alias, other)) == [A, other]
    assert rounds(parallel(A, alias))[0] == [[("a", 60)]]
    assert distinct(parallel(Member(name="x"), Member(name="y"))) == [Member(name="x"), Member(name="y")]


def test_a_failed_member_is_named() -> None:
    steps = walk(parallel(A, B, C), 4, "classification")
    next(steps)
    sound = Outcome(np.zeros((4, 3), np.float32))
    with pytest.raises(QuorumError, match=r"b \(timed out\)"):
        steps.send((sound, Outcome(failure="timed out"), sound))


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (np.full((4, 3), np.nan), "not finite"),
        (np.zeros((3, 3)), r"output shape \[3, 3\] instead of \[4, 3\]"),
        (np.zeros((4, 2)), r"output shape \[4, 2\] instead of \[4, 3\]"),
        (np.zeros(4), "output shape"),
        (None, "no output"),
    ],
)
def test_an_unsound_answer_is_no_answer(
    output: np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None, reason: str
) -> None:
    steps = walk(parallel(A, B), 4, "classification")
    next(steps)
    with pytest.raises(QuorumError, match=reason):
        steps.send((Outcome(np.zeros((4, 3))), Outcome(output)))


def test_predict_turns_a_member_s_error_into_the_quorum_s() -> None:
    def fails(
        rows: np.ndarray[tuple[int, ...], np.dtype[np.int64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        raise ExecutionError("no such kernel", len(rows))

    members = {**lookup(TABLE), B: fails}
    with pytest.raises(QuorumError, match=r"b \(no such kernel: 5\)"):
        predict(parallel(A, B), members, np.arange(5), "classification")
    with pytest.raises(QuorumError, match=r"c \(no such predictor\)"):
        predict(parallel(A, C), lookup({A: TABLE[A]}), np.arange(5), "classification")


def test_an_error_that_is_not_the_member_s_own_is_not_swallowed() -> None:
    with pytest.raises(IndexError):
        predict(parallel(A, B), lookup(TABLE), np.array([1000]), "classification")


@pytest.mark.parametrize(
    ("tree", "match"),
    [(mix(A, B), "no weights"), (cascade(A, B), "no thresholds"), (parallel(A, mix(A, B)), "no weights")],
)
def test_an_unfitted_tree_is_refused(tree: Node, match: str) -> None:
    with pytest.raises(EnsembleError, match=match):
        replay(tree, TABLE, "classification")


def test_a_wrong_number_of_outcomes_or_no_row_is_refused() -> None:
    steps = walk(parallel(A, B), 4, "classification")
    next(steps)
    with pytest.raises(EnsembleError, match="1 for 2"):
        steps.send((Outcome(np.zeros((4, 3))),))
    empty: Walk = walk(parallel(A, B), 0, "classification")
    with pytest.raises(EnsembleError, match="at least one row"):
        next(empty)


def test_regression_values_are_averaged_in_raw_units_and_cannot_cascade() -> None:
    table, _ = values(rows=20)
    found = replay(mix(A, D, weights=(0.25, 0.75)), table, "regression")
    np.testing.assert_allclose(found.outputs, 0.25 * table[A] + 0.75 * table[D], rtol=1e-6)
    assert found.probs is None
    with pytest.raises(EnsembleError, match="cascade needs a classifier's confidence: regression"):
        replay(cascade(A, B, thresholds=(0.5,)), table, "regression")


def test_mean_cost_counts_what_was_asked() -> None:
    macs = {A: 1.0, B: 3.0, C: 6.0, D: 10.0}
    assert mean_cost(replay(parallel(*MEMBERS), TABLE, "classification"), macs) == 1.0
    assert mean_cost(replay(cascade(A, B, thresholds=(0.0,)), TABLE, "classification"), macs) == 0.25
    found = replay(cascade(A, mix(A, B, weights=(0.5, 0.5)), thresholds=(0.7,)), TABLE, "classification")
    assert mean_cost(found, macs) == pytest.approx((1 + 3 * (found.stages == 1).mean()) / 4)
