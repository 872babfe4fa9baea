"""Thresholds: where they lie, what they keep, and that nothing cheaper would keep it too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.measure import Metric
from orchestrator.ensemble.cascade import (
    ALL_LEAVE,
    MOST_CANDIDATES,
    NONE_LEAVES,
    candidates,
    confidence,
    fit_thresholds,
    undecided,
)
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import A, C, D, outputs

ACCURACY = Metric()


def test_candidates_lie_midway_between_neighbours() -> None:
    assert candidates(np.array([0.5, 0.9, 0.6, 0.5])) == pytest.approx([0.0, 0.55, 0.75, 2.0])
    assert candidates(np.array([0.5])) == [ALL_LEAVE, NONE_LEAVES]
    near = np.nextafter(0.5, 1)
    assert candidates(np.array([0.5, near])) == [ALL_LEAVE, NONE_LEAVES]


def test_many_candidates_are_thinned_evenly() -> None:
    found = candidates(np.linspace(0.2, 1, 5000))
    assert len(found) == MOST_CANDIDATES + 2
    assert np.diff(found[1:-1]).max() < 0.003


def test_degenerate_thresholds_stop_all_or_none() -> None:
    sure = log_softmax(np.array([[800.0, 0.0], [0.0, 0.0]]))
    assert confidence(sure).tolist() == [1.0, pytest.approx(0.5)]
    assert not undecided(sure, ALL_LEAVE).any()
    assert undecided(sure, NONE_LEAVES).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60), st.sampled_from([0.0, 0.02, 0.1]))
def test_two_stages_get_the_cheapest_threshold_that_keeps_the_metric(
    seed: int, rows: int, tolerance: float
) -> None:
    table, targets = outputs(rows=rows, seed=seed)
    cheap, last = log_softmax(table[A]), log_softmax(table[D])
    (threshold,) = fit_thresholds([cheap, last], targets, ACCURACY, tolerance)
    least = score(ACCURACY, last, targets) - tolerance - 1e-9

    right = last.argmax(axis=1) == targets

    def keeps(at: float) -> bool:
        answer = np.where(undecided(cheap, at)[:, None], last, cheap)
        lost = np.mean(right & (answer.argmax(axis=1) != targets))
        return bool(score(ACCURACY, answer, targets) >= least and lost <= tolerance + 1e-12)

    assert keeps(threshold)
    cheaper = [at for at in candidates(confidence(cheap)) if at < threshold]
    assert not any(keeps(at) for at in cheaper)


def test_rows_that_are_won_do_not_pay_for_rows_that_are_lost() -> None:
    """The cheap stage wins one row and loses another: as accurate as the last, but not let go alone."""
    targets = np.array([0, 0, 0, 0])
    cheap = log_softmax(np.array([[9.0, 0.0], [5.0, 0.0], [0.0, 1.0], [4.0, 0.0]]))
    last = log_softmax(np.array([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]))
    (threshold,) = fit_thresholds([cheap, last], targets, ACCURACY, 0.0)
    assert undecided(cheap, threshold).tolist() == [False, False, True, False]


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "nll", "auroc"])
def test_three_stages_keep_the_metric_in_its_own_direction(name: str) -> None:
    table, targets = outputs(rows=300)
    stages = [log_softmax(table[member]) for member in (A, C, D)]
    metric = Metric(name=name)
    first, second = fit_thresholds(stages, targets, metric, 0.01)
    answer = stages[0].copy()
    rows = np.flatnonzero(undecided(stages[0], first))
    answer[rows] = stages[1][rows]
    rows = rows[undecided(stages[1][rows], second)]
    answer[rows] = stages[2][rows]
    loss = score(metric, stages[2], targets) - score(metric, answer, targets)
    assert (-loss if name == "nll" else loss) <= 0.01 + 1e-9
    assert 0 < len(rows) < 300


def test_no_row_leaves_a_useless_stage_and_all_leave_an_equal_one() -> None:
    targets = np.arange(60) % 3
    good, wrong = log_softmax(9 * np.eye(3)[targets]), log_softmax(9 * np.eye(3)[(targets + 1) % 3])
    assert fit_thresholds([wrong, good], targets, ACCURACY, 0.0) == (NONE_LEAVES,)
    assert fit_thresholds([good, good], targets, ACCURACY, 0.0) == (ALL_LEAVE,)
    assert fit_thresholds([good, wrong, good], targets, ACCURACY, 0.0) == (ALL_LEAVE, ALL_LEAVE)


def test_more_tolerance_never_costs_more() -> None:
    table, targets = outputs(rows=200)
    cheap, last = log_softmax(table[A]), log_softmax(table[D])
    shares = [
        undecided(cheap, fit_thresholds([cheap, last], targets, ACCURACY, tolerance)[0]).mean()
        for tolerance in (0.0, 0.02, 0.05, 0.1, 1.0)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0
