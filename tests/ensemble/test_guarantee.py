"""A guarantee holds as often as it says, costs little, and is refused where rows are too few."""

from __future__ import annotations

from itertools import takewhile
from math import comb, fsum

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.guarantee import Guarantee
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.guarantee import certify, least_rows, p_value
from orchestrator.ensemble.thresholds import Stages, Thresholds, path
from orchestrator.measure.intervals import wilson
from orchestrator.measure.metrics import log_softmax

PROMISE = Guarantee(max_loss=0.005, confidence=0.9)
DRAWS, SEEN, UNSEEN, CLASSES = 500, 1000, 2000, 4
"""Draws; validation and calibration rows of each."""


def population(rows: int, skills: tuple[float, ...], seed: int) -> tuple[list[Floats], npt.NDArray[np.int64]]:
    """Log-probabilities of stages of rising skill, which share most of their errors; rows differ in ease."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(CLASSES, size=rows)
    truth, ease = np.eye(CLASSES)[targets], rng.gamma(2.0, 1.0, size=(rows, 1))
    common = rng.normal(size=(rows, CLASSES)) * np.sqrt(0.7)
    own = [rng.normal(size=(rows, CLASSES)) * np.sqrt(0.3) for _ in skills]
    found = zip(skills, own, strict=True)
    return [log_softmax(skill * ease * truth + 1.5 * (common + noise)) for skill, noise in found], targets


def cut(
    scores: list[Floats], targets: npt.NDArray[np.int64], costs: tuple[float, ...], rows: slice
) -> Stages:
    parts = [found[rows] for found in scores]
    sure = [certainty("confidence", found, None) for found in parts[:-1]]
    cost = np.broadcast_to(np.cumsum(costs)[:, None], (len(costs), len(targets[rows])))
    return Stages(tuple(parts), np.stack(sure), cost, targets[rows])


def as_observed(steps: list[Thresholds], stages: Stages, max_loss: float) -> Thresholds:
    """What one would take without a test: as far as the rows at hand lose no more."""

    def kept(step: Thresholds) -> bool:
        return stages.lost_rows(stages.left_at(step)) <= max_loss * len(stages.targets)

    return list(takewhile(kept, steps))[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("skills", "costs"),
    [((4.0, 6.0), (0.1, 0.9)), ((3.0, 4.5, 6.0), (0.05, 0.2, 0.75))],
    ids=["two", "three"],
)
def test_it_is_broken_no_more_often_than_stated_at_half_the_cost(
    skills: tuple[float, ...], costs: tuple[float, ...]
) -> None:
    """500 disjoint draws; what a choice of thresholds really loses is told on 100,000 other rows."""
    each = SEEN + UNSEEN
    scores, targets = population(DRAWS * each + 100_000, skills, seed=5)
    world = cut(scores, targets, costs, slice(DRAWS * each, None))
    rows = len(world.targets)
    broken, by_eye, cost = 0, 0, 0.0
    for start in range(0, DRAWS * each, each):
        steps = path(cut(scores, targets, costs, slice(start, start + SEEN)))
        calibration = cut(scores, targets, costs, slice(start + SEEN, start + each))
        thresholds, certificate = certify(steps, calibration, PROMISE)
        left = world.left_at(thresholds)
        assert certificate.granted
        broken += world.lost_rows(left) > PROMISE.max_loss * rows
        cost += world.cost_share(left)
        if start % (5 * each) == 0:
            chosen = world.left_at(as_observed(steps, calibration, PROMISE.max_loss))
            by_eye += world.lost_rows(chosen) > PROMISE.max_loss * rows
    assert wilson(broken, DRAWS)[0] <= 1 - PROMISE.confidence
    assert cost / DRAWS <= 0.5
    # The draws could tell: thresholds taken as observed break it far more often.
    assert wilson(by_eye, DRAWS // 5)[0] > 2 * (1 - PROMISE.confidence)


def test_the_p_value_is_the_exact_binomial_tail() -> None:
    for lost, rows, share in ((0, 10, 0.1), (3, 50, 0.02), (7, 60, 0.3)):
        tail = fsum(comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(lost + 1))
        assert p_value(lost, rows, share) == pytest.approx(tail, rel=1e-12)


@pytest.mark.parametrize(
    ("max_loss", "confidence", "rows"), [(0.005, 0.9, 460), (0.5, 0.5, 1), (0.5, 0.75, 2)]
)
def test_the_least_rows_are_those_that_no_lost_row_suffices_on(
    max_loss: float, confidence: float, rows: int
) -> None:
    found = least_rows(Guarantee(max_loss=max_loss, confidence=confidence))
    assert found == rows
    level = 1 - confidence + 1e-12
    assert p_value(0, found, max_loss) <= level
    assert found == 1 or p_value(0, found - 1, max_loss) > level


def toy(losses: list[bool], rows: int = 1000) -> Stages:
    """Two stages: rows leave in order of their number, and `losses` says which are lost by it."""
    lost = np.zeros(rows, dtype=bool)
    lost[: len(losses)] = losses
    last = np.tile([0.0, -9.0], (rows, 1))
    first = np.where(lost[:, None], last[:, ::-1], last)
    sure = np.linspace(1, 0.5, rows)[None]
    return Stages((first, last), sure, np.ones((2, rows)), np.zeros(rows, dtype=np.int64))


def test_the_first_step_that_cannot_be_promised_ends_the_path() -> None:
    """Twenty rows in a row are lost in the middle; behind them all is well, but no step gets there."""
    stages = toy([False] * 400 + [True] * 20)
    steps = [(2.0,), *((float(at),) for at in np.linspace(0.999, 0.0, 200))]
    thresholds, certificate = certify(steps, stages, Guarantee(max_loss=0.01))
    level = 1 - Guarantee(max_loss=0.01).confidence
    assert certificate.granted
    assert certificate.p_value <= level < p_value(certificate.lost + 4, 1000, 0.01)
    assert 400 <= np.count_nonzero(stages.left_at(thresholds) == 0) < 420


@pytest.mark.parametrize(("rows", "granted"), [(459, False), (460, True)])
def test_without_enough_rows_no_row_leaves_early(rows: int, granted: bool) -> None:
    stages = toy([], rows)
    thresholds, certificate = certify([(2.0,), (0.0,)], stages, PROMISE)
    assert certificate.granted is granted
    assert (certificate.rows, certificate.lost) == (rows, 0)
    assert stages.left_at(thresholds).tolist() == [0 if granted else 1] * rows


def test_a_stage_that_loses_at_once_is_never_left_early() -> None:
    thresholds, certificate = certify([(2.0,), (0.9,), (0.0,)], toy([True] * 300), PROMISE)
    assert thresholds == (2.0,)
    assert (certificate.granted, certificate.lost) == (False, 200)
    assert certificate.p_value > 0.99
