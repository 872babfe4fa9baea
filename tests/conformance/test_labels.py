"""What every kind of ensemble node promises for several labels a row.

One label is two classes: whatever holds for classes must hold for it to the last bits, fits included.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.config.calibration import AutoScaling, IsotonicScaling, TemperatureScaling, VectorScaling
from orchestrator.config.ensemble import Cascade, Ensemble, Member, Node, Parallel, leaves, walk_nodes
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Signature
from orchestrator.ensemble.attribution import disagreement, member_answers, member_weights
from orchestrator.ensemble.contributions import contributions, member_scores
from orchestrator.ensemble.direct import direct
from orchestrator.ensemble.diversity import decompose
from orchestrator.ensemble.explain import why
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.guard import excess, records, with_records
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.tree import Prediction, predict, replay
from orchestrator.ensemble.uncertainty import dissent, uncertainty
from orchestrator.measure.metrics import log_sigmoid, score
from tests.conformance.trees import LABELS, every, lenient, unfitted
from tests.ensemble.toys import MEMBERS, A, B, C, D, lookup

ROWS, NLL = 90, Metric(name="nll")
RNG = np.random.default_rng(0)
TRUTH = (RNG.random((ROWS, 3)) < [0.5, 0.3, 0.2]).astype(np.int8)
TABLE: dict[Member, Any] = {
    member: (1.5 * RNG.normal(size=TRUTH.shape) + (2 * TRUTH - 1) * (0.8 + 0.4 * skill)).astype(np.float32)
    for skill, member in enumerate(MEMBERS)
}
ONE = {member: output[:, :1].astype(np.float64) for member, output in TABLE.items()}
ONE_TRUTH = TRUTH[:, :1]
PAIR = {member: np.concatenate([np.zeros_like(found), found], axis=1) for member, found in ONE.items()}
"""The same as two classes."""
CLASSES = ONE_TRUTH[:, 0].astype(np.int64)
SIGNATURE = Signature(
    task="multilabel",
    input_shape=(1,),
    input_dtype="float32",
    outputs=3,
    classes=("ant", "bee", "cat"),
    mean=(0.0,),
    std=(1.0,),
)
SAME = {name: tree for name, tree in LABELS.items() if name != "maximum"}
"""The highest probability of a label is not renormalised, since labels do not add up to 1."""


def pair_scores(tree: Node) -> Any:
    """Log-odds [N, 1] of the same tree over two classes."""
    scores = replay(tree, PAIR, "classification").scores
    return scores[:, 1:] - scores[:, :1]


@every(LABELS)
def test_shapes_types_and_probabilities(tree: Ensemble) -> None:
    found = replay(tree, TABLE, "multilabel")
    assert found.probs is not None
    assert found.outputs.shape == found.probs.shape == (ROWS, 3)
    assert found.outputs.dtype == found.probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_sigmoid(found.outputs)), found.probs, atol=1e-6)
    asked = np.stack([found.said[member] for member in found.members])
    assert (found.outputs >= asked.min(axis=0) - 1e-4).all()
    assert (found.outputs <= asked.max(axis=0).clip(min=0) + 1e-4).all()


@every(SAME)
def test_one_label_is_two_classes(tree: Ensemble) -> None:
    np.testing.assert_allclose(replay(tree, ONE, "multilabel").scores, pair_scores(tree), atol=1e-9)
    stages = replay(tree, PAIR, "classification").stages
    np.testing.assert_array_equal(replay(tree, ONE, "multilabel").stages, stages)


@every(SAME)
def test_one_label_is_fitted_as_two_classes(tree: Ensemble) -> None:
    free = unfitted(tree)
    if getattr(tree, "objective", "nll") == "metric":
        free = free.model_copy(update={"objective": "nll"})  # the metrics of the two tasks differ
    found = fit(free, ONE, ONE_TRUTH, NLL, "multilabel")
    as_classes = fit(free, PAIR, CLASSES, NLL, "classification")
    np.testing.assert_allclose(replay(found, ONE, "multilabel").scores, pair_scores(as_classes), atol=1e-6)
    for one, other in zip(walk_nodes(found), walk_nodes(as_classes), strict=True):
        assert getattr(one, "weights", None) == pytest.approx(getattr(other, "weights", None), abs=1e-8)
        assert getattr(one, "thresholds", None) == pytest.approx(getattr(other, "thresholds", None))


@pytest.mark.parametrize("scaling", [TemperatureScaling(), VectorScaling(), IsotonicScaling(), AutoScaling()])
def test_calibrations_are_those_of_two_classes(scaling: Any) -> None:
    tree = Parallel(members=(A, B), calibration=scaling)
    found = fit(tree, ONE, ONE_TRUTH, NLL, "multilabel")
    as_classes = fit(tree, PAIR, CLASSES, NLL, "classification")
    np.testing.assert_allclose(replay(found, ONE, "multilabel").scores, pair_scores(as_classes), atol=1e-5)
    whole = fit(tree, TABLE, TRUTH, NLL, "multilabel")
    plain = fit(tree.model_copy(update={"calibration": None}), TABLE, TRUTH, NLL, "multilabel")
    nll = [score(NLL, replay(one, TABLE, "multilabel").outputs, TRUTH) for one in (whole, plain)]
    assert nll[0] <= nll[1] + 1e-3


@every(LABELS)
def test_a_row_s_answer_does_not_depend_on_the_others(tree: Ensemble) -> None:
    whole = replay(tree, TABLE, "multilabel")
    for rows in np.split(np.arange(ROWS), [1, 30]):
        part = predict(tree, lookup(TABLE), rows, "multilabel")
        np.testing.assert_allclose(part.outputs, whole.outputs[rows], rtol=1e-6)
        np.testing.assert_array_equal(part.stages, whole.stages[rows])


@every(LABELS)
def test_renaming_the_labels_renames_the_answer(tree: Ensemble) -> None:
    turned = {member: output[:, [2, 0, 1]] for member, output in TABLE.items()}
    whole = replay(tree, TABLE, "multilabel")
    np.testing.assert_array_equal(replay(tree, turned, "multilabel").outputs, whole.outputs[:, [2, 0, 1]])


@every(LABELS)
def test_every_kind_can_be_fitted_and_is_then_complete(tree: Ensemble) -> None:
    metric = Metric(name="macro_f1")
    found = fit(unfitted(tree), TABLE, TRUTH, metric, "multilabel")
    assert replay(found, TABLE, "multilabel").outputs.shape == (ROWS, 3)
    assert all(node.unfitted() is None for node in walk_nodes(found))
    assert all(leaf.temperature is not None for leaf in leaves(found))
    assert type(found).model_validate_json(found.model_dump_json()) == found


@every({name: tree for name, tree in LABELS.items() if not isinstance(tree, Cascade)})
def test_the_short_cut_gives_the_walk_s_answer(tree: Ensemble) -> None:
    short = direct(tree, "multilabel", 3)
    if short is None:
        assert any(isinstance(node, Cascade) for node in walk_nodes(tree))
        return
    members = replay(tree, TABLE, "multilabel").members
    found = short(np.stack([TABLE[member] for member in members], axis=1))
    assert found is not None
    np.testing.assert_array_equal(found.outputs, replay(tree, TABLE, "multilabel").outputs)


@every(LABELS)
def test_every_kind_answers_without_a_member(tree: Ensemble) -> None:
    metric = Metric(name="macro_f1")
    found = fit(lenient(unfitted(tree)), TABLE, TRUTH, metric, "multilabel")
    left = {member: output for member, output in TABLE.items() if member is not A}
    answer = replay(found, left, "multilabel")
    assert answer.outputs.shape == (ROWS, 3)
    assert answer.expected is not None


def flipped(prediction: Prediction, member: Member) -> Prediction:
    """One member says the opposite."""
    said = {one: -output if one is member else output for one, output in prediction.said.items()}
    return Prediction(**{**vars(prediction), "said": said})


def test_a_member_that_says_the_opposite_is_opposed() -> None:
    tree = Parallel(members=(B, C, D))
    plain = replay(tree, TABLE, "multilabel")
    known = {identity(member): record for member, record in records(plain, TABLE, "multilabel").items()}
    watched = replay(with_records(tree, known), TABLE, "multilabel")
    sound = excess(watched, "multilabel")
    member = next(one for one in watched.said if one.name == "d")
    wrong = excess(flipped(watched, member), "multilabel")
    assert max(value for value in sound if value is not None) < 1
    place = list(watched.members).index(member)
    assert (wrong[place] or 0) > 2


@every(LABELS)
def test_every_kind_is_explained(tree: Ensemble) -> None:
    found = contributions(tree, TABLE, TRUTH, "multilabel")
    assert found is not None
    prediction = replay(tree, TABLE, "multilabel")
    right = ((prediction.scores > 0) == TRUTH).all(axis=1).mean()
    assert sum(one.shapley or 0.0 for one in found["subset_accuracy"]) == pytest.approx(right - 1 / 8)
    saved = np.log(2) - score(NLL, prediction.scores, TRUTH)
    assert sum(one.shapley or 0.0 for one in found["nll"]) == pytest.approx(saved)
    told = why(tree, {member: output[:1] for member, output in TABLE.items()}, SIGNATURE)
    names = [name for name, odds in zip(SIGNATURE.classes, prediction.scores[0], strict=True) if odds > 0]
    assert told["answer"] == (", ".join(names) or "none")
    assert told["probability"] is None
    assert len(told["without"]) == len(found["nll"])
    assert all(len(chances) == 3 for chances in told["without"] if chances is not None)
    for flip in told["flips"]:
        assert flip["answer"] != told["answer"]


def test_figures_of_one_label_are_those_of_two_classes() -> None:
    tree = Parallel(members=(A, B, C))
    labels, classes = member_scores(tree, ONE, "multilabel"), member_scores(tree, PAIR, "classification")
    one, other = uncertainty(labels, task="multilabel"), uncertainty(classes)
    np.testing.assert_allclose(one.epistemic, other.epistemic, atol=1e-12)
    mixed, pair = (replay(tree, ONE, "multilabel"), replay(tree, PAIR, "classification"))
    against = dissent(labels, mixed.scores, task="multilabel")
    np.testing.assert_array_equal(against, dissent(classes, pair.scores))
    found = decompose(labels, mixed.scores, ONE_TRUTH, "multilabel")
    assert found.ambiguity == pytest.approx(
        decompose(classes, pair.scores, CLASSES, "classification").ambiguity
    )
    answers = member_answers(tree, mixed, "multilabel")
    weights = member_weights(tree, mixed, "multilabel")
    np.testing.assert_allclose(disagreement(answers, weights, mixed, "multilabel"), against, atol=1e-6)
