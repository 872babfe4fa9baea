"""Boosting without training: steps, sums, missing stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import Boosting, Member
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.boost import Progress, boosted, next_factor
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import replay
from orchestrator.errors import EnsembleError, QuorumError
from orchestrator.measure.metrics import log_softmax
from tests.ensemble.toys import A, B, C, outputs, values

TABLE, TARGETS = outputs(rows=400)
VALUES, TRUTH = values(rows=400)
CORRECTIONS = {A: VALUES[A], B: VALUES[B] - VALUES[A], C: (VALUES[C] - VALUES[A]) / 2}
"""Values whose later stages are residuals."""
KINDS: list[Any] = [(TABLE, TARGETS, "classification"), (CORRECTIONS, TRUTH, "regression")]


def tree(**more: Any) -> Boosting:
    given = {"members": (A, B, C), "factors": (1.0, 0.5, 0.25), "rounds": 3, **more}
    return Boosting(policy="boosting", base="a", **given)


def test_the_answer_is_the_softmax_of_the_sum_of_logits() -> None:
    found = replay(tree(), TABLE, "classification").scores
    total = sum(
        f * TABLE[member].astype(np.float64) for member, f in zip((A, B, C), (1, 0.5, 0.25), strict=True)
    )
    np.testing.assert_allclose(found, log_softmax(total), atol=1e-12)


def test_fitting_leaves_logits_as_they_were_trained() -> None:
    fitted = fit(tree(), TABLE, TARGETS, Metric(), "classification")
    np.testing.assert_array_equal(
        replay(fitted, TABLE, "classification").scores, replay(tree(), TABLE, "classification").scores
    )


@pytest.mark.parametrize(("table", "targets", "task"), KINDS)
def test_a_step_is_the_best_of_all_and_never_makes_the_loss_larger(
    table: dict[Member, Any], targets: Any, task: Task
) -> None:
    before = Progress.of(table[A], targets, task)
    step = before.step(table[C])
    losses = [before.after(table[C], factor).loss for factor in np.linspace(0, 1, 101)]
    assert before.after(table[C], step).loss <= min(losses) + 1e-7
    assert 0 < step <= 1
    assert before.step(-table[C]) == 0


def test_the_step_of_a_regression_is_the_projection_on_the_stage() -> None:
    """In units of the targets' deviations, least squares in one number has a closed form."""
    before, units = Progress.of(VALUES[A], TRUTH, "regression"), TRUTH.std(axis=0).astype(np.float64)
    stage = (TRUTH - VALUES[A]) * 2 + np.random.default_rng(0).normal(size=TRUTH.shape) * units
    residual, along = (TRUTH - VALUES[A].astype(np.float64)) / units, stage / units
    assert before.step(stage) == pytest.approx((residual * along).sum() / (along**2).sum(), abs=1e-4)


@pytest.mark.parametrize(("table", "targets", "task"), KINDS)
def test_without_a_shrinkage_validation_rows_say_how_far_but_no_further_than_train_rows(
    table: dict[Member, Any], targets: Any, task: Task
) -> None:
    halves = {"train": slice(0, 200), "validation": slice(200, 400)}
    so_far: Any = {part: Progress.of(table[A][rows], targets[rows], task) for part, rows in halves.items()}
    stage: Any = {part: table[B][rows] for part, rows in halves.items()}
    longest = so_far["train"].step(stage["train"])
    assert next_factor(stage, so_far, 0.25) == pytest.approx(longest / 4, abs=1e-6)
    assert next_factor(stage, so_far, None) == so_far["validation"].step(stage["validation"], longest)
    memorised = {**stage, "validation": -stage["validation"]}
    assert next_factor(memorised, so_far, None) == 0
    assert next_factor(memorised, so_far, 1.0) == longest


@pytest.mark.parametrize(("table", "targets", "task"), KINDS)
def test_a_missing_stage_takes_the_later_ones_with_it(
    table: dict[Member, Any], targets: Any, task: Task
) -> None:
    del targets
    lenient = tree(quorum=1)
    first = replay(tree(members=(A,), factors=(1.0,)), table, task).scores
    for lost, left in ((B, first), (C, replay(tree(members=(A, B), factors=(1.0, 0.5)), table, task).scores)):
        rest = {member: output for member, output in table.items() if member != lost}
        np.testing.assert_array_equal(replay(lenient, rest, task).scores, left)
    with pytest.raises(QuorumError, match=r"b \(no such predictor\). 2 of 3"):
        replay(tree(quorum=2), {A: table[A], C: table[C]}, task)


def test_a_degraded_sum_has_a_temperature_of_its_own() -> None:
    """The first stage alone is far less sure than it should be; the sum of all is not."""
    table = {A: TABLE[C] * 0.2, B: TABLE[C] * 1.0, C: TABLE[C] * 0.3}
    asked = tree(quorum=1, factors=(1.0, 0.9, 0.9), calibration=TemperatureScaling())
    fitted = fit(asked, table, TARGETS, Metric(name="nll"), "classification")
    assert isinstance(fitted, Boosting)
    assert [found.without for found in fitted.survivors] == [(1, 2), (2,)]
    whole, first = (replay(fitted, part, "classification") for part in (table, {A: table[A]}))
    # All three say the same but for a factor, so that calibrated answers are equal.
    np.testing.assert_allclose(first.scores, whole.scores, rtol=0.05, atol=0.01)
    assert first.expected is not None


def test_untrained_stages_are_refused() -> None:
    bare = Boosting(policy="boosting", base="a")
    with pytest.raises(EnsembleError, match="no trained stages"):
        fit(bare, TABLE, TARGETS, Metric(), "classification")
    with pytest.raises(EnsembleError, match="no trained stages"):
        replay(bare, TABLE, "classification")
    with pytest.raises(ValidationError, match="a quorum of 9 needs as many members, got 4"):
        Boosting(policy="boosting", base="a", quorum=9)
    with pytest.raises(ValidationError, match="3 stages need as many factors, got 2"):
        tree(factors=(1.0, 0.5))


def test_a_sum_of_one_stage_is_that_stage() -> None:
    np.testing.assert_array_equal(boosted([VALUES[A].astype(float)], (1.0,), "regression"), VALUES[A])
