"""What every kind of ensemble node promises, whatever it does inside.

The trees are those of `tests/conformance/trees.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from orchestrator.config.calibration import TemperatureScaling
from orchestrator.config.ensemble import (
    Chain,
    Combined,
    Ensemble,
    Member,
    Parallel,
    Rule,
    Stacking,
    WeightedMix,
    walk_nodes,
)
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Signature
from orchestrator.ensemble.combine import VOTE_RULES, Floats
from orchestrator.ensemble.contributions import contributions
from orchestrator.ensemble.explain import why
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.tree import Outcome, Prediction, predict, replay, walk
from orchestrator.measure.metrics import log_softmax, score
from tests.conformance.trees import (
    BOOSTING,
    CHAIN,
    GATE,
    METHODS,
    REGRESSION,
    RULES,
    TABLE,
    TARGETS,
    TREES,
    TRUTH,
    VALUES,
    every,
    stack,
    unfitted,
)
from tests.ensemble.toys import A, B, C, D, cascade, lookup, mix, parallel


def of_equals(rule: Rule) -> Callable[[Member], Ensemble]:
    return lambda one: Parallel(members=(one, one), rule=rule)


SIGNATURE = Signature(
    task="classification",
    input_shape=(1,),
    input_dtype="float32",
    outputs=3,
    classes=("ant", "bee", "cat"),
    mean=(0.0,),
    std=(1.0,),
)
KEEPS_ONE: dict[str, Callable[[Member], Ensemble]] = {
    # Trees that must answer exactly as one of their members.
    "equal members": lambda one: parallel(one, one),
    "all weight on one": lambda one: mix(D, one, B, weights=(0.0, 1.0, 0.0)),
    "all leave at once": lambda one: cascade(one, D, thresholds=(0.0,)),
    "none leaves": lambda one: cascade(D, B, one, thresholds=(2.0, 2.0)),
    "nested": lambda one: cascade(D, mix(one, B, weights=(1.0, 0.0)), thresholds=(2.0,)),
    "class weights": lambda one: WeightedMix(
        members=(D, one), method="per_class", weights=(0.5, 0.5), class_weights=((0.0,) * 3, (1.0,) * 3)
    ),
    "gate": lambda one: WeightedMix(members=(one, one), method="gate", weights=(0.5, 0.5), gate=GATE[:2]),
    **{f"equal members, {rule}": of_equals(rule) for rule in get_args(Rule) if rule not in VOTE_RULES},
}


@every(TREES)
def test_shapes_types_and_probabilities(tree: Ensemble) -> None:
    found = replay(tree, TABLE, "classification")
    assert found.probs is not None
    assert found.outputs.shape == found.probs.shape == (80, 3)
    assert found.outputs.dtype == found.probs.dtype == np.float32
    assert found.stages.shape == (80,)
    assert (found.probs >= 0).all()
    np.testing.assert_allclose(found.probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.outputs), found.probs, atol=1e-6)
    assert all(mask.shape == (80,) for mask in found.members.values())


@every(REGRESSION)
def test_regression_shapes_and_range(tree: Ensemble) -> None:
    found = replay(tree, VALUES, "regression")
    assert found.outputs.shape == (80, 2)
    assert found.outputs.dtype == np.float32
    asked = np.stack([VALUES[member] for member in found.members])
    assert (found.outputs >= asked.min(axis=0) - 1e-4).all()
    assert (found.outputs <= asked.max(axis=0) + 1e-4).all()


@every(TREES)
def test_a_row_s_answer_does_not_depend_on_the_others(tree: Ensemble) -> None:
    whole = replay(tree, TABLE, "classification")
    order = np.random.default_rng(0).permutation(80)
    turned = replay(tree, {member: output[order] for member, output in TABLE.items()}, "classification")
    np.testing.assert_array_equal(turned.outputs, whole.outputs[order])
    np.testing.assert_array_equal(turned.stages, whole.stages[order])
    for row in (0, 17, 79):
        alone = predict(tree, lookup(TABLE), np.array([row]), "classification")
        np.testing.assert_array_equal(alone.outputs[0], whole.outputs[row])


@pytest.mark.parametrize("classes", [(2, 0, 1), (1, 0, 2)])
@every(TREES)
def test_renaming_the_classes_renames_the_answer(tree: Ensemble, classes: tuple[int, ...]) -> None:
    whole = replay(tree, TABLE, "classification")
    outputs_turned = {member: output[:, classes] for member, output in TABLE.items()}
    if isinstance(tree, WeightedMix) and tree.class_weights is not None:
        renamed = tuple(tuple(row[label] for label in classes) for row in tree.class_weights)
        tree = tree.model_copy(update={"class_weights": renamed})
    turned = replay(tree, outputs_turned, "classification")
    np.testing.assert_allclose(turned.outputs, whole.outputs[:, classes], atol=1e-6)


def reordered(tree: Ensemble) -> Ensemble:
    """Members in another order, and what was fitted for each of them with it."""
    if isinstance(tree, Stacking):
        assert tree.coefficients is not None
        *rows, intercept = tree.coefficients
        a, b, c = (rows[i : i + len(intercept)] for i in range(0, len(rows), len(intercept)))
        members = (tree.members[2], tree.members[0], tree.members[1])
        return tree.model_copy(update={"members": members, "coefficients": (*c, *a, *b, intercept)})
    if isinstance(tree, Chain):
        # The last one saw the others in their order; who is asked first is another matter.
        return tree.model_copy(update={"members": (tree.members[1], tree.members[0], tree.members[2])})
    fitted = ("members", "weights", "class_weights", "gate", "factors")
    found = {name: getattr(tree, name, None) for name in fitted}
    return tree.model_copy(update={name: (v[2], v[0], v[1]) for name, v in found.items() if v is not None})


@every({**RULES, **METHODS, "stacking": stack(3), "boosting": BOOSTING, "chain": CHAIN})
def test_the_members_order_does_not_matter(tree: Ensemble) -> None:
    expected = replay(tree, TABLE, "classification").scores
    found = replay(reordered(tree), TABLE, "classification").scores
    np.testing.assert_allclose(found, expected, atol=1e-12)


@every(REGRESSION)
def test_the_members_order_does_not_matter_to_a_regression(tree: Ensemble) -> None:
    expected = replay(tree, VALUES, "regression").scores
    np.testing.assert_allclose(replay(reordered(tree), VALUES, "regression").scores, expected, rtol=1e-12)


@every(REGRESSION)
def test_a_row_of_a_regression_does_not_depend_on_the_others(tree: Ensemble) -> None:
    whole = replay(tree, VALUES, "regression")
    for rows in np.split(np.arange(80), [1, 30]):
        part = predict(tree, lookup(VALUES), rows, "regression")
        np.testing.assert_array_equal(part.outputs, whole.outputs[rows])


@pytest.mark.parametrize("rule", VOTE_RULES)
def test_a_unanimous_vote_keeps_the_class_and_is_surer_than_one_vote(rule: Rule) -> None:
    weights = (0.5, 0.5) if rule == "weighted_vote" else None
    found = replay(Parallel(members=(A, A), rule=rule, weights=weights), TABLE, "classification")
    assert found.probs is not None
    np.testing.assert_array_equal(found.probs.argmax(axis=1), TABLE[A].argmax(axis=1))
    assert (found.probs.max(axis=1) > 2 / 3).all()


@pytest.mark.parametrize("make", KEEPS_ONE.values(), ids=KEEPS_ONE.keys())
def test_a_tree_that_uses_one_member_is_that_member(make: Callable[[Member], Ensemble]) -> None:
    expected = log_softmax(TABLE[A])
    np.testing.assert_allclose(replay(make(A), TABLE, "classification").scores, expected, rtol=0, atol=1e-14)


def test_nested_equals_flattened() -> None:
    def scores(tree: Ensemble) -> Floats:
        return replay(tree, TABLE, "classification").scores

    flat = scores(parallel(A, B, C, D))
    np.testing.assert_allclose(scores(parallel(parallel(A, B), parallel(C, D))), flat, atol=1e-12)
    np.testing.assert_allclose(scores(mix(A, B, C, D, weights=(0.25,) * 4)), flat, atol=1e-12)
    nested = mix(mix(A, B, weights=(0.5, 0.5)), mix(C, D, weights=(0.1, 0.9)), weights=(0.4, 0.6))
    np.testing.assert_allclose(
        scores(nested), scores(mix(A, B, C, D, weights=(0.2, 0.2, 0.06, 0.54))), atol=1e-12
    )
    front = cascade(A, cascade(B, C, thresholds=(0.8,)), thresholds=(0.6,))
    np.testing.assert_array_equal(scores(front), scores(cascade(A, B, C, thresholds=(0.6, 0.8))))
    averaged = cascade(A, B, C, thresholds=(2.0, 2.0), combine="mean")
    np.testing.assert_allclose(scores(averaged), scores(parallel(A, B, C)), atol=1e-12)


@every(TREES)
def test_log_probabilities_feed_every_metric_like_probabilities(tree: Ensemble) -> None:
    found = replay(tree, TABLE, "classification")
    assert found.probs is not None
    expected = -np.log(found.probs[np.arange(80), TARGETS]).mean()
    assert score(Metric(name="nll"), found.outputs, TARGETS) == pytest.approx(expected, abs=1e-5)
    assert score(Metric(), found.outputs, TARGETS) == (found.probs.argmax(axis=1) == TARGETS).mean()


def answer(ask: Ask) -> Outcome:
    return Outcome(TABLE[ask.member][ask.rows])


@every(TREES)
def test_answers_worked_out_in_any_order_and_between_other_walks_give_the_same(tree: Ensemble) -> None:
    """Three walks over their own rows take turns at random; each round's answers are made in random order."""
    rng = np.random.default_rng(1)
    pieces = np.split(np.arange(80), [13, 50])
    walks = [walk(tree, len(piece), "classification") for piece in pieces]
    asked = {number: next(steps) for number, steps in enumerate(walks)}
    done: dict[int, Prediction] = {}
    while asked:
        number = int(rng.choice(list(asked)))
        asks, outcomes = asked[number], {}
        for place in rng.permutation(len(asks)):
            own = asks[place]
            outcomes[int(place)] = answer(Ask(own.member, pieces[number][own.rows]))
        try:
            asked[number] = walks[number].send(tuple(outcomes[place] for place in range(len(asks))))
        except StopIteration as stop:
            done[number] = stop.value
            del asked[number]
    together = np.concatenate([done[number].outputs for number in range(3)])
    np.testing.assert_array_equal(
        together, predict(tree, lookup(TABLE), np.arange(80), "classification").outputs
    )


