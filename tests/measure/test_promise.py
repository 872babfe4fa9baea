"""The promise's tests: by hand, against brute force, and by simulation of their error rate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.config.measure import Metric
from orchestrator.config.search import Promise
from orchestrator.errors import ConfigError, DataError
from orchestrator.measure.intervals import _tango_statistic, normal_quantile, tango_upper_drop
from orchestrator.measure.promise import non_inferior

ACCURACY = Metric(name="accuracy")


def outputs_of(predicted: np.ndarray[Any, Any], classes: int = 3) -> np.ndarray[Any, Any]:
    return np.asarray(np.eye(classes)[predicted] * 4)


def paired(lost: int, won: int, rows: int) -> tuple[Any, Any, Any]:
    """(variant outputs, parent outputs, targets) with these discordant rows, the rest right in both."""
    targets = np.zeros(rows, dtype=np.int64)
    variant, parent = targets.copy(), targets.copy()
    variant[:lost] = 1
    parent[lost : lost + won] = 1
    return outputs_of(variant), outputs_of(parent), targets


@pytest.mark.parametrize("rows", [10, 100, 1000])
def test_no_discordant_row_bounds_the_drop_by_the_known_formula(rows: int) -> None:
    z = normal_quantile(0.95)
    assert tango_upper_drop(0, 0, rows, 0.95) == pytest.approx(z * z / (rows + z * z), abs=1e-12)


def test_limits_are_where_the_score_statistic_meets_the_quantile() -> None:
    # Both limits of the two-sided 95 % interval are one-sided bounds at 97.5 %.
    upper = tango_upper_drop(12, 2, 44, 0.975)
    lower = -tango_upper_drop(2, 12, 44, 0.975)
    assert lower < 10 / 44 < upper
    assert _tango_statistic(12, 2, 44, upper) == pytest.approx(-normal_quantile(0.975), abs=1e-6)
    assert _tango_statistic(12, 2, 44, lower) == pytest.approx(normal_quantile(0.975), abs=1e-6)


@pytest.mark.parametrize(
    ("lost", "won", "rows", "drop"), [(5, 2, 60, 0.1), (0, 4, 30, 0.05), (7, 7, 90, 0.2)]
)
def test_nuisance_parameter_is_the_maximum_likelihood_one(
    lost: int, won: int, rows: int, drop: float
) -> None:
    q = np.linspace(1e-9, (1 - drop) / 2 - 1e-9, 400_001)
    likelihood = lost * np.log(q + drop) + won * np.log(q) + (rows - lost - won) * np.log(1 - 2 * q - drop)
    best = q[likelihood.argmax()]
    expected = (lost - won - rows * drop) / math.sqrt(rows * (2 * best + drop * (1 - drop)))
    assert _tango_statistic(lost, won, rows, drop) == pytest.approx(expected, abs=1e-3)


def test_bound_rises_with_losses_and_confidence_and_falls_with_rows() -> None:
    assert tango_upper_drop(3, 1, 200, 0.95) < tango_upper_drop(4, 1, 200, 0.95)
    assert tango_upper_drop(3, 1, 200, 0.95) < tango_upper_drop(3, 1, 200, 0.99)
    assert tango_upper_drop(3, 1, 400, 0.95) < tango_upper_drop(3, 1, 200, 0.95)


def test_verdict_says_why() -> None:
    kept = non_inferior(ACCURACY, *paired(0, 0, 144), Promise(max_drop=0.03))
    assert kept.holds
    assert kept.drop == 0.0
    assert kept.rows == 144
    assert kept.bound == pytest.approx(0.0184, abs=1e-4)
    assert kept.reason == (
        "accuracy drops by 0.0000 on 144 rows and at 95% confidence by at most 0.0184, "
        "which is within the allowed 0.03"
    )
    broken = non_inferior(ACCURACY, *paired(5, 1, 144), Promise(max_drop=0.03))
    assert not broken.holds
    assert broken.drop == pytest.approx(4 / 144)
    assert "more than the allowed" in broken.reason
    assert broken.plain()["test"] == "paired score test (Tango 1998)"


def test_few_rows_cannot_keep_a_promise() -> None:
    assert not non_inferior(ACCURACY, *paired(0, 0, 50), Promise(max_drop=0.03)).holds
    assert not non_inferior(ACCURACY, *paired(0, 0, 5000), Promise(max_drop=0.0)).holds


def test_a_better_variant_keeps_even_a_promise_of_no_drop() -> None:
    found = non_inferior(ACCURACY, *paired(2, 40, 200), Promise(max_drop=0.0))
    assert found.holds
    assert found.bound < 0


@pytest.mark.parametrize(
    ("lost_share", "won_share", "rows"), [(0.03, 0.0, 300), (0.06, 0.03, 150), (0.2, 0.17, 500)]
)
def test_accuracy_promise_is_wrongly_kept_at_most_about_five_times_in_a_hundred(
    lost_share: float, won_share: float, rows: int
) -> None:
    """At the edge of the hypothesis (true drop = max_drop) the test may accept 5 %: 4000 studies."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(rows, [lost_share, won_share, 1 - lost_share - won_share], size=4000)
    bounds: dict[tuple[int, int], float] = {}
    accepted = 0
    for lost, won, _ in counts.tolist():
        if (lost, won) not in bounds:
            bounds[lost, won] = tango_upper_drop(lost, won, rows, 0.95)
        accepted += bounds[lost, won] <= lost_share - won_share
    assert accepted / 4000 <= 0.065


