"""What each criterion calls sure."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.ensemble import Criterion
from orchestrator.ensemble.certainty import agreement_of, certainty
from orchestrator.ensemble.combine import pool
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax

OF_SCORES: list[Criterion] = ["confidence", "margin", "entropy"]


def test_known_values() -> None:
    rows = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]) + 1e-300)
    np.testing.assert_allclose(certainty("confidence", rows, None), [0.7, 0.5, 1])
    np.testing.assert_allclose(certainty("margin", rows, None), [0.5, 0, 1], atol=1e-12)
    expected = [1 - 0.801818553 / np.log(3), 1 - np.log(2) / np.log(3), 1]
    np.testing.assert_allclose(certainty("entropy", rows, None), expected, atol=1e-9)


def test_an_impossible_class_leaves_no_doubt() -> None:
    with np.errstate(divide="ignore"):
        rows = np.log(np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    expected = [1 - np.log(2) / np.log(3), 1]
    np.testing.assert_allclose(certainty("entropy", rows, None), expected, atol=1e-12)


@pytest.mark.parametrize("criterion", OF_SCORES)
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_it_lies_in_0_to_1_and_rises_as_an_answer_sharpens(
    criterion: Criterion, seed: int, classes: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=(20, classes))
    found = [certainty(criterion, log_softmax(logits * sharp), None) for sharp in (0.0, 0.5, 1, 3, 1000)]
    assert (np.diff(found, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(found[0], 1 / classes if criterion == "confidence" else 0, atol=1e-12)
    assert min(map(np.min, found)) >= 0
    assert max(map(np.max, found)) <= 1


def test_agreement_is_the_members_share_by_weight() -> None:
    says = {"a": [0.9, 0.1, 0.0], "b": [0.1, 0.8, 0.1], "c": [0.5, 0.3, 0.2]}
    members = [np.log(np.array([found]) + 1e-300) for found in says.values()]
    mean = pool(members, None, "classification")
    assert agreement_of(members, mean, (1 / 3,) * 3, "classification") == pytest.approx(2 / 3)
    weights = (0.1, 0.7, 0.2)
    mixed = pool(members, weights, "classification")
    assert mixed.argmax() == 1
    assert agreement_of(members, mixed, weights, "classification") == pytest.approx(0.7)
    assert agreement_of(members, mixed, weights, "regression") is None


def test_one_model_has_nobody_to_agree_with() -> None:
    with pytest.raises(EnsembleError, match=r"no members that could agree: criterion: agreement"):
        certainty("agreement", np.zeros((2, 3)), None)