@every(TREES)
def test_no_member_is_asked_twice_for_a_row_nor_for_none(tree: Ensemble) -> None:
    steps, seen = walk(tree, 80, "classification"), np.zeros((5, 80), dtype=int)
    asks = next(steps)
    while True:
        for ask in asks:
            assert len(ask.rows)
            assert (np.diff(ask.rows) > 0).all()
            seen["abcde".index(ask.member.name), ask.rows] += 1
        try:
            asks = steps.send(tuple(answer(ask) for ask in asks))
        except StopIteration as stop:
            found: Prediction = stop.value
            break
    assert seen.max() == 1
    for member, mask in found.members.items():
        np.testing.assert_array_equal(seen["abcde".index(member.name)] == 1, mask)


@every(TREES)
def test_every_kind_can_be_fitted_and_is_then_complete(tree: Ensemble) -> None:
    found = fit(unfitted(tree), TABLE, TARGETS, Metric(), "classification")
    assert replay(found, TABLE, "classification").outputs.shape == (80, 3)
    assert all(node.unfitted() is None for node in walk_nodes(found))
    # A fitted tree survives the store: JSON and back is the same tree.
    assert type(found).model_validate_json(found.model_dump_json()) == found


@every(REGRESSION)
def test_every_kind_of_a_regression_can_be_fitted_and_is_then_complete(tree: Ensemble) -> None:
    found = fit(unfitted(tree), VALUES, TRUTH, Metric(name="mae"), "regression")
    assert replay(found, VALUES, "regression").outputs.shape == (80, 2)
    assert all(node.unfitted() is None for node in walk_nodes(found))
    assert type(found).model_validate_json(found.model_dump_json()) == found


