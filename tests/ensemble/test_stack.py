"""Stacking: the meta-learner's optimum, and that no row is judged by what was fitted on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import Member, Stacking
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.contributions import restricted
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.folds import FOLDS
from orchestrator.ensemble.meta import STRENGTHS, best_strength, fit_meta, meta_answer, out_of_fold
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import replay
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax, score
from tests.ensemble.toys import MEMBERS, A, B, outputs, values

Targets = npt.NDArray[Any]
TABLE, TARGETS = outputs(rows=300)
PARTS = [log_softmax(TABLE[member]) for member in MEMBERS]
VALUES, TRUTH = values(rows=300)
NUMBERS = [VALUES[member].astype(np.float64) for member in MEMBERS]
STACK = Stacking(policy="stacking", members=(A, B))


def accuracy(answers: Floats, targets: Targets) -> float:
    return float((answers.argmax(axis=1) == targets).mean())


def stack_on(table: dict[Member, Output], targets: Targets) -> Stacking:
    found = fit(STACK, table, targets, Metric(), "classification")
    assert isinstance(found, Stacking)
    return found


@pytest.mark.parametrize(
    ("parts", "targets", "task"), [(PARTS, TARGETS, "classification"), (NUMBERS, TRUTH, "regression")]
)
def test_no_row_is_answered_by_a_learner_that_saw_it(
    parts: list[Floats], targets: Targets, task: Task
) -> None:
    """Another target for one row changes nothing in the answers to its own fold, and all other answers."""
    changed = targets.copy()
    changed[7] = targets[7] + 1 if task == "regression" else (targets[7] + 1) % 4
    before, after = (out_of_fold(parts, found, task, 0.01) for found in (targets, changed))
    same = (before == after).all(axis=1)
    assert same[7]
    assert same.sum() == len(targets) // FOLDS


def test_noise_is_not_rewarded_out_of_fold() -> None:
    """Members that know nothing: in sample the meta-learner shines, out of fold it does as chance."""
    rng = np.random.default_rng(0)
    targets = rng.integers(4, size=200)
    noise = [log_softmax(rng.normal(size=(200, 4)) * 2) for _ in range(8)]
    weak = STRENGTHS[-1]
    in_sample = meta_answer(noise, fit_meta(noise, targets, "classification", weak), "classification")
    assert accuracy(in_sample, targets) > 0.4
    assert accuracy(out_of_fold(noise, targets, "classification", weak), targets) < 0.33
    assert best_strength(noise, targets, "classification") >= 1


def test_a_member_that_memorised_its_training_rows_is_worth_what_it_is_on_others() -> None:
    """A knows its training rows by heart and nothing else; B is right in about six of ten cases."""
    rng = np.random.default_rng(1)
    targets = rng.integers(4, size=900)
    known = np.arange(900) < 300
    heart = np.where(known[:, None], 9.0 * np.eye(4)[targets], rng.normal(size=(900, 4)) * 4)
    honest = rng.normal(size=(900, 4)) * 1.5 + 2 * np.eye(4)[targets]
    rows = {"training": slice(0, 300), "validation": slice(300, 600), "test": slice(600, 900)}
    table = {name: {A: heart[part], B: honest[part]} for name, part in rows.items()}
    found = {name: stack_on(table[name], targets[rows[name]]) for name in ("training", "validation")}
    on_test = {
        name: accuracy(replay(stack, table["test"], "classification").scores, targets[rows["test"]])
        for name, stack in found.items()
    }
    alone = accuracy(honest[rows["test"]], targets[rows["test"]])
    assert on_test["validation"] > alone - 0.03
    # What a leak would do: fitted where A learned, the stack trusts A.
    assert on_test["training"] < alone - 0.2
    assert found["validation"].out_of_fold == pytest.approx(on_test["validation"], abs=0.07)


def test_a_strong_penalty_gives_the_members_mean() -> None:
    geometric = log_softmax(np.mean(PARTS, axis=0))
    found = fit_meta(PARTS, TARGETS, "classification", 1e6)
    np.testing.assert_allclose(meta_answer(PARTS, found, "classification"), geometric, atol=1e-3)
    found = fit_meta(NUMBERS, TRUTH, "regression", 1e9)
    np.testing.assert_allclose(meta_answer(NUMBERS, found, "regression"), np.mean(NUMBERS, axis=0), atol=1e-3)


def test_the_coefficients_are_the_optimum() -> None:
    rng = np.random.default_rng(2)
    best = fit_meta(PARTS, TARGETS, "classification", 0.1)

    def loss(coefficients: Floats) -> float:
        logs = meta_answer(PARTS, coefficients, "classification")
        return 0.05 * float((coefficients**2).sum()) - float(logs[np.arange(300), TARGETS].mean())

    assert all(loss(best + rng.normal(size=best.shape) * 0.01) > loss(best) for _ in range(20))
    ridge = fit_meta(NUMBERS, TRUTH, "regression", 0.1)
    apart = [found - np.mean(NUMBERS, axis=0) for found in NUMBERS]
    features = np.concatenate([*apart, np.ones((300, 1))], axis=1)
    slope = features.T @ (TRUTH - meta_answer(NUMBERS, ridge, "regression")) / 300
    units = np.append(np.tile(TRUTH.astype(np.float64).var(axis=0), 4), 1)
    np.testing.assert_allclose(slope, 0.1 * units[:, None] * ridge, rtol=1e-5, atol=1e-5)


def test_it_learns_who_knows_which_class() -> None:
    """Each member tells two of the four classes apart and is sure, and wrong, about the other two."""
    rng = np.random.default_rng(3)

    def rows(count: int) -> tuple[dict[Member, Output], Targets]:
        targets = rng.integers(4, size=count)
        table: dict[Member, Output] = {}
        for member, pair in ((A, (0, 1)), (B, (2, 3))):
            swapped = targets.copy()
            swapped[targets == pair[0]], swapped[targets == pair[1]] = pair[1], pair[0]
            table[member] = rng.normal(size=(count, 4)) + 3 * np.eye(4)[swapped]
        return table, targets

    table, targets = rows(500)
    stack, (unseen, truth) = stack_on(table, targets), rows(2000)
    found = replay(stack, unseen, "classification")
    mean = log_softmax(np.mean([log_softmax(unseen[member]) for member in (A, B)], axis=0))
    assert accuracy(found.scores, truth) > accuracy(mean, truth) + 0.2
    assert stack.out_of_fold == pytest.approx(score(Metric(), found.outputs, truth), abs=0.04)
    assert stack.strength in STRENGTHS


def test_given_coefficients_and_a_given_strength_are_kept() -> None:
    table = {member: TABLE[member] for member in (A, B)}
    found = stack_on(table, TARGETS)
    again = fit(found, table, TARGETS[::-1], Metric(), "classification")
    assert again == found
    strong = fit(STACK.model_copy(update={"strength": 5.0}), table, TARGETS, Metric(), "classification")
    assert isinstance(strong, Stacking)
    assert strong.strength == 5.0


def test_a_regression_does_not_depend_on_units_and_beats_the_mean() -> None:
    found = out_of_fold(NUMBERS, TRUTH, "regression", 0.01)
    mean = np.mean(NUMBERS, axis=0)
    assert (((found - TRUTH) ** 2).mean(axis=0) < 0.9 * ((mean - TRUTH) ** 2).mean(axis=0)).all()
    moved = [found * 10 + 500 for found in NUMBERS]
    other = out_of_fold(moved, TRUTH * 10 + 500, "regression", 0.01)
    np.testing.assert_allclose((other - 500) / 10, found, rtol=1e-3, atol=0.01)


def test_coefficients_of_another_number_of_members_or_classes_are_refused() -> None:
    with pytest.raises(ValidationError, match="3 members x outputs"):
        Stacking(policy="stacking", members=MEMBERS[:3], coefficients=((0.0, 0.0),) * 5)
    stack = STACK.model_copy(update={"coefficients": ((0.0,) * 3,) * 7})
    with pytest.raises(EnsembleError, match=r"\[7, 3\] for 2 members of 4 outputs"):
        replay(stack, {member: TABLE[member] for member in (A, B)}, "classification")


@pytest.mark.parametrize(
    ("table", "targets", "task", "metric", "calibration"),
    [
        (TABLE, TARGETS, "classification", "accuracy", None),
        (TABLE, TARGETS, "classification", "accuracy", TemperatureScaling(temperature=2.0)),
        (VALUES, TRUTH, "regression", "rmse", None),
    ],
)
def test_explained_as_the_walk_answers(
    table: dict[Member, Output],
    targets: Targets,
    task: Task,
    metric: str,
    calibration: TemperatureScaling | None,
) -> None:
    members = MEMBERS[:3]
    asked = Stacking(policy="stacking", members=members, calibration=calibration)
    tree = fit(asked, {member: table[member] for member in members}, targets, Metric(name=metric), task)
    lenient = tree.model_copy(update={"quorum": 1})
    for kept in ((0, 1), (0, 2), (1, 2), (0,), (1,), (2,)):
        part = restricted(tree, kept)
        assert part is not None
        left = {members[place]: table[members[place]] for place in kept}
        walked = replay(lenient, left, task).scores
        np.testing.assert_allclose(replay(part, table, task).scores, walked, rtol=1e-12, atol=1e-12)


def test_one_row_is_too_few_to_fit_on() -> None:
    table, labels = outputs(rows=1)
    with pytest.raises(EnsembleError, match="cross-validation needs two rows at least: 1"):
        fit(Stacking(policy="stacking", members=(A, B)), table, labels, Metric(), "classification")
