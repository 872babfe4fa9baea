"""Uncertainty: total = aleatoric + epistemic, dissent, and how well it finds rows from elsewhere."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.ensemble.combine import entropy, scores_of
from orchestrator.ensemble.uncertainty import (
    detection_auroc,
    dissent,
    false_positive_rate,
    spread,
    uncertainty,
)
from tests.ensemble.toys import outputs

SURE_0, SURE_1, EVEN = np.log([[1 - 1e-12, 1e-12]]), np.log([[1e-12, 1 - 1e-12]]), np.log([[0.5, 0.5]])


def test_doubt_of_each_member_is_aleatoric_and_contradiction_epistemic() -> None:
    doubt = uncertainty([EVEN, EVEN])
    assert (doubt.total[0], doubt.aleatoric[0], doubt.epistemic[0]) == pytest.approx(
        (np.log(2), np.log(2), 0)
    )
    contradiction = uncertainty([SURE_0, SURE_1])
    assert (contradiction.total[0], contradiction.epistemic[0]) == pytest.approx((np.log(2), np.log(2)))
    assert contradiction.aleatoric[0] == pytest.approx(0, abs=1e-9)
    # 0.25 and 0.75 of the weight: the entropy of (0.25, 0.75).
    weighted = uncertainty([SURE_0, SURE_1], (0.25, 0.75))
    assert weighted.total[0] == pytest.approx(-0.25 * np.log(0.25) - 0.75 * np.log(0.75))


def test_parts_are_never_negative_and_add_up() -> None:
    members, _ = outputs(rows=300)
    scores = [scores_of(output, "classification") for output in members.values()]
    found = uncertainty(scores, (0.4, 0.3, 0.2, 0.1))
    assert found.total == pytest.approx(found.aleatoric + found.epistemic)
    assert min(found.aleatoric.min(), found.epistemic.min()) >= 0
    assert (found.total <= np.log(4) + 1e-12).all()
    same = uncertainty([scores[0]] * 3)
    assert (same.epistemic >= 0).all()
    assert same.epistemic == pytest.approx(0, abs=1e-12)


def test_a_probability_of_zero_adds_nothing_to_an_entropy() -> None:
    with np.errstate(divide="ignore"):
        certain = np.log([[1.0, 0.0, 0.0]])
    assert entropy(certain) == pytest.approx(0)


def test_dissent_is_the_weight_of_those_who_say_otherwise() -> None:
    assert dissent([SURE_0, SURE_1, SURE_1], SURE_0) == pytest.approx(2 / 3)
    assert dissent([SURE_0, SURE_1, SURE_1], SURE_0, (0.8, 0.1, 0.1)) == pytest.approx(0.2)


def test_spread_is_the_weighted_standard_deviation_of_each_target() -> None:
    one, other = np.array([[0.0, 5.0]]), np.array([[4.0, 5.0]])
    assert spread([one, other]) == pytest.approx(np.array([[2.0, 0.0]]))
    # About the mean 1: 0.75 * 1 + 0.25 * 9 = 3.
    assert spread([one, other], (0.75, 0.25)) == pytest.approx(np.array([[np.sqrt(3), 0.0]]))


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [
        ([0.1, 0.2], [0.3, 0.4], 1.0),
        ([0.3, 0.4], [0.1, 0.2], 0.0),
        ([0.5, 0.5], [0.5, 0.5], 0.5),
        # Pairs (outside above inside): 0.2 beats 0.1 and ties 0.2; 0.3 beats both: 3.5 of 4.
        ([0.1, 0.2], [0.2, 0.3], 0.875),
    ],
)
def test_detection_counts_pairs_with_ties_as_half(
    inside: list[float], outside: list[float], expected: float
) -> None:
    assert detection_auroc(np.array(inside), np.array(outside)) == pytest.approx(expected)


def test_the_false_positive_rate_is_that_at_the_recall() -> None:
    inside = np.arange(100) / 100
    assert false_positive_rate(inside, np.asarray([0.5, 0.94, 0.95, 2.0])) == 0.5
    assert false_positive_rate(inside, inside) == 0.95
    assert false_positive_rate(inside, inside + 1) == 0
    assert false_positive_rate(inside, np.asarray([0.5, 0.6]), recall=0.5) == 0
    assert false_positive_rate(np.zeros(7), np.zeros(3)) == 1