@every(TREES)
def test_every_kind_of_node_is_calibrated_after_it_has_combined(tree: Ensemble) -> None:
    warm = tree.model_copy(update={"calibration": TemperatureScaling(temperature=2.0)})
    plain = replay(tree, TABLE, "classification")
    found = replay(warm, TABLE, "classification")
    np.testing.assert_allclose(found.scores, log_softmax(plain.scores / 2), atol=1e-12)
    np.testing.assert_array_equal(found.stages, plain.stages)
    asked = unfitted(tree).model_copy(update={"calibration": TemperatureScaling()})
    fitted = fit(asked, TABLE, TARGETS, Metric(), "classification")
    assert isinstance(fitted, Combined)
    bare = fitted.model_copy(update={"calibration": None})
    nll = Metric(name="nll")
    assert (
        score(nll, replay(fitted, TABLE, "classification").outputs, TARGETS)
        <= score(nll, replay(bare, TABLE, "classification").outputs, TARGETS) + 1e-3
    )


@every(TREES)
def test_every_kind_is_explained(tree: Ensemble) -> None:
    found = contributions(tree, TABLE, TARGETS, "classification")
    assert found is not None
    scores = replay(tree, TABLE, "classification").scores
    accuracy = (scores.argmax(axis=1) == TARGETS).mean()
    shares = [one.shapley or 0.0 for one in found["accuracy"]]
    assert sum(shares) == pytest.approx(accuracy - 1 / scores.shape[1])
    told = why(tree, {member: output[:1] for member, output in TABLE.items()}, SIGNATURE)
    assert told["answer"] == SIGNATURE.classes[int(scores[0].argmax())]
    assert len(told["without"]) == len(found["accuracy"])


@every(REGRESSION)
def test_every_kind_of_a_regression_is_explained(tree: Ensemble) -> None:
    found = contributions(tree, VALUES, TRUTH, "regression")
    assert found is not None
    saved = TRUTH.var(axis=0).mean() - np.square(replay(tree, VALUES, "regression").scores - TRUTH).mean()
    assert sum(one.shapley or 0.0 for one in found["squared_error"]) == pytest.approx(saved)
