"""Prediction sets and bands: coverage by simulation, and what the kinds differ in."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from orchestrator.config.calibration import Band, PredictionSets
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.conformal import fit_band, fit_sets, intervals, prediction_sets
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import softmax
from tests.ensemble.likely import likely

Method = Literal["lac", "aps", "raps"]


def probabilities(rows: int, seed: int) -> tuple[Floats, np.ndarray[tuple[int, ...], np.dtype[np.int64]]]:
    """Of one overconfident member: the promise must not need a calibrated model."""
    table, targets = likely(rows, seed, members=1)
    return softmax(next(iter(table.values()))), targets


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_sets_cover_the_truth_as_often_as_promised(method: Method, coverage: float) -> None:
    """Over 100 draws of 200 calibration rows, on 200 others each: the promise is an average over draws."""
    probs, targets = probabilities(40_000, 0)
    covered, empty = [], 0
    for draw in range(100):
        fitting, rest = slice(draw * 400, draw * 400 + 200), slice(draw * 400 + 200, draw * 400 + 400)
        settings = fit_sets(
            PredictionSets(method=method, coverage=coverage), probs[fitting], targets[fitting]
        )
        found = prediction_sets(settings, probs[rest])
        covered.append(found[np.arange(200), targets[rest]].mean())
        empty += int((~found.any(axis=1)).sum())
    error = 3 * np.std(covered) / 10
    assert np.mean(covered) >= coverage - error
    if method == "lac":
        assert np.mean(covered) <= coverage + 1 / 201 + error
    else:
        assert empty == 0


def test_the_methods_do_what_they_are_for() -> None:
    probs, targets = probabilities(8_000, 1)
    sizes = {}
    for method in ("lac", "aps", "raps"):
        settings = PredictionSets(method=method, coverage=0.95, penalty=0.3, free=2)
        fitted = fit_sets(settings, probs[:4_000], targets[:4_000])
        sizes[method] = prediction_sets(fitted, probs[4_000:]).sum(axis=1)
    assert sizes["lac"].mean() < sizes["aps"].mean()
    assert sizes["raps"].max() < sizes["aps"].max()
    # Sets grow where the answer is unsure.
    sure = probs[4_000:].max(axis=1)
    assert sizes["aps"][sure > 0.99].mean() < 1.5 < sizes["aps"][sure < 0.5].mean()


def test_a_set_holds_the_likeliest_classes_and_keeps_its_threshold() -> None:
    probs = np.array([[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]])
    settings = PredictionSets(method="aps", threshold=0.8)
    assert prediction_sets(settings, probs).tolist() == [
        [True, True, True, False],
        [True, False, False, False],
    ]
    assert PredictionSets.model_validate_json(settings.model_dump_json()) == settings


def test_bands_cover_each_target_in_its_own_unit() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(20_000, 2)) * [1, 100]
    guess = truth + rng.standard_t(3, size=truth.shape) * [0.1, 20]
    covered = []
    for draw in range(50):
        fitting, rest = slice(draw * 400, draw * 400 + 200), slice(draw * 400 + 200, draw * 400 + 400)
        band = fit_band(Band(coverage=0.9), guess[fitting], truth[fitting])
        low, high = intervals(band, guess[rest])
        covered.append(((low <= truth[rest]) & (truth[rest] <= high)).mean(axis=0))
    np.testing.assert_allclose(np.mean(covered, axis=0), 0.9, atol=0.02)
    column = fit_band(Band(), guess[:200, :1], truth[:200, 0])
    assert column.widths == fit_band(Band(), guess[:200, :1], truth[:200, :1]).widths


def test_too_few_rows_and_unfitted_sets_are_refused() -> None:
    probs, targets = probabilities(18, 0)
    with pytest.raises(EnsembleError, match=r"too few calibration rows.*: 18 rows, 0\.95\. use at least 19"):
        fit_sets(PredictionSets(coverage=0.95), probs, targets)
    for coverage, least in ((0.5, 1), (0.8, 4), (0.9, 9), (0.99, 99)):
        probs, targets = probabilities(least, 0)
        fit_sets(PredictionSets(coverage=coverage), probs, targets)
        with pytest.raises(EnsembleError, match=f"use at least {least}\\."):
            fit_sets(PredictionSets(coverage=coverage), probs[1:], targets[1:])
    with pytest.raises(EnsembleError, match="no threshold"):
        prediction_sets(PredictionSets(), probs)
    with pytest.raises(EnsembleError, match="no widths"):
        intervals(Band(), probs)
