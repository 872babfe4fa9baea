"""Metrics against scikit-learn and against values worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from orchestrator.config.measure import Metric
from orchestrator.errors import DataError, ExecutionError, ModelError
from orchestrator.measure.intervals import median_interval, percentile_interval, resamples, wilson
from orchestrator.measure.metrics import larger_is_better, log_softmax, score, softmax, statistic
from orchestrator.measure.quality import brier_score, expected_calibration_error, quality

HERE = f"{__name__}:top_two"


def top_two(outputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    """A user's metric: how often the label is among the two highest outputs."""
    best = np.argsort(-outputs, axis=1)[:, :2]
    return float((best == targets[:, None]).any(axis=1).mean())


def failing(outputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    raise ZeroDivisionError(f"{outputs.shape} {targets.shape}")


def without_value(outputs: np.ndarray[Any, Any], targets: np.ndarray[Any, Any]) -> float:
    return float("nan") * len(outputs) * len(targets)


def rows(count: int = 300, classes: int = 4, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    targets = rng.integers(classes, size=count)
    outputs = rng.normal(size=(count, classes)) + 1.2 * np.eye(classes)[targets]
    return np.round(outputs, 1).astype(np.float32), targets


def test_log_softmax_of_huge_logits_is_exact() -> None:
    found = log_softmax(np.array([[1e4, 0.0, -1e4], [1e30, 1e30, 0.0]]))
    np.testing.assert_allclose(found[0], [0.0, -1e4, -2e4])
    np.testing.assert_allclose(found[1][:2], [-np.log(2)] * 2)


def test_softmax_sums_to_one_and_is_float64_of_float32() -> None:
    probs = softmax(rows()[0])
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-14)


def test_log_probabilities_score_like_the_logits_they_come_from() -> None:
    outputs, targets = rows()
    for name in ("accuracy", "macro_f1", "auroc", "recall_at_precision", "nll"):
        metric = Metric(name=name)
        assert score(metric, log_softmax(outputs), targets) == pytest.approx(
            score(metric, outputs, targets), abs=1e-9
        )


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_metrics_equal_scikit_learn(classes: int) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    outputs, targets = rows(classes=classes)
    probs = softmax(outputs)
    area_scores = probs[:, 1] if classes == 2 else probs
    expected = {
        "accuracy": reference.accuracy_score(targets, outputs.argmax(axis=1)),
        "macro_f1": reference.f1_score(targets, outputs.argmax(axis=1), average="macro"),
        "auroc": reference.roc_auc_score(targets, area_scores, multi_class="ovr", average="macro"),
        "nll": reference.log_loss(targets, probs),
    }
    for name, value in expected.items():
        assert score(Metric(name=name), outputs, targets) == pytest.approx(value, abs=1e-9), name


@pytest.mark.parametrize("precision", [0.3, 0.6, 0.9, 0.999])
def test_recall_at_precision_equals_scikit_learn(precision: float) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    outputs, targets = rows(classes=2)
    outputs = outputs.astype(np.float64)
    found_precision, recall, _ = reference.precision_recall_curve(targets, outputs[:, 1] - outputs[:, 0])
    expected = recall[found_precision >= precision].max()
    assert score(Metric(name="recall_at_precision", precision=precision), outputs, targets) == expected


def test_recall_at_precision_by_hand() -> None:
    # Scores falling: +, +, -, +, -: recall 2/3 at precision 1, 3/3 at precision 3/4.
    targets = np.array([1, 1, 0, 1, 0])
    outputs = np.array([[0.0, level] for level in (5, 4, 3, 2, 1)])
    assert score(Metric(name="recall_at_precision", precision=0.9), outputs, targets) == pytest.approx(2 / 3)
    assert score(Metric(name="recall_at_precision", precision=0.75), outputs, targets) == 1.0


@pytest.mark.parametrize("targets_shape", [(200,), (200, 3)])
def test_regression_metrics_equal_scikit_learn(targets_shape: tuple[int, ...]) -> None:
    reference = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    targets = rng.normal(size=targets_shape).astype(np.float32)
    outputs = targets.reshape(200, -1) + rng.normal(size=targets.reshape(200, -1).shape)
    truth = targets.reshape(200, -1)
    assert score(Metric(name="mae"), outputs, targets) == pytest.approx(
        reference.mean_absolute_error(truth, outputs)
    )
    assert score(Metric(name="rmse"), outputs, targets) == pytest.approx(
        reference.mean_squared_error(truth, outputs) ** 0.5
    )


def test_auroc_by_hand_with_a_tie_and_with_saturated_probabilities() -> None:
    outputs = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 2.0], [0.0, 3.0]])
    assert score(Metric(name="auroc"), outputs, np.array([0, 0, 1, 1])) == 3.5 / 4
    # All probabilities round to 1.0; the log-odds still rank them.
    far = np.array([[0.0, 0.0, 100.0 + level] for level in (1, 2, 3, 4)])
    assert score(Metric(name="auroc"), far, np.array([0, 1, 2, 2])) == pytest.approx((1 + 2 / 3 + 1) / 3)