def test_bootstrap_promise_covers_the_true_rise_of_the_error() -> None:
    """One-sided 95 % bounds of an error that truly rises by 0.1 must lie above 0.1 about 95 times in 100."""
    rng = np.random.default_rng(0)
    metric, promise, covered = Metric(name="mae"), Promise(max_drop=0.1), 0
    for study in range(60):
        targets = np.zeros((80, 1), dtype=np.float32)
        parent = 1 + rng.exponential(size=(80, 1))
        variant = parent + 0.1 + 0.2 * rng.normal(size=(80, 1))
        verdict = non_inferior(metric, variant, parent, targets, promise, seed=study)
        assert verdict.test.startswith("paired bootstrap (a loss has no upper limit")
        covered += verdict.bound >= 0.1
    assert covered >= 52


def test_a_loss_that_keeps_its_promise_says_what_it_does_not_cover() -> None:
    """A variant that is ruined on one row in a hundred often shows none of them on 150 rows."""
    targets = np.zeros((150, 1), dtype=np.float32)
    kept = non_inferior(Metric(name="mae"), targets, targets, targets, Promise(max_drop=0.1))
    assert kept.holds
    assert "unless rows unlike these lose more: up to 0.02 of all rows may be such" in kept.reason
    broken = non_inferior(Metric(name="mae"), targets + 1, targets, targets, Promise(max_drop=0.1))
    assert "unlike these" not in broken.reason
    right = np.eye(2, dtype=np.float32)[np.zeros(150, int)]
    share = non_inferior(Metric(), right, right, np.zeros(150, int), Promise(max_drop=0.1))
    assert "unlike these" not in share.reason


def test_errors_are_worse_when_they_rise() -> None:
    targets = np.zeros((40, 2), dtype=np.float32)
    worse, better = targets + 2.0, targets + 1.0
    assert non_inferior(
        Metric(name="rmse"), worse, better, targets, Promise(max_drop=0.5)
    ).drop == pytest.approx(1.0)
    assert non_inferior(Metric(name="rmse"), better, worse, targets, Promise(max_drop=0.5)).holds


def test_identical_predictions_on_few_rows_do_not_prove_a_macro_f1_promise() -> None:
    targets = np.arange(60) % 3
    same = outputs_of(targets)
    promise = Promise(max_drop=0.02)
    assert not non_inferior(Metric(name="macro_f1"), same, same, targets, promise).holds
    targets = np.arange(600) % 3
    same = outputs_of(targets)
    assert non_inferior(Metric(name="macro_f1"), same, same, targets, promise).holds


def test_an_order_without_a_fault_on_few_rows_does_not_prove_an_auroc_promise() -> None:
    promise, auroc = Promise(max_drop=0.05), Metric(name="auroc")
    for classes, rows, status in ((2, 10, "cannot be told"), (3, 30, "cannot be told"), (2, 600, "holds")):
        targets = np.arange(rows) % classes
        same = outputs_of(targets, classes)
        assert non_inferior(auroc, same, same, targets, promise).status == status
    # The smaller class limits what two classes can show.
    targets = (np.arange(600) < 10).astype(np.int64)
    same = outputs_of(targets, 2)
    found = non_inferior(auroc, same, same, targets, promise)
    assert found.bound == pytest.approx(tango_upper_drop(0, 0, 10, promise.confidence))


def test_two_classes_that_occur_of_three_outputs_are_no_model_of_two_classes() -> None:
    recall, targets = Metric(name="recall_at_precision"), np.repeat([0, 1], [5, 400])
    for classes, rows in ((3, 2 * 5), (2, 400)):
        same = outputs_of(targets, classes)
        found = non_inferior(recall, same, same, targets, Promise(max_drop=0.01))
        assert found.bound == pytest.approx(tango_upper_drop(0, 0, rows, found.confidence))


