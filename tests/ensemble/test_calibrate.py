"""Calibration: of members by a temperature, and of what they are combined to by any kind."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.calibration import (
    AutoScaling,
    IsotonicScaling,
    Scaling,
    TemperatureScaling,
    VectorScaling,
)
from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.ensemble.calibrate import MOST_KNOTS, RANGE, calibrated, fit_scaling, fit_temperature
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.weights import likelihood_weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.quality import expected_calibration_error
from tests.ensemble.likely import likely
from tests.ensemble.toys import MEMBERS, outputs

TABLE, TARGETS = outputs(rows=2000)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_no_other_temperature_is_likelier(member: Member) -> None:
    logits = TABLE[member].astype(np.float64)
    best = fit_temperature(logits, TARGETS)

    def loss(temperature: float) -> float:
        likelihood = log_softmax(logits / temperature)[np.arange(len(TARGETS)), TARGETS].mean()
        return float(np.log(temperature) ** 2 / len(TARGETS) - likelihood)

    grid = np.geomspace(*RANGE, 300)
    assert loss(best) <= min(loss(temperature) for temperature in grid) + 1e-9


def test_scaled_logits_get_the_scale_as_temperature() -> None:
    logits = TABLE[MEMBERS[3]]
    base = fit_temperature(logits, TARGETS)
    assert fit_temperature(logits * 3, TARGETS) == pytest.approx(base * 3, rel=0.01)


def test_it_stays_finite_where_every_row_is_right_or_wrong() -> None:
    right = np.eye(4)[TARGETS]
    assert RANGE[0] < fit_temperature(right, TARGETS) < 1
    assert 1 < fit_temperature(-right * 5, TARGETS) < RANGE[1] + 1e-6


def test_a_shy_better_member_is_not_outvoted_once_calibrated() -> None:
    """The case it is for: label smoothing made the best member unsure, another one is loud."""
    worse, better = TABLE[MEMBERS[0]] * 3, TABLE[MEMBERS[3]] / 4

    def accuracy(members: list[Output]) -> float:
        mixed = pool([log_softmax(member) for member in members], None, "classification")
        return float((mixed.argmax(1) == TARGETS).mean())

    scaled = [member / fit_temperature(member, TARGETS) for member in (worse, better)]
    assert accuracy(scaled) > accuracy([worse, better]) + 0.05
    assert likelihood_weights([log_softmax(member) for member in scaled], TARGETS)[1] > 0.8


KINDS: tuple[Scaling, ...] = (TemperatureScaling(), VectorScaling(), IsotonicScaling(), AutoScaling())
LOUD, LABELS = likely(3_000, 0)
UNSEEN, TRUTH = likely(10_000, 1)
LOUDEST = list(LOUD)[2]


def loss(scores: Floats, targets: npt.NDArray[np.int64]) -> float:
    return float(-scores[np.arange(len(targets)), targets].mean())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.kind)
def test_every_kind_makes_unseen_rows_likelier_and_better_calibrated(kind: Scaling) -> None:
    fitted = fit_scaling(kind, log_softmax(LOUD[LOUDEST]), LABELS)
    assert fitted.fitted
    before = log_softmax(UNSEEN[LOUDEST])
    after = calibrated(fitted, before)
    np.testing.assert_allclose(np.exp(after).sum(axis=1), 1, atol=1e-9)
    assert loss(after, TRUTH) < 0.8 * loss(before, TRUTH)
    # The member is sure of 0.11 too much. The isotonic function sees all classes alike, and errs more.
    assert expected_calibration_error(after, TRUTH) < (0.06 if fitted.kind == "isotonic" else 0.02)
    if fitted.kind != "vector":
        np.testing.assert_array_equal(after.argmax(axis=1), before.argmax(axis=1))
    # What is fitted is kept, and survives JSON.
    assert fit_scaling(fitted, before[:50], TRUTH[:50]) == fitted
    assert type(fitted).model_validate_json(fitted.model_dump_json()) == fitted


def test_vector_scaling_undoes_what_was_done_to_each_class() -> None:
    honest = log_softmax(LOUD[LOUDEST].astype(np.float64) / 2.6)
    shifts = np.linspace(-1, 1, honest.shape[1])
    fitted = fit_scaling(VectorScaling(), honest * 2 + shifts, LABELS)
    # A factor and a shift make up for each other in part, so the answers are compared.
    found = calibrated(fitted, honest * 2 + shifts)
    assert np.abs(np.exp(found) - np.exp(honest)).mean() < 0.005
    assert np.abs(np.exp(log_softmax(honest * 2 + shifts)) - np.exp(honest)).mean() > 0.02


def test_an_isotonic_function_is_the_least_squares_one_and_rises_everywhere() -> None:
    reference = pytest.importorskip("sklearn.isotonic")
    scores = log_softmax(LOUD[LOUDEST])
    fitted = fit_scaling(IsotonicScaling(), scores, LABELS)
    assert isinstance(fitted, IsotonicScaling)
    assert fitted.knots is not None
    before, after = np.array(fitted.knots).T
    assert len(before) <= MOST_KNOTS + 1
    assert (np.diff(before) > 0).all()
    assert (np.diff(after) > 0).all()
    chances, hits = np.exp(scores).ravel(), np.eye(10)[LABELS].ravel()
    best = reference.IsotonicRegression(out_of_bounds="clip").fit(chances, hits)
    # A knot is the mean of steps of that function: near it wherever it is steep or flat.
    assert np.abs(best.predict(before) - after).max() < 0.05
    # Far below the first knot and beyond the last one, order is kept and nothing becomes impossible.
    extreme = log_softmax(np.array([[800.0, 0.0, -5.0], [0.0, 0.1, 0.2]]))
    found = calibrated(fitted, extreme)
    assert np.isfinite(found).all()
    assert (np.argsort(found, axis=1) == np.argsort(extreme, axis=1)).all()


@pytest.mark.parametrize("kind", [IsotonicScaling(), AutoScaling()], ids=lambda kind: kind.kind)
@pytest.mark.parametrize("slope", [0.0, -1.0], ids=["constant", "the wrong way round"])
def test_scores_that_know_nothing_leave_one_knot(kind: Scaling, slope: float) -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 4, 400)
    hints = np.eye(4)[targets] + 0.01 * rng.normal(size=(400, 4))
    scores = log_softmax(slope * hints)
    fitted = fit_scaling(kind, scores, targets)
    found = calibrated(fitted, scores)
    assert np.isfinite(found).all()
    if isinstance(fitted, IsotonicScaling):
        assert fitted.knots is not None
        # One share for all: that of the true among all classes.
        assert [after for _, after in fitted.knots] == [0.25]
        assert loss(found, targets) < loss(scores, targets) + 0.01


def test_knots_rise_where_probabilities_differ_by_rounding_or_are_next_to_nothing() -> None:
    rng = np.random.default_rng(0)
    for low in (np.array([-745.0, -740.0, -720.0, -700.0]), np.log(0.3) + 2e-16 * np.arange(4)):
        place = np.arange(1_000) % 4
        scores = np.stack([np.zeros(1_000), low[place]], axis=1)
        targets = (rng.random(1_000) < 0.1 + 0.2 * place).astype(np.int64)
        fitted = fit_scaling(IsotonicScaling(), scores, targets)
        assert isinstance(fitted, IsotonicScaling)
        assert (np.diff(np.array(fitted.knots), axis=0) > 0).all()
        assert np.isfinite(calibrated(fitted, scores)).all()


def warped(scores: Floats) -> Floats:
    """Overconfident in the middle alone: no temperature undoes that."""
    chances = np.exp(scores)
    return log_softmax(
        np.log(np.where(chances > 0.5, 0.5 + 0.5 * np.abs(2 * chances - 1) ** 0.2, chances) + 1e-9)
    )


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda honest: honest * 2, "temperature"),
        (lambda honest: honest + np.linspace(-2, 2, 10), "vector"),
        (warped, "isotonic"),
    ],
)
def test_auto_takes_the_kind_that_fits_held_out_rows_best(make: object, kind: str) -> None:
    honest = log_softmax(LOUD[LOUDEST].astype(np.float64) / 2.6)
    assert callable(make)
    assert fit_scaling(AutoScaling(), make(honest), LABELS).kind == kind


def test_a_plain_name_is_an_unfitted_calibration_and_cannot_be_served() -> None:
    tree = Parallel(members=MEMBERS[:2], calibration="isotonic")
    assert tree.calibration == IsotonicScaling()
    with pytest.raises(EnsembleError, match="the ensemble is not calibrated: auto"):
        calibrated(AutoScaling(), np.zeros((1, 2)))
    signature = {"task": "classification", "input_shape": [2], "input_dtype": "float32", "outputs": 4}
    with pytest.raises(ValueError, match="parallel is not calibrated: fit the ensemble first"):
        Spec.model_validate(
            {
                "name": "x",
                "tree": tree.plain(),
                "signature": {**signature, "classes": list("abcd"), "mean": [0, 0], "std": [1, 1]},
            }
        )