def test_auroc_leaves_out_classes_that_do_not_occur_and_needs_two() -> None:
    outputs, targets = rows(classes=3)
    kept = targets != 2
    assert 0.5 < score(Metric(name="auroc"), outputs[kept], targets[kept]) < 1
    with pytest.raises(DataError, match="auroc is undefined"):
        score(Metric(name="auroc"), outputs[targets == 1], targets[targets == 1])


def test_ece_by_hand() -> None:
    # Two rows at 0.9, one right: gap 0.4. Two rows at 0.6, both right: gap 0.4.
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    assert expected_calibration_error(np.log(probs), np.array([0, 1, 0, 0])) == pytest.approx(0.4)
    # Sure and right in every row: perfectly calibrated.
    assert expected_calibration_error(np.array([[50.0, 0.0]] * 3), np.zeros(3, int)) == pytest.approx(0.0)


def test_ece_of_rows_drawn_from_the_probabilities_is_small() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(20000, 3))
    targets = (softmax(outputs).cumsum(axis=1) < rng.random((20000, 1))).sum(axis=1)
    assert expected_calibration_error(outputs, targets) < 0.02
    assert expected_calibration_error(5 * outputs, targets) > 0.2


def test_wilson_by_hand() -> None:
    # Newcombe 1998, table I: 81 of 263.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(20, 20)[1] == 1.0


@pytest.mark.parametrize("name", ["accuracy", "macro_f1", "auroc", "nll", "recall_at_precision"])
def test_row_weights_mean_repeated_rows(name: str) -> None:
    outputs, targets = rows(count=80)
    metric = Metric(name=name, precision=0.6)
    at = statistic(metric, outputs, targets)
    for weights in resamples(80, seed=3, count=5):
        drawn = np.repeat(np.arange(80), weights.astype(int))
        assert at(weights) == pytest.approx(score(metric, outputs[drawn], targets[drawn]), abs=1e-12)


def test_quality_holds_value_in_interval_and_is_seeded() -> None:
    outputs, targets = rows()
    found = quality(Metric(name="auroc"), outputs, targets, seed=1)
    assert found.ci[0] < found.value < found.ci[1]
    assert found == quality(Metric(name="auroc"), outputs, targets, seed=1)
    assert found.ci != quality(Metric(name="auroc"), outputs, targets, seed=2).ci
    assert found.accuracy_ci == wilson(round(found.accuracy * 300), 300) if found.accuracy else False
    plain = found.plain()
    assert plain["metric"]["name"] == "auroc"
    assert set(plain) == {"metric", "accuracy", "accuracy_ci", "nll", "ece"}


def test_quality_of_a_regression_has_no_class_figures() -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(50, 2)).astype(np.float32)
    found = quality(Metric(name="rmse"), targets + 0.5, targets)
    assert found.value == pytest.approx(0.5, abs=1e-6)
    assert (found.accuracy, found.accuracy_ci, found.nll, found.ece) == (None, None, None, None)


def test_bootstrap_interval_of_a_mean_is_close_to_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    targets = np.zeros((400, 1), dtype=np.float32)
    outputs = np.abs(rng.normal(size=(400, 1)))
    found = quality(Metric(name="mae"), outputs, targets)
    half = 1.96 * outputs.std() / 20
    assert found.ci == pytest.approx((outputs.mean() - half, outputs.mean() + half), abs=0.015)


def test_brier_score() -> None:
    # Rows (0.6, 0.4) of label 0 and (0.3, 0.7) of label 0: 2 * 0.16 and 2 * 0.49.
    found = brier_score(np.log([[0.6, 0.4], [0.3, 0.7]]), np.array([0, 0]))
    assert found == pytest.approx((0.32 + 0.98) / 2)
    assert brier_score(np.array([[0.0, 90.0]]), np.array([0])) == pytest.approx(2)


def test_own_metric_by_import_path() -> None:
    outputs, targets = rows(classes=4)
    metric = Metric(name=HERE)
    assert larger_is_better(metric)
    found = quality(metric, outputs, targets, allowed=(HERE,))
    assert found.value == top_two(outputs, targets)
    assert found.ci[0] < found.value < found.ci[1]
    with pytest.raises(ModelError, match="not allowed"):
        score(metric, outputs, targets)
    broken = f"{__name__}:failing"
    with pytest.raises(ModelError, match=r"the metric failed.*also of resampled rows: return float\('nan'\)"):
        score(Metric(name=broken), outputs, targets, allowed=(broken,))
    unknown = f"{__name__}:without_value"
    with pytest.raises(DataError, match=r"without_value is undefined on these 300 rows: nan$"):
        score(Metric(name=unknown), outputs, targets, allowed=(unknown,))


