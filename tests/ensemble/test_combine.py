"""Rules by hand, against scikit-learn and against their definitions; margins; some members alone."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.config.ensemble import TASK_RULES, Member, Parallel, Rule, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.ensemble.combine import (
    VOTE_RULES,
    Floats,
    decision_margin,
    pool,
)
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.pooled import pooled
from orchestrator.ensemble.tree import replay
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax, score
from orchestrator.measure.tasks import class_rules
from tests.ensemble.toys import MEMBERS, A, B, C, outputs, values

RULES: tuple[Rule, ...] = get_args(Rule)
TABLE, TARGETS = outputs(rows=400)
SCORES = [log_softmax(TABLE[member]) for member in MEMBERS]


def drawn(seed: int, members: int, rows: int = 40, classes: int = 3, scale: float = 2.0) -> list[Floats]:
    rng = np.random.default_rng(seed)
    return [log_softmax(scale * rng.normal(size=(rows, classes))) for _ in range(members)]


def of(*rows: tuple[float, ...]) -> list[Floats]:
    """One member a tuple of probabilities, one row."""
    return [np.log(np.array([row])) for row in rows]


def test_rules_by_hand() -> None:
    members = of((0.7, 0.2, 0.1), (0.1, 0.8, 0.1), (0.3, 0.4, 0.3), (0.5, 0.3, 0.2))

    def found(rule: Rule, trim: float = 0.1) -> Any:
        return class_rules("classification").probabilities(pool(members, None, "classification", rule, trim))[
            0
        ]

    def scaled(*values: float) -> Any:
        return pytest.approx(np.array(values) / sum(values))

    assert found("mean") == scaled(1.6, 1.7, 0.7)
    assert found("logits") == scaled(*(np.prod([np.exp(m[0, k]) for m in members]) ** 0.25 for k in range(3)))
    assert found("median") == scaled(0.4, 0.35, 0.15)
    assert found("trimmed_mean") == scaled(0.4, 0.35, 0.15)
    assert found("maximum") == scaled(0.7, 0.8, 0.3)
    # Two votes each for the first two classes; the further vote goes by the mean, 0.4 and 0.425.
    assert found("vote") == scaled(2.4, 2.425, 0.175)


def test_what_is_trimmed() -> None:
    def kept(members: int, trim: float) -> float:
        ladder = [np.array([[float(step**2)]]) for step in range(members)]
        return float(pool(ladder, None, "regression", "trimmed_mean", trim)[0, 0])

    assert kept(2, 0.4) == 0.5
    assert kept(3, 0.01) == 1.0
    assert kept(10, 0.1) == pytest.approx(np.mean(np.arange(1, 9) ** 2))
    assert kept(10, 0.25) == pytest.approx(np.mean(np.arange(2, 8) ** 2))
    assert kept(100, 0.29) == pytest.approx(np.mean(np.arange(29, 71) ** 2))
    assert kept(5, 0.49) == 4.0


def test_regression_rules_and_refusals() -> None:
    table, _ = values(rows=30)
    members = [table[member].astype(np.float64) for member in MEMBERS]
    np.testing.assert_allclose(pool(members, None, "regression", "median"), np.median(members, axis=0))
    np.testing.assert_allclose(pool(members, None, "regression", "mean"), np.mean(members, axis=0))
    np.testing.assert_allclose(
        pool(members, None, "regression", "trimmed_mean"), np.sort(members, axis=0)[1:3].mean(axis=0)
    )
    for rule in set(RULES) - set(TASK_RULES["regression"]):
        with pytest.raises(EnsembleError, match=f"not for task regression: {rule}. use mean, median"):
            pool(members, None, "regression", rule)
        with pytest.raises(EnsembleError, match="not for task regression"):
            fit(
                Parallel(members=(A, B), rule=rule),
                table,
                np.zeros((30, 2)),
                Metric(name="mae"),
                "regression",
            )
    with pytest.raises(EnsembleError, match="takes no weights: median"):
        pool(members, (0.25,) * 4, "regression", "median")


class Table:
    """A classifier that gives known probabilities, for scikit-learn."""

    def __init__(self, scores: Floats) -> None:
        self.probs = np.exp(scores)

    def predict_proba(self, rows: Any) -> Any:
        return self.probs[rows[:, 0]]

    def predict(self, rows: Any) -> Any:
        return self.probs[rows[:, 0]].argmax(axis=1)


@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4), (0.05, 0.15, 0.6, 0.2)])
def test_the_same_answers_as_scikit_learns_voting_classifier(weights: tuple[float, ...] | None) -> None:
    ensemble, preprocessing = (
        pytest.importorskip("sklearn.ensemble"),
        pytest.importorskip("sklearn.preprocessing"),
    )
    estimators = [Table(scores) for scores in SCORES]
    voting = {}
    for kind in ("soft", "hard"):
        voting[kind] = ensemble.VotingClassifier([], voting=kind, weights=weights)
        voting[kind].estimators = [(str(place), found) for place, found in enumerate(estimators)]
        voting[kind].estimators_ = estimators
        voting[kind].le_ = preprocessing.LabelEncoder().fit(np.arange(4))
        voting[kind].classes_ = np.arange(4)
    rows = np.arange(len(TARGETS))[:, None]
    np.testing.assert_allclose(
        np.exp(pool(SCORES, weights, "classification")), voting["soft"].predict_proba(rows), atol=1e-6
    )
    rule: Rule = "vote" if weights is None else "weighted_vote"
    labels = pool(SCORES, weights, "classification", rule).argmax(axis=1)
    ballots = np.zeros((len(rows), 4))
    for share, scores in zip(weights or (1,) * 4, SCORES, strict=True):
        ballots[rows[:, 0], scores.argmax(axis=1)] += share
    clear = np.diff(np.sort(ballots, axis=1)[:, -2:]).ravel() > 1e-9
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(labels[clear], voting["hard"].predict(rows)[clear])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.booleans(), st.sampled_from([0.3, 3.0, 300.0]))
def test_a_vote_is_the_majority_s_and_ties_go_by_the_mean(
    seed: int, members: int, weighted: bool, scale: float
) -> None:
    scores = drawn(seed, members, scale=scale)
    rng = np.random.default_rng(seed)
    weights = tuple(rng.dirichlet(np.ones(members)).tolist()) if weighted else None
    found = pool(scores, weights, "classification", "weighted_vote" if weighted else "vote")
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)
    mean = pool(scores, weights, "classification")
    for row in range(len(found)):
        ballots = np.zeros(3)
        for share, member in zip(weights or (1.0,) * members, scores, strict=True):
            ballots[member[row].argmax()] += share
        first = np.flatnonzero(ballots >= ballots.max() - 1e-9)
        chosen = found[row].argmax()
        assert chosen in first
        assert mean[row, chosen] >= mean[row, first].max() - 1e-12


def test_vote_scores_are_useful_as_probabilities() -> None:
    """Votes lose what members knew beyond their top class, but not so much as to be useless."""
    found = pool(SCORES, None, "classification", "vote")
    nll = score(Metric(name="nll"), found, TARGETS)
    assert nll < min(score(Metric(name="nll"), scores, TARGETS) for scores in SCORES[:2])
    assert nll < np.log(4) / 2
    sure = pool(of((1 - 2e-9, 1e-9, 1e-9)) * 3, None, "classification", "vote")
    assert np.isfinite(sure).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.sampled_from(RULES))
def test_rows_with_a_margin_answer_alike_when_members_are_rounded_otherwise(
    seed: int, members: int, rule: Rule
) -> None:
    scores, change = drawn(seed, members, rows=200), 1e-3
    rng = np.random.default_rng(seed)
    weights = (1 / members,) * members if rule == "weighted_vote" else None
    moved = [log_softmax(found + change / 2 * rng.uniform(-1, 1, found.shape)) for found in scores]
    safe = decision_margin(scores, weights, rule) > 2 * change
    assert safe.mean() > 0.9
    if rule not in VOTE_RULES:
        assert safe.all()
    before = pool(scores, weights, "classification", rule)
    after = pool(moved, weights, "classification", rule)
    assert np.abs(after - before)[safe].max() <= 2 * change


def test_a_vote_without_a_margin_jumps_when_a_member_is_rounded_otherwise() -> None:
    scores = of((0.5 + 1e-6, 0.5 - 1e-6), (0.2, 0.8), (0.9, 0.1))
    moved = of((0.5 - 1e-6, 0.5 + 1e-6), (0.2, 0.8), (0.9, 0.1))
    (margin,) = decision_margin(scores, None, "vote")
    assert margin == pytest.approx(2e-6)
    before, after = (pool(found, None, "classification", "vote") for found in (scores, moved))
    assert before[0].argmax() == 0
    assert after[0].argmax() == 1
    # A member without a vote cannot make it jump.
    assert decision_margin(scores, (0.0, 0.5, 0.5), "weighted_vote") == pytest.approx([0.6])


@pytest.mark.parametrize("rule", RULES)
def test_any_subset_of_members_can_be_pooled(rule: Rule) -> None:
    weights = (0.25, 0.75) if rule == "weighted_vote" else None
    node = Parallel(members=MEMBERS, rule=rule)
    some = pooled(node, [SCORES[0], SCORES[2]], weights, "classification")
    left = Parallel(members=(A, C), rule=rule, weights=weights)
    np.testing.assert_array_equal(some, replay(left, TABLE, "classification").scores)
    alone = pooled(node, [SCORES[1]], weights and (1.0,), "classification")
    np.testing.assert_array_equal(alone.argmax(axis=1), SCORES[1].argmax(axis=1))
    if rule not in VOTE_RULES:
        np.testing.assert_allclose(alone, SCORES[1], atol=1e-12)


MIXES: dict[str, dict[str, Any]] = {
    "shared": {"weights": (0.1, 0.2, 0.3, 0.4)},
    "per_class": {
        "method": "per_class",
        "weights": (0.25,) * 4,
        "class_weights": (
            (0.1, 0.0, 0.3, 0.4),
            (0.2, 0.5, 0.3, 0.1),
            (0.3, 0.5, 0.2, 0.0),
            (0.4, 0.0, 0.2, 0.5),
        ),
    },
    "gate": {
        "method": "gate",
        "weights": (0.25,) * 4,
        "gate": ((0.1, 1.0, 0.0, 0.2), (0.2, 0.5, -0.3, 0.1), (0.3, -0.5, 0.2, 0.0), (0.0, 0.0, 0.2, 0.5)),
    },
}


@pytest.mark.parametrize("kind", MIXES)
def test_fitted_numbers_of_other_outputs_are_refused(kind: str) -> None:
    table, _ = values(rows=5)
    node = WeightedMix(members=MEMBERS, **MIXES[kind])
    if kind == "shared":
        assert replay(node, table, "regression").outputs.shape == (5, 2)
        return
    told = {"per_class": "4 columns for 2 outputs", "gate": "4 numbers a member for 2 features"}[kind]
    with pytest.raises(
        EnsembleError, match=rf"do(es)? not fit the members' outputs: {told}\. fit the ensemble"
    ):
        replay(node, table, "regression")


@pytest.mark.parametrize("kind", MIXES)
def test_a_mix_without_some_members_goes_by_weights_that_are_alike_for_all(kind: str) -> None:
    node = WeightedMix(members=MEMBERS, **MIXES[kind])
    complete = pooled(node, SCORES, node.weights, "classification")
    np.testing.assert_array_equal(complete, replay(node, TABLE, "classification").scores)
    np.testing.assert_allclose(np.exp(complete).sum(axis=1), 1)
    plain = pool(SCORES, node.weights, "classification")
    assert (np.abs(complete - plain).max() < 1e-12) == (kind == "shared")
    some = pooled(node, [SCORES[0], SCORES[2]], (0.25, 0.75), "classification")
    np.testing.assert_array_equal(some, pool([SCORES[0], SCORES[2]], (0.25, 0.75), "classification"))


def members(count: int) -> tuple[Member, ...]:
    return tuple(Member(name=str(place)) for place in range(count))


@pytest.mark.parametrize(
    ("kind", "changed", "match"),
    [
        (Parallel, {"weights": (0.5, 0.5)}, "rule mean takes no weights"),
        (Parallel, {"rule": "weighted_vote", "weights": (1.0,)}, "2 members need as many weights, got 1"),
        (Parallel, {"rule": "weighted_vote", "weights": (0.5, 0.6)}, "sum to 1"),
        (Parallel, {"rule": "trimmed_mean", "trim": 0.5}, "less than 0.5"),
        (WeightedMix, {"objective": "metric"}, "method likelihood has its own objective"),
        (WeightedMix, {"class_weights": ((1.0,), (0.0,))}, "class_weights belongs to method per_class"),
        (WeightedMix, {"method": "per_class", "class_weights": ((0.5, 1.0), (0.5, 0.1))}, "sum to 1"),
        (WeightedMix, {"method": "gate", "gate": ((0.5, 1.0), (0.5,))}, "gate needs 2 rows of one length"),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind: type[Any], changed: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        kind(members=members(2), **changed)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        (Parallel(members=(A, B), rule="weighted_vote"), "weighted_vote has no weights"),
        (WeightedMix(members=(A, B), method="gate", weights=(0.5, 0.5)), "weighted_mix has no gate"),
        (WeightedMix(members=(A, B), method="per_class", weights=(0.5, 0.5)), "has no class_weights"),
    ],
)
def test_what_is_not_fitted_does_not_answer(tree: Parallel | WeightedMix, match: str) -> None:
    with pytest.raises(EnsembleError, match=match):
        replay(tree, TABLE, "classification")
