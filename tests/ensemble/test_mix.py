"""Weights by class and by row: they find what shared weights cannot, and fall back to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.config.ensemble import Member, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.gate import features, fit_gate, gated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.per_class import by_class, fit_class_weights
from orchestrator.ensemble.strength import SIMPLE
from orchestrator.ensemble.tree import replay
from orchestrator.ensemble.weights import errors_of, likelihood_weights, squared_error_weights
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import MEMBERS, outputs, values

NLL = Metric(name="nll")


def specialists(rows: int, seed: int) -> tuple[list[Floats], Any]:
    """Two members, each of which knows half of the classes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=rows)
    skills = [np.where(labels // 2 == member, 4.0, 0.5) for member in range(2)]
    return [
        log_softmax(1.5 * rng.normal(size=(rows, 4)) + s[:, None] * np.eye(4)[labels]) for s in skills
    ], labels


def fickle(rows: int, seed: int) -> tuple[list[Floats], Any]:
    """Three members that know a row or say themselves that they do not."""
    rng = np.random.default_rng(seed)
    labels, scores = rng.integers(4, size=rows), []
    for _ in range(3):
        knows = rng.random((rows, 1)) < 0.5
        logits = np.where(knows, 4.0, 0.3) * np.eye(4)[labels] + np.where(knows, 1, 0.3) * rng.normal(
            size=(rows, 4)
        )
        scores.append(log_softmax(logits))
    return scores, labels


def fitted(
    method: str, scores: list[Floats], targets: Any, task: Task = "classification", **more: Any
) -> Any:
    """A mix of members with these scores, fitted; and its answers to rows of any scores of theirs."""
    temperature = 1.0 if task == "classification" else None
    members = tuple(Member(name=str(place), temperature=temperature) for place in range(len(scores)))
    metric = Metric(name="accuracy" if task == "classification" else "mae")
    node = WeightedMix(members=members, method=method, **more)
    found = fit(node, dict(zip(members, scores, strict=True)), targets, metric, task)
    return found, lambda fresh: replay(found, dict(zip(members, fresh, strict=True)), task).scores


def held_out(method: str, make: Any, rows: int = 400) -> float:
    """Negative log-likelihood on fresh rows of weights fitted on others."""
    scores, labels = make(rows, 0)
    fresh, truth = make(2000, 1)
    _, answers = fitted(method, scores, labels)
    return score(NLL, answers(fresh), truth)


def test_specialists_gain_by_weights_for_each_class() -> None:
    assert held_out("per_class", specialists) < held_out("likelihood", specialists) - 0.05


def test_members_that_know_what_they_know_gain_by_a_gate() -> None:
    assert held_out("gate", fickle) < held_out("likelihood", fickle) - 0.2


@pytest.mark.parametrize("rows", [60, 400])
def test_members_that_differ_in_nothing_of_the_kind_lose_little(rows: int) -> None:
    def alike(rows: int, seed: int) -> tuple[list[Floats], Any]:
        table, labels = outputs(rows=rows, seed=seed)
        return [log_softmax(table[member]) for member in MEMBERS], labels

    shared = held_out("likelihood", alike, rows)
    assert held_out("per_class", alike, rows) < shared + 0.02
    assert held_out("gate", alike, rows) < shared + 0.02


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_strong_pull_leaves_the_shared_weights(task: Any) -> None:
    table, targets = outputs(rows=200) if task == "classification" else values(rows=200)
    scores = [log_softmax(table[m]) if task == "classification" else table[m].astype(float) for m in MEMBERS]
    shared = (0.1, 0.2, 0.3, 0.4)
    expected = pool(scores, shared, task)
    objective = Objective(targets, task)
    classes = fit_class_weights(scores, objective, shared, SIMPLE)
    np.testing.assert_allclose(np.array(classes.fitted), np.array([shared] * scores[0].shape[1]).T, atol=1e-5)
    np.testing.assert_allclose(
        by_class(np.stack(scores), np.array(classes.fitted), task), expected, rtol=1e-4
    )
    gate = fit_gate(scores, objective, shared, SIMPLE)
    np.testing.assert_allclose(gated(np.stack(scores), np.array(gate.fitted), task), expected, rtol=1e-4)
    assert classes.shared == gate.shared == shared


def test_strength_is_chosen_by_rows_that_were_held_out() -> None:
    scores, labels = specialists(400, 0)
    objective = Objective(labels, "classification")
    assert fit_class_weights(scores, objective).strength < 1
    # Too few rows to hold any out: the shared weights.
    few = fit_class_weights([found[:9] for found in scores], objective.part(np.arange(9)))
    assert few.strength == SIMPLE
    rng = np.random.default_rng(0)
    shuffled = Objective(rng.permutation(labels), "classification")
    assert fit_class_weights(scores, shuffled).strength > fit_class_weights(scores, objective).strength


def test_the_run_s_metric_can_choose_the_strength() -> None:
    scores, labels = specialists(300, 0)
    tried: list[float] = []
    for strength in (0.01, SIMPLE):
        found = fit_class_weights(scores, Objective(labels, "classification"), None, strength)
        answer = by_class(np.stack(scores), np.array(found.fitted), "classification")
        tried.append(score(Metric(), answer, labels))
    assert tried[0] > tried[1]
    by_metric = fit_class_weights(scores, Objective(labels, "classification", Metric()))
    answer = by_class(np.stack(scores), np.array(by_metric.fitted), "classification")
    assert score(Metric(), answer, labels) > tried[1]


def test_class_weights_are_the_optimum_of_each_class() -> None:
    """No small move on the simplex makes the stated objective smaller."""
    table, labels = outputs(rows=300)
    scores, strength = [log_softmax(table[member]) for member in MEMBERS], 0.1
    found = fit_class_weights(scores, Objective(labels, "classification"), (0.25,) * 4, strength)
    errors = errors_of(scores, labels, "classification").reshape(4, 300, 4)
    pull = strength * np.square(errors).mean(axis=(0, 1)).mean()
    rng = np.random.default_rng(0)

    def objective(label: int, weights: Any) -> float:
        mixed = np.einsum("m,mn->n", weights, errors[:, :, label])
        return float(np.square(mixed).mean() + pull * np.square(weights - 0.25).sum())

    for label in range(4):
        best = np.array(found.fitted)[:, label]
        for _ in range(50):
            other = 0.98 * best + 0.02 * rng.dirichlet(np.ones(4))
            assert objective(label, best) <= objective(label, other) + 1e-12


def test_outputs_of_a_regression_have_weights_of_their_own() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(300, 2)) * [1, 100]
    noise = [np.array([0.1, 100.0]), np.array([1.0, 10.0])]
    scores = [truth + spread * rng.normal(size=truth.shape) for spread in noise]
    found = np.array(fit_class_weights(scores, Objective(truth, "regression")).fitted)
    assert found[0, 0] > 0.95
    assert found[1, 1] > 0.95
    shared = squared_error_weights(scores, truth, "regression")
    errors = [
        np.square(errors_of([answer], truth, "regression")).mean()
        for answer in (pool(scores, shared, "regression"), by_class(np.stack(scores), found, "regression"))
    ]
    assert errors[1] < 0.7 * errors[0]


def test_a_gate_of_a_regression_knows_where_each_member_is_good() -> None:
    rng = np.random.default_rng(0)
    truth = rng.uniform(-10, 10, size=(600, 1))
    low = truth + rng.normal(size=truth.shape) * np.where(truth < 0, 0.1, 3)
    high = truth + rng.normal(size=truth.shape) * np.where(truth < 0, 3, 0.1)
    found = fit_gate([low, high], Objective(truth[:, 0], "regression"))
    answer = gated(np.stack([low, high]), np.array(found.fitted), "regression")
    shared = pool([low, high], found.shared, "regression")
    assert np.square(answer - truth).mean() < 0.4 * np.square(shared - truth).mean()
    assert found.strength < 1


@pytest.mark.parametrize("unit", [1e-9, 1e11])
def test_a_gate_of_a_regression_is_the_same_in_any_unit(unit: float) -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(600, 1))
    low, high = (truth + rng.normal(size=truth.shape) * there for there in (truth > 0, truth <= 0))
    answers = []
    for scale in (1.0, unit):
        scores = [scale * low, scale * high]
        found = fit_gate(scores, Objective(scale * truth, "regression"), strength=0.001)
        answers.append(gated(np.stack(scores), np.array(found.fitted), "regression") / scale)
    assert np.abs(answers[1] - answers[0]).max() < 1e-3


