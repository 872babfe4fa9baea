"""Diversity: pairwise measures and the decomposition of the loss, against figures made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.ensemble import diversity
from orchestrator.ensemble.combine import pool, scores_of
from tests.ensemble.toys import outputs, values

# Ten rows whose label is 0: a is wrong in three, b in two of these and one more, c never.
A = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
B = np.array([1, 2, 0, 1, 0, 0, 0, 0, 0, 0])
C = np.zeros(10, dtype=np.int64)
LABELS = np.stack([A, B, C])


def test_pairs_of_three_members() -> None:
    assert diversity.disagreement(LABELS) == pytest.approx(
        np.array([[0, 0.3, 0.3], [0.3, 0, 0.3], [0.3, 0.3, 0]])
    )
    assert diversity.double_fault(LABELS != 0) == pytest.approx(
        np.array([[0.3, 0.2, 0], [0.2, 0.3, 0], [0, 0, 0]])
    )
    # By chance a and b agree in 0.3 * 0.2 + 0.7 * 0.7 = 0.55 of the rows.
    assert diversity.kappa(LABELS)[0, 1] == pytest.approx((0.7 - 0.55) / 0.45)
    # rho of Kuncheva and Whitaker: (6 * 2 - 1 * 1) / (7 * 3).
    correlation = diversity.error_correlation(LABELS != 0)
    assert correlation[0, 1] == pytest.approx(11 / 21)
    assert np.isnan(correlation[2]).all()
    assert np.isnan(correlation[:, 2]).all()


def test_kappa_is_that_of_scikit_learn_and_undefined_for_one_and_the_same_class() -> None:
    reference = pytest.importorskip("sklearn.metrics")
    members, _ = outputs()
    labels = np.stack([output.argmax(axis=1) for output in members.values()])
    found = diversity.kappa(labels)
    for first in range(4):
        for second in range(4):
            assert found[first, second] == pytest.approx(
                reference.cohen_kappa_score(labels[first], labels[second])
            )
    assert np.isnan(diversity.kappa(np.zeros((2, 5), dtype=np.int64))).all()


@pytest.mark.parametrize("weights", [None, (0.1, 0.2, 0.3, 0.4)])
def test_what_a_mean_of_values_saves_is_the_members_distance_from_it(
    weights: tuple[float, ...] | None,
) -> None:
    members, targets = values(targets=1)
    scores = [output.astype(np.float64) for output in members.values()]
    mean = pool(scores, weights, "regression")
    found = diversity.decompose(scores, mean, targets, "regression", weights)
    distances = [float(np.square(member - mean).mean()) for member in scores]
    assert found.loss == "squared_error"
    assert found.ambiguity == pytest.approx(np.average(distances, weights=weights))
    assert found.ensemble == pytest.approx(float(np.square(mean - targets).mean()))


def test_what_a_mixture_saves_is_never_negative_and_nothing_for_equal_members() -> None:
    # Two members that give the true class 0.9 and 0.1: their mean gives 0.5.
    one, other = np.log([[0.9, 0.1]]), np.log([[0.1, 0.9]])
    found = diversity.decompose(
        [one, other], pool([one, other], None, "classification"), np.zeros(1, np.int64), "classification"
    )
    assert found.members == pytest.approx(-np.log(0.3))
    assert found.ambiguity == pytest.approx(-np.log(0.3) + np.log(0.5))
    members, targets = outputs()
    scores = [scores_of(output, "classification") for output in members.values()]
    gap = diversity.decompose(
        scores, pool(scores, None, "classification"), targets, "classification"
    ).ambiguity
    assert gap > 0.01
    same = [scores[0]] * 3
    assert diversity.decompose(
        same, pool(same, None, "classification"), targets, "classification"
    ).ambiguity == pytest.approx(0, abs=1e-12)