def test_directions() -> None:
    assert [larger_is_better(Metric(name=name)) for name in ("accuracy", "auroc", "nll", "mae", "rmse")] == [
        True,
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda out, true: (out[:-1], true), DataError, "do not fit"),
        (lambda out, true: (out[:0], true[:0]), DataError, "do not fit"),
        (lambda out, true: (out, true + 1), DataError, "label out of range: 4"),
        (lambda out, true: (out, true - 1), DataError, "label out of range: -1"),
        (lambda out, true: (out, true + 0.5), DataError, "integer labels"),
        (
            lambda out, true: (np.where(np.arange(len(out))[:, None] == 7, np.nan, out), true),
            ExecutionError,
            "row: 7",
        ),
    ],
)
def test_unfit_input_is_refused(
    change: Callable[[Any, Any], tuple[Any, Any]], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        score(Metric(), *change(*rows()))


def test_percentile_interval_leaves_out_undefined_values() -> None:
    assert percentile_interval([1.0, float("nan"), 1.0]) == (1.0, 1.0)


def test_median_interval_covers_and_is_seeded() -> None:
    values = np.arange(15.0)
    low, high = median_interval(values)
    assert 0 < low < 7 < high < 14
    assert (low, high) == median_interval(values)


def labelled(count: int = 200, labels: int = 5, seed: int = 0) -> tuple[Any, Any]:
    """Log-odds and 0 or 1 of several labels; the last one never occurs."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((count, labels)) < [0.5, 0.3, 0.2, 0.05, 0.0]).astype(np.int8)
    odds = rng.normal(size=truth.shape) + 1.5 * (2 * truth - 1)
    odds[:, 4] = -5.0
    return np.round(odds, 1), truth


def test_metrics_of_several_labels_against_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    odds, truth = labelled()
    said, occurs = odds > 0, truth.any(axis=0)

    def found(name: Any) -> float:
        return score(Metric(name=name), odds, truth)

    # Labels that are neither there nor said to be are left out.
    assert found("macro_f1") == pytest.approx(
        sklearn.f1_score(truth[:, occurs], said[:, occurs], average="macro")
    )
    assert found("micro_f1") == pytest.approx(sklearn.f1_score(truth, said, average="micro"))
    precision = sklearn.average_precision_score(truth[:, occurs], odds[:, occurs], average="macro")
    assert found("mean_average_precision") == pytest.approx(precision)
    assert found("subset_accuracy") == pytest.approx(sklearn.accuracy_score(truth, said))
    chances = 1 / (1 + np.exp(-odds))
    losses = [sklearn.log_loss(truth[:, k], chances[:, k], labels=[0, 1]) for k in range(5)]
    assert found("nll") == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("name", ["macro_f1", "micro_f1", "mean_average_precision", "subset_accuracy", "nll"])
def test_weights_of_rows_with_several_labels_are_repetitions(name: Any) -> None:
    odds, truth = labelled(60)
    weights = np.random.default_rng(1).integers(0, 3, 60)
    rows = np.repeat(np.arange(60), weights)
    at = statistic(Metric(name=name), odds, truth)
    assert at(weights.astype(float)) == pytest.approx(score(Metric(name=name), odds[rows], truth[rows]))


def test_quality_of_several_labels() -> None:
    odds, truth = labelled()
    found = quality(Metric(name="macro_f1"), odds, truth)
    assert found.ci[0] < found.value < found.ci[1]
    assert found.accuracy is None
    assert found.accuracy_ci is None
    assert found.nll == score(Metric(name="nll"), odds, truth)
    # Each label is a row of two classes.
    pairs = np.stack([np.zeros(odds.size), odds.ravel()], axis=1)
    assert found.ece == pytest.approx(expected_calibration_error(pairs, truth.ravel()))
    assert brier_score(odds, truth) == pytest.approx(brier_score(pairs, truth.ravel()))
    exact = quality(Metric(name="subset_accuracy"), odds, truth)
    assert exact.ci == wilson(exact.value * 200, 200)


def test_labels_that_are_neither_0_nor_1_and_metrics_of_another_task_are_refused() -> None:
    odds, truth = labelled()
    with pytest.raises(DataError, match="label out of range: 2"):
        score(Metric(name="macro_f1"), odds, truth * 2)
    with pytest.raises(DataError, match="do not fit"):
        score(Metric(name="macro_f1"), odds[:, :3], truth)
    with pytest.raises(DataError, match="integer labels"):
        score(Metric(name="accuracy"), odds, truth)
    with pytest.raises(DataError, match=r"undefined.*rows that have a label"):
        score(Metric(name="mean_average_precision"), odds, np.zeros_like(truth))
