"""Thresholds: where they lie, what they keep, and that nothing cheaper would keep it too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.config.measure import Metric
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.thresholds import (
    ALL_LEAVE,
    MOST_CANDIDATES,
    NONE_LEAVES,
    PATH_CANDIDATES,
    Aim,
    Stages,
    candidates,
    path,
    until_cost,
    within_tolerance,
)
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import A, C, D, outputs

ACCURACY = Metric()


def stages_of(
    scores: Sequence[Floats], targets: npt.NDArray[np.int64], costs: Sequence[float] | None = None
) -> Stages:
    """Stages by confidence; each costs as much as the one before, or as given."""
    sure = [certainty("confidence", found, None) for found in scores[:-1]]
    spent = np.cumsum(costs or [1.0] * len(scores))
    cost = np.broadcast_to(spent[:, None], (len(scores), len(targets)))
    return Stages(tuple(scores), np.stack(sure), cost, targets)


def tolerant(scores: Sequence[Floats], targets: npt.NDArray[np.int64], tolerance: float) -> tuple[float, ...]:
    return within_tolerance(Aim(stages_of(scores, targets), ACCURACY, tolerance))


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
    stages = stages_of([sure, sure], np.array([0, 1]))
    assert stages.left_at((ALL_LEAVE,)).tolist() == [0, 0]
    assert stages.left_at((NONE_LEAVES,)).tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 60), st.sampled_from([0.0, 0.02, 0.1]))
def test_two_stages_get_the_cheapest_threshold_that_keeps_the_metric(
    seed: int, rows: int, tolerance: float
) -> None:
    table, targets = outputs(rows=rows, seed=seed)
    cheap, last = log_softmax(table[A]), log_softmax(table[D])
    (threshold,) = tolerant([cheap, last], targets, tolerance)
    least = score(ACCURACY, last, targets) - tolerance - 1e-9
    right, sure = last.argmax(axis=1) == targets, certainty("confidence", cheap, None)

    def keeps(at: float) -> bool:
        answer = np.where(sure[:, None] < at, last, cheap)
        lost = np.mean(right & (answer.argmax(axis=1) != targets))
        return bool(score(ACCURACY, answer, targets) >= least and lost <= tolerance + 1e-12)

    assert keeps(threshold)
    assert not any(keeps(at) for at in candidates(sure) if at < threshold)


def test_rows_that_are_won_do_not_pay_for_rows_that_are_lost() -> None:
    """The cheap stage wins one row and loses another: as accurate as the last, but not let go alone."""
    targets = np.array([0, 0, 0, 0])
    cheap = log_softmax(np.array([[9.0, 0.0], [5.0, 0.0], [0.0, 1.0], [4.0, 0.0]]))
    last = log_softmax(np.array([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]))
    thresholds = tolerant([cheap, last], targets, 0.0)
    assert stages_of([cheap, last], targets).left_at(thresholds).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "nll", "auroc"])
def test_three_stages_keep_the_metric_in_its_own_direction(name: str) -> None:
    table, targets = outputs(rows=300)
    stages, metric = [log_softmax(table[member]) for member in (A, C, D)], Metric(name=name)
    first, second = within_tolerance(Aim(stages_of(stages, targets), metric, 0.01))
    answer = stages[0].copy()
    rows = np.flatnonzero(certainty("confidence", stages[0], None) < first)
    answer[rows] = stages[1][rows]
    rows = rows[certainty("confidence", stages[1][rows], None) < second]
    answer[rows] = stages[2][rows]
    loss = score(metric, stages[2], targets) - score(metric, answer, targets)
    assert (-loss if name == "nll" else loss) <= 0.01 + 1e-9
    assert 0 < len(rows) < 300


def test_no_row_leaves_a_useless_stage_and_all_leave_an_equal_one() -> None:
    targets = np.arange(60) % 3
    good, wrong = log_softmax(9 * np.eye(3)[targets]), log_softmax(9 * np.eye(3)[(targets + 1) % 3])
    assert tolerant([wrong, good], targets, 0.0) == (NONE_LEAVES,)
    assert tolerant([good, good], targets, 0.0) == (ALL_LEAVE,)
    assert tolerant([good, wrong, good], targets, 0.0) == (ALL_LEAVE, ALL_LEAVE)


def test_more_tolerance_never_costs_more() -> None:
    table, targets = outputs(rows=200)
    stages = [log_softmax(table[A]), log_softmax(table[D])]
    shares = [
        stages_of(stages, targets).left_at(tolerant(stages, targets, tolerance)).mean()
        for tolerance in (0.0, 0.02, 0.05, 0.1, 1.0)
    ]
    assert shares == sorted(shares, reverse=True)
    assert shares[-1] == 0


def test_a_path_lets_ever_more_rows_leave_until_all_have_left_at_once() -> None:
    table, targets = outputs(rows=400)
    stages = stages_of([log_softmax(table[member]) for member in (A, C, D)], targets)
    steps = np.array(path(stages))
    assert steps[0].tolist() == [NONE_LEAVES, NONE_LEAVES]
    assert steps[-1].tolist() == [ALL_LEAVE, ALL_LEAVE]
    assert len(steps) == 2 * (PATH_CANDIDATES + 1) + 1
    assert ((np.diff(steps, axis=0) < 0).sum(axis=1) == 1).all()
    left = [stages.left_at(tuple(step)) for step in steps.tolist()]
    costs = [stages.cost_share(found) for found in left]
    assert costs == sorted(costs, reverse=True)
    # The order is worth something: half the cost at a fraction of what it loses in the end.
    half = next(found for found, cost in zip(left, costs, strict=True) if cost <= 0.67)
    assert stages.lost_rows(half) < 0.4 * stages.lost_rows(left[-1])


def test_a_path_lowers_the_stage_that_saves_more_for_the_same_risk_first() -> None:
    """Two stages that are alike in all but what an exit saves."""
    table, targets = outputs(rows=400)
    twin = log_softmax(table[C])
    dear_second = stages_of([twin, twin, log_softmax(table[D])], targets, (1.0, 8.0, 1.0))
    middle = path(dear_second)[PATH_CANDIDATES // 2]
    assert middle[0] < middle[1]


@pytest.mark.parametrize("max_cost", [0.55, 0.8, 1.0])
def test_rows_leave_until_the_cost_is_met_and_no_further(max_cost: float) -> None:
    table, targets = outputs(rows=300)
    stages = stages_of([log_softmax(table[A]), log_softmax(table[D])], targets)
    *careful, last = until_cost(path(stages), stages, max_cost)
    assert stages.cost_share(stages.left_at(last)) <= max_cost
    assert all(stages.cost_share(stages.left_at(step)) > max_cost for step in careful)
    lost = stages.lost_rows(stages.left_at(last))
    cheap = [step for step in path(stages) if stages.cost_share(stages.left_at(step)) <= max_cost]
    assert all(stages.lost_rows(stages.left_at(step)) >= lost for step in cheap)
