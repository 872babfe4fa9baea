"""Mixes of log-probabilities: weights at the optimum, and a rule that is chosen by validation rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import Member, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.log_pool import log_pool_weights
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.tree import replay
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import MEMBERS, outputs

NLL = Metric(name="nll")


def excluders(rows: int, seed: int) -> tuple[list[Floats], Any]:
    """Two members, each of which is sure of half of what the class is not: together they know it."""
    rng = np.random.default_rng(seed)
    labels, codes = rng.integers(4, size=rows), np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    scores = [
        log_softmax(4.0 * (codes[:, bit] == codes[labels, bit][:, None]) + 0.3 * rng.normal(size=(rows, 4)))
        for bit in range(2)
    ]
    return scores, labels


def experts(rows: int, seed: int) -> tuple[list[Floats], Any]:
    """Two members that are sure of every row, and wrong in every tenth: never in the same one."""
    rng = np.random.default_rng(seed)
    labels, wrong = rng.integers(4, size=rows), np.arange(rows) % 10
    said = [np.where(wrong == member, (labels + 1) % 4, labels) for member in range(2)]
    return [log_softmax((9.0 - 2 * member) * np.eye(4)[one]) for member, one in enumerate(said)], labels


def likelihood_of(weights: Any, scores: list[Floats], labels: Any) -> float:
    return score(NLL, pool(scores, tuple(weights), "classification", "logits"), labels)


def test_no_other_weights_are_likelier() -> None:
    table, labels = outputs(rows=300)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    best = np.array(log_pool_weights(scores, labels))
    assert best.sum() == pytest.approx(1)
    least, rng = likelihood_of(best, scores, labels), np.random.default_rng(0)
    for _ in range(200):
        other = 0.97 * best + 0.03 * rng.dirichlet(np.ones(4) / 2)
        assert least <= likelihood_of(other, scores, labels) + 1e-9


def test_a_member_that_harms_gets_no_weight_and_equal_ones_any() -> None:
    table, labels = outputs(rows=300)
    good = log_softmax(table[MEMBERS[3]])
    liar = log_softmax(3.0 * np.eye(4)[(labels + 1) % 4])
    assert log_pool_weights([good, liar], labels) == (1.0, 0.0)
    twins = log_pool_weights([good, good, good], labels)
    assert likelihood_of(twins, [good] * 3, labels) == pytest.approx(score(NLL, good, labels))


def test_the_order_of_members_does_not_matter() -> None:
    table, labels = outputs(rows=300)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    one, other = log_pool_weights(scores, labels), log_pool_weights(scores[::-1], labels)
    np.testing.assert_allclose(other[::-1], one, atol=1e-4)


@pytest.mark.parametrize("seed", [25, 26, 29])
def test_very_sure_members_converge(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, 40)
    base = rng.normal(size=(40, 3)) * 0.3 + np.eye(3)[labels]
    said = [base + rng.normal(size=(40, 3)) * spread for spread in (0.03, 0.1, 0.3, 0.5, 1.0, 2.0)]
    scores = [log_softmax(logits / np.abs(logits).max() * 3000) for logits in said]
    least = likelihood_of(log_pool_weights(scores, labels), scores, labels)
    assert least <= min(score(NLL, member, labels) for member in scores) + 1e-6


def mixed(scores: list[Floats], targets: Any, task: Task = "classification", **more: Any) -> Any:
    """A fitted mix, and its answers to rows of any scores of its members."""
    members = tuple(Member(name=str(place), temperature=1.0) for place in range(len(scores)))
    tree = WeightedMix(members=members, **more)
    found = fit(tree, dict(zip(members, scores, strict=True)), targets, Metric(), task)
    return found, lambda fresh: replay(found, dict(zip(members, fresh, strict=True)), task).scores


def test_members_that_exclude_gain_over_a_mean_of_probabilities() -> None:
    (scores, labels), (fresh, truth) = excluders(400, 0), excluders(2000, 1)
    of = {rule: score(NLL, mixed(scores, labels, rule=rule)[1](fresh), truth) for rule in ("mean", "logits")}
    assert of["logits"] < of["mean"] - 0.3


@pytest.mark.parametrize(("make", "rule"), [(excluders, "logits"), (experts, "mean")])
@pytest.mark.parametrize("calibration", [None, TemperatureScaling()])
def test_auto_takes_the_likelier_rule(make: Any, rule: str, calibration: Any) -> None:
    scores, labels = make(400, 0)
    found, _ = mixed(scores, labels, rule="auto", calibration=calibration)
    assert found.rule == rule
    assert found == mixed(scores, labels, rule=rule, calibration=calibration)[0]


def test_auto_keeps_given_weights() -> None:
    scores, labels = excluders(400, 0)
    found, _ = mixed(scores, labels, rule="auto", weights=(0.4, 0.6))
    assert (found.rule, found.weights) == ("logits", (0.4, 0.6))


def test_greedy_selection_averages_what_the_rule_mixes() -> None:
    table, labels = outputs(rows=300)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    _, answers = mixed(scores, labels, rule="logits", method="greedy")
    least = likelihood_of(log_pool_weights(scores, labels), scores, labels)
    assert least <= score(NLL, answers(scores), labels) < least + 0.005


def test_of_several_labels_each_is_a_row_of_two_classes() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=(300, 3))
    odds = [(1 + skill) * (2 * labels - 1) + 2 * rng.normal(size=labels.shape) for skill in range(2)]
    found, answers = mixed(odds, labels, "multilabel", rule="logits")
    objective = Objective(labels, "multilabel")
    np.testing.assert_allclose(answers(odds), np.tensordot(found.weights, odds, axes=1))
    least = objective.of_rows(answers(odds)).mean()
    for share in np.linspace(0, 1, 21):
        assert least <= objective.of_rows(share * odds[0] + (1 - share) * odds[1]).mean() + 1e-9


def test_each_set_of_survivors_has_weights_of_its_own() -> None:
    table, labels = outputs(rows=300)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    found, _ = mixed(scores, labels, rule="auto", quorum=3, calibration=TemperatureScaling())
    for known in found.survivors:
        left = [one for place, one in enumerate(scores) if place not in known.without]
        alone, _ = mixed(left, labels, rule=found.rule)
        np.testing.assert_allclose(known.weights, alone.weights, atol=1e-9)


def test_a_rule_that_is_not_chosen_answers_nothing() -> None:
    tree = WeightedMix(members=MEMBERS, rule="auto", weights=(0.25,) * 4)
    assert tree.unfitted() == "weighted_mix has no chosen rule"
    table, _ = outputs(rows=3)
    with pytest.raises(EnsembleError, match="no chosen rule"):
        replay(tree, table, "classification")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"method": "gate"}, "method gate belongs to rule mean, not logits"),
        ({"prior": 1}, "a prior belongs to rule mean, not logits"),
    ],
)
def test_what_only_a_mean_has_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        WeightedMix(members=MEMBERS, rule="logits", **more)


def test_a_spec_from_before_has_the_digest_that_it_had() -> None:
    assert "rule" not in WeightedMix(members=MEMBERS, weights=(0.25,) * 4).plain()