def likelihood(outputs: Any, targets: Any) -> float:
    with np.errstate(divide="ignore"):
        return float(np.log(outputs[np.arange(len(targets)), targets]).mean())


def test_a_drop_that_is_not_finite_is_no_verdict() -> None:
    path, targets = f"{__name__}:likelihood", np.arange(200) % 2
    parent = np.full((200, 2), 0.5)
    variant = parent.copy()
    variant[0] = 0, 1  # most resamples that lack this row are finite
    promise = Promise(max_drop=0.01)
    with pytest.raises(DataError, match="likelihood is undefined on these 200 rows: inf"):
        non_inferior(Metric(name=path), variant, parent, targets, promise, allowed=(path,))
    with pytest.raises(DataError, match=r"auroc is undefined.*at least two classes"):
        non_inferior(Metric(name="auroc"), parent, parent, 0 * targets, promise)


def share_of_right_rows(outputs: Any, targets: Any) -> float:
    return float((outputs.argmax(axis=1) == targets).mean())


def test_of_a_metric_of_ones_own_it_is_said_that_few_rows_have_no_floor() -> None:
    path = f"{__name__}:share_of_right_rows"
    targets = np.arange(30) % 3
    same = outputs_of(targets)
    verdict = non_inferior(Metric(name=path), same, same, targets, Promise(max_drop=0.02), allowed=(path,))
    assert "no floor for few rows" in verdict.test


def test_the_three_answers() -> None:
    promise = Promise(max_drop=0.01)
    assert non_inferior(ACCURACY, *paired(10, 0, 5000), promise).status == "holds"
    assert non_inferior(ACCURACY, *paired(60, 0, 5000), promise).status == "fails"
    unsure = non_inferior(ACCURACY, *paired(2, 0, 400), promise)
    assert (unsure.status, unsure.holds, unsure.plain()["holds"]) == ("cannot be told", False, False)


def test_the_rows_that_are_said_to_be_needed_would_do() -> None:
    promise = Promise(max_drop=0.01)
    needed = non_inferior(ACCURACY, *paired(2, 0, 400), promise).needed_rows
    assert needed is not None
    enough, fewer = needed / 400, 0.9 * needed / 400
    assert tango_upper_drop(2 * enough, 0, needed, 0.95) <= 0.01
    assert tango_upper_drop(2 * fewer, 0, 0.9 * needed, 0.95) > 0.01
    assert non_inferior(ACCURACY, *paired(60, 0, 5000), promise).needed_rows is None


def test_a_class_that_pays_for_all_is_named_and_may_break_the_promise() -> None:
    targets = np.repeat(np.arange(3), 400)
    parent, variant = targets.copy(), targets.copy()
    variant[800:830] = 0  # 30 of 400 rows of the last class
    rows = outputs_of(variant), outputs_of(parent), targets
    plain = non_inferior(ACCURACY, *rows, Promise(max_drop=0.05))
    assert plain.holds
    assert plain.worst_class is not None
    assert (plain.worst_class["label"], plain.worst_class["rows"]) == (2, 400)
    assert plain.worst_class["drop"] == pytest.approx(0.075)
    bounded = non_inferior(ACCURACY, *rows, Promise(max_drop=0.05, max_class_drop=0.06))
    assert bounded.status == "fails"
    assert "the recall of class 2 drops by 0.0750" in bounded.reason


def with_a_rare_class(lost: int) -> tuple[Any, Any, Any]:
    """8 rows of a class that is always right, 400 of one of which so many are lost."""
    targets = np.repeat([0, 1], [8, 400])
    variant = targets.copy()
    variant[8 : 8 + lost] = 2
    return outputs_of(variant), outputs_of(targets), targets


def test_a_class_that_fails_is_not_hidden_by_a_rare_one() -> None:
    promise = Promise(max_drop=0.2, max_class_drop=0.06)
    found = non_inferior(ACCURACY, *with_a_rare_class(40), promise)
    assert found.status == "fails"
    assert "the recall of class 1 drops by 0.1000 on 400 rows" in found.reason
    assert found.worst_class is not None
    assert found.worst_class["label"] == 1