def test_gate_features_by_hand() -> None:
    scores = np.log(np.array([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3]]))
    entropy = -sum(p * np.log(p) for p in (0.5, 0.3, 0.2))
    expected = [[np.log(0.5), entropy, 0.2], [-np.log(3), np.log(3), 0.0]]
    np.testing.assert_allclose(features(scores, "classification"), expected, atol=1e-12)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("method", ["per_class", "gate"])
def test_the_order_of_members_does_not_matter(method: str, task: Any) -> None:
    table, targets = outputs(rows=200) if task == "classification" else values(rows=200)
    scores = [log_softmax(table[m]) if task == "classification" else table[m].astype(float) for m in MEMBERS]
    one = fitted(method, scores, targets, task)[1](scores)
    other = fitted(method, scores[::-1], targets, task)[1](scores[::-1])
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)


def test_given_weights_are_what_class_weights_and_gate_lean_to() -> None:
    table, labels = outputs(rows=200)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    for method in ("per_class", "gate"):
        given = (0.4, 0.3, 0.2, 0.1)
        found, answers = fitted(method, scores, labels, weights=given, strength=SIMPLE)
        assert found.weights == given
        np.testing.assert_allclose(answers(scores), pool(scores, given, "classification"), rtol=1e-4)


def test_squared_error_of_a_classification_is_the_brier_score() -> None:
    table, labels = outputs(rows=300)
    scores = [log_softmax(table[member]) for member in MEMBERS]

    def brier(weights: Any) -> float:
        probs = np.exp(pool(scores, weights, "classification"))
        return float(np.square(probs - np.eye(4)[labels]).sum(axis=1).mean())

    weights = fitted("squared_error", scores, labels)[0].weights
    assert brier(weights) < brier(likelihood_weights(scores, labels))
    rng = np.random.default_rng(0)
    assert all(brier(weights) <= brier(other) for other in rng.dirichlet(np.ones(4), size=200))


def test_a_gate_sees_a_class_that_a_member_rules_out() -> None:
    with np.errstate(divide="ignore"):
        rows = np.log(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    found = features(rows, "classification")
    np.testing.assert_allclose(found, [[np.log(0.5), np.log(2), 0], [0, 0, 1]], atol=1e-12)
