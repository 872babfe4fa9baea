"""What every kind of ensemble node promises where members are missing or answer NaN.

The trees are those of `tests/conformance/trees.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.ensemble import Boosting, Ensemble, Member, Node, Parallel, leaves
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import VOTE_RULES
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import predict, replay
from orchestrator.errors import QuorumError
from orchestrator.measure.metrics import log_softmax, score
from tests.conformance.trees import (
    MEMBERS,
    METHODS,
    REGRESSION,
    RULES,
    TABLE,
    TARGETS,
    TREES,
    TRUTH,
    VALUES,
    dispensable,
    every,
    lenient,
    stack,
    unfitted,
)
from tests.ensemble.toys import lookup


def missing(table: dict[Member, Output], member: Member) -> dict[Member, Output]:
    return {other: output for other, output in table.items() if other != member}


def poisoned(table: dict[Member, Output], member: Member) -> dict[Member, Output]:
    spoilt = table[member].copy()
    spoilt[:, 0] = np.nan
    return {**table, member: spoilt}


def check_degraded(tree: Node, table: dict[Member, Output], task: Task, without: Member) -> None:
    """What a tree promises that may answer without a member."""
    left = missing(table, without)
    found = replay(tree, left, task)
    assert np.isfinite(found.outputs).all()
    assert found.missing == {without: "no such predictor"}
    assert found.degraded.any()
    assert not found.members[without].any()
    whole = replay(tree, table, task)
    np.testing.assert_array_equal(found.outputs[~found.degraded], whole.outputs[~found.degraded])
    assert not whole.degraded.any()
    # A member that answers NaN is as good as none, and a row does not depend on the others.
    spoilt = replay(tree, poisoned(table, without), task)
    np.testing.assert_array_equal(spoilt.outputs, found.outputs)
    assert spoilt.missing == {without: "output is not finite"}
    for rows in (np.arange(30), np.arange(30, 80)):
        part = predict(tree, lookup(left), rows, task)
        np.testing.assert_array_equal(part.outputs, found.outputs[rows])
        np.testing.assert_array_equal(part.degraded, found.degraded[rows])


@every(TREES)
def test_a_missing_or_poisoned_member_is_left_out_where_the_quorum_allows_it(tree: Ensemble) -> None:
    for member in dispensable(tree):
        check_degraded(lenient(tree), TABLE, "classification", member)


@every(REGRESSION)
def test_a_missing_or_poisoned_member_of_a_regression(tree: Ensemble) -> None:
    for member in dispensable(tree):
        check_degraded(lenient(tree), VALUES, "regression", member)


@every(TREES)
def test_only_the_first_stage_of_a_boosting_is_needed_whatever_the_quorum(tree: Ensemble) -> None:
    needed = set(leaves(tree)) - set(dispensable(tree))
    assert needed == ({MEMBERS[0]} if isinstance(tree, Boosting) else set())
    for member in needed:
        with pytest.raises(QuorumError, match=rf"{member.name} \("):
            replay(lenient(tree), missing(TABLE, member), "classification")


@every({**RULES, **METHODS, "stacking": stack(3)})
def test_the_only_member_that_is_left_decides(tree: Ensemble) -> None:
    for member in MEMBERS:
        found = replay(lenient(tree), {member: TABLE[member]}, "classification").scores
        np.testing.assert_array_equal(found.argmax(axis=1), TABLE[member].argmax(axis=1))
        if not (isinstance(tree, Parallel) and tree.rule in VOTE_RULES):
            np.testing.assert_allclose(found, log_softmax(TABLE[member]), atol=1e-12)


@every({name: tree for name, tree in REGRESSION.items() if not isinstance(tree, Boosting | Chain)})
def test_the_only_member_of_a_regression_that_is_left_answers(tree: Ensemble) -> None:
    for member in MEMBERS:
        found = replay(lenient(tree), {member: VALUES[member]}, "regression").scores
        np.testing.assert_allclose(found, VALUES[member], rtol=1e-12)


def check_required(tree: Ensemble, table: dict[Member, Output], task: Task) -> None:
    for member in leaves(tree):
        for spoil in (missing, poisoned):
            with pytest.raises(QuorumError, match=rf"{member.name} \("):
                replay(tree, spoil(table, member), task)


@every(TREES)
def test_without_a_quorum_a_member_that_is_asked_must_answer(tree: Ensemble) -> None:
    check_required(tree, TABLE, "classification")


@every(REGRESSION)
def test_without_a_quorum_every_member_of_a_regression_must_answer(tree: Ensemble) -> None:
    check_required(tree, VALUES, "regression")


def check_fitted(
    tree: Ensemble, table: dict[Member, Output], targets: npt.NDArray[Any], metric: Metric, task: Task
) -> None:
    """A fitted quorum survives the store and knows what its answers are worth."""
    found = fit(lenient(unfitted(tree)), table, targets, metric, task)
    again = type(found).model_validate_json(found.model_dump_json())
    assert again == found
    for member in dispensable(tree):
        for spoil in (missing, poisoned):
            answers = [replay(node, spoil(table, member), task) for node in (found, again)]
            np.testing.assert_array_equal(answers[0].outputs, answers[1].outputs)
            assert answers[0].expected is not None
            worth = score(metric, answers[0].outputs, targets)
            assert answers[0].expected.value == pytest.approx(worth, abs=1e-6)


@every(TREES)
def test_a_fitted_quorum_knows_what_its_answers_are_worth(tree: Ensemble) -> None:
    check_fitted(tree, TABLE, TARGETS, Metric(), "classification")


@every(REGRESSION)
def test_a_fitted_quorum_of_a_regression_knows_what_its_answers_are_worth(tree: Ensemble) -> None:
    check_fitted(tree, VALUES, TRUTH, Metric(name="mae"), "regression")