def test_rows_that_a_rare_class_needs_are_rows_of_the_whole_part() -> None:
    promise = Promise(max_drop=0.2, max_class_drop=0.06)
    found = non_inferior(ACCURACY, *with_a_rare_class(0), promise)
    assert found.status == "cannot be told"
    assert found.needed_rows is not None
    assert f"about {found.needed_rows} rows of all classes would be needed" in found.reason
    times = found.needed_rows / 408
    confidence = 1 - (1 - promise.confidence) / 2
    assert tango_upper_drop(0, 0, 8 * times, confidence) == pytest.approx(0.06, rel=0.01)


def test_rows_that_another_class_than_the_worst_needs_count() -> None:
    targets = np.repeat([0, 1], [20, 400])
    variant = targets.copy()
    variant[20:38] = 2  # 4.5 % of the frequent class; the rare one has the wider bound, and loses nothing
    rows = outputs_of(variant), outputs_of(targets), targets
    promise = Promise(max_drop=1.0, max_class_drop=0.05)
    found = non_inferior(ACCURACY, *rows, promise)
    assert found.worst_class is not None
    assert found.worst_class["label"] == 0
    assert found.needed_rows is not None
    assert f"about {found.needed_rows} rows of all classes" in found.reason
    times = math.ceil(found.needed_rows / 420)
    own, before, truth = (np.concatenate([one] * times) for one in rows)
    assert non_inferior(ACCURACY, own, before, truth, promise).holds


def test_changed_answers_count_right_and_wrong_ones() -> None:
    found = non_inferior(ACCURACY, *paired(3, 5, 400), Promise(max_drop=0.05))
    assert found.changed == pytest.approx(8 / 400)
    assert found.changed_bound is not None
    assert found.changed_bound > 8 / 400
    bounded = non_inferior(ACCURACY, *paired(3, 5, 400), Promise(max_drop=0.05, max_changed=0.021))
    assert bounded.status == "cannot be told"
    assert "0.0200 of 400 answers change" in bounded.reason


def test_regression_has_no_classes_to_bound() -> None:
    values = np.ones((30, 1), dtype=np.float32)
    found = non_inferior(Metric(name="mae"), values, values, values, Promise(max_drop=0.1))
    assert found.changed is None
    assert found.worst_class is None
    with pytest.raises(ConfigError, match="max_changed"):
        non_inferior(Metric(name="mae"), values, values, values, Promise(max_drop=0.1, max_changed=0.1))


def labelled(rows: int, seed: int = 0) -> tuple[Any, Any]:
    """Log-odds and 0 or 1 of three labels, the last of them rare."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((rows, 3)) < [0.5, 0.4, 0.05]).astype(np.int8)
    return rng.normal(size=truth.shape) + 3.0 * (2 * truth - 1), truth


@pytest.mark.parametrize("name", ["macro_f1", "micro_f1", "mean_average_precision", "subset_accuracy"])
def test_several_labels_have_a_promise(name: Any) -> None:
    parent, truth = labelled(4000)
    promise = Promise(max_drop=0.05, max_changed=0.1, max_class_drop=0.2)
    same = non_inferior(Metric(name=name), parent, parent, truth, promise)
    assert same.holds
    assert same.drop == same.changed == 0
    worse = parent.copy()
    worse[:, 2] = -np.abs(worse[:, 2])  # the rare label is never found
    found = non_inferior(Metric(name=name), worse, parent, truth, promise)
    assert found.status == "fails"
    assert found.worst_class is not None
    assert found.worst_class["label"] == 2
    assert found.worst_class["rows"] == truth[:, 2].sum()


def test_rows_that_are_right_in_every_label_are_held_like_accuracy() -> None:
    parent, truth = labelled(500)
    variant = parent.copy()
    variant[:40, 0] *= -1
    verdict = non_inferior(Metric(name="subset_accuracy"), variant, parent, truth, Promise(max_drop=0.2))
    right = [((one > 0) == truth).all(axis=1) for one in (variant, parent)]
    lost, won = (right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum()
    assert verdict.bound == pytest.approx(tango_upper_drop(lost, won, 500, verdict.confidence))
    assert verdict.changed == 40 / 500


def test_rows_without_any_label_tell_nothing() -> None:
    parent, truth = labelled(100)
    with pytest.raises(DataError, match="no row has a label: 100 rows"):
        non_inferior(Metric(name="macro_f1"), parent, parent, 0 * truth, Promise(max_drop=0.1))


def test_identical_labels_on_few_rows_do_not_prove_a_promise() -> None:
    parent, truth = labelled(60)
    for name in ("macro_f1", "micro_f1", "mean_average_precision"):
        verdict = non_inferior(Metric(name=name), parent, parent, truth, Promise(max_drop=0.01))
        assert verdict.status == "cannot be told"
