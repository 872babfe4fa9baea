"""Why one row got its answer: rows made by hand, whose answer hangs on known members."""

from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator.config.ensemble import Boosting, Member, Node, WeightedMix
from orchestrator.config.signature import Signature
from orchestrator.ensemble.explain import why
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.tree import replay
from orchestrator.pipeline.why import decided
from tests.ensemble.toys import A, B, C, D, cascade, mix, parallel

THREE = Signature(
    task="classification",
    input_shape=(1,),
    input_dtype="float32",
    outputs=3,
    classes=("ant", "bee", "cat"),
    mean=(0.0,),
    std=(1.0,),
)
VALUES = Signature(
    task="regression", input_shape=(1,), input_dtype="float32", outputs=2, mean=(0.0,), std=(1.0,)
)


def row(*probabilities: float) -> Output:
    """Raw outputs [1, 3] of a member that is so sure."""
    return np.asarray(np.log([probabilities]))


def said(**members: Output) -> dict[Member, Output]:
    return {{"a": A, "b": B, "c": C, "d": D}[name]: output for name, output in members.items()}


def test_a_mean_of_three_of_whom_one_decides() -> None:
    outputs = said(a=row(0.9, 0.05, 0.05), b=row(0.3, 0.4, 0.3), c=row(0.35, 0.45, 0.2))
    found = why(parallel(A, B, C), outputs, THREE)
    assert found["answer"] == "ant"
    assert found["probability"] == pytest.approx(1.55 / 3)
    assert (found["agree"], found["differ"]) == (["a"], ["b", "c"])
    assert found["flips"] == [{"without": ["a"], "answer": "bee"}]
    assert found["without"] == pytest.approx([0.65 / 2, 1.25 / 2, 1.2 / 2])
    assert found["stage"] is None
    first = found["said"]["members"][0]
    assert (first["name"], first["answer"], first["asked"]) == ("a", "ant", True)
    assert first["weight"] == pytest.approx(1 / 3)
    assert first["probabilities"] == pytest.approx([0.9, 0.05, 0.05])
    assert first["outputs"] == outputs[A][0].tolist()


def test_a_single_model_has_no_members_that_could_be_missing() -> None:
    found = why(A, said(a=row(0.7, 0.2, 0.1)), THREE)
    assert (found["answer"], found["said"]["name"], found["agree"]) == ("ant", "a", [])
    assert (found["without"], found["flips"]) == (None, None)
    assert decided(found) == []


def test_it_can_take_two_members_or_nobody_at_all() -> None:
    sure, other = row(0.8, 0.1, 0.1), row(0.3, 0.4, 0.3)
    found = why(parallel(A, B, C), said(a=sure, b=sure, c=other), THREE)
    assert found["flips"] == [{"without": ["a", "b"], "answer": "bee"}]
    found = why(parallel(A, B), said(a=sure, b=sure), THREE)
    assert (found["flips"], found["differ"]) == ([], [])


def test_every_smallest_set_is_named() -> None:
    # Either of the first two can be missed by three; with equal rows both sets of one flip the answer.
    outputs = said(a=row(0.6, 0.4, 0.0001), b=row(0.6, 0.4, 0.0001), c=row(0.25, 0.7, 0.05))
    found = why(parallel(A, B, C), outputs, THREE)
    assert found["answer"] == "bee"
    assert found["flips"] == [{"without": ["c"], "answer": "ant"}]
    outputs[C] = row(0.35, 0.6, 0.05)
    found = why(parallel(A, B, C), outputs, THREE)
    assert found["answer"] == "ant"
    assert found["flips"] == [{"without": ["a"], "answer": "bee"}, {"without": ["b"], "answer": "bee"}]


def test_a_cascade_says_where_the_row_left_and_who_was_not_asked() -> None:
    outputs = said(a=row(0.7, 0.2, 0.1), b=row(0.1, 0.8, 0.1), c=row(0.1, 0.1, 0.8))
    found = why(cascade(A, B, C, thresholds=(0.75, 0.75)), outputs, THREE)
    assert (found["answer"], found["stage"]) == ("bee", 1)
    assert [member["asked"] for member in found["said"]["members"]] == [True, True, False]
    assert [member["weight"] for member in found["said"]["members"]] == [None] * 3
    assert (found["agree"], found["differ"]) == (["b"], ["a"])
    # Without b the row goes on from a to c.
    assert found["flips"] == [{"without": ["b"], "answer": "cat"}]


def test_what_stands_below_a_stage_that_was_not_asked_was_not_asked_either() -> None:
    outputs = said(a=row(0.9, 0.05, 0.05), b=row(0.1, 0.8, 0.1), c=row(0.1, 0.1, 0.8))
    tree = cascade(A, mix(B, C, weights=(0.25, 0.75)), thresholds=(0.75,))
    found = why(tree, outputs, THREE)
    nested = found["said"]["members"][1]
    assert (found["stage"], nested["name"]) == (0, "weighted_mix(b, c)")
    assert [nested["asked"], *(member["asked"] for member in nested["members"])] == [False] * 3
    assert [member["weight"] for member in nested["members"]] == [0.25, 0.75]


def test_a_regression_says_the_values_without_each_member() -> None:
    outputs = said(a=np.array([[1.0, 10.0]]), b=np.array([[3.0, 30.0]]))
    found = why(mix(A, B, weights=(0.25, 0.75)), outputs, VALUES)
    assert (found["answer"], found["probability"], found["flips"]) == ([2.5, 25.0], None, None)
    assert found["without"] == [[3.0, 30.0], [1.0, 10.0]]
    assert "agree" not in found


@pytest.mark.parametrize(
    "tree",
    [parallel(A, B), mix(A, B, weights=(0.5, 0.5)), cascade(A, B, thresholds=(0.5,))],
    ids=["parallel", "mix", "cascade"],
)
def test_it_is_plain_json(tree: Node) -> None:
    found = why(tree, said(a=row(0.7, 0.2, 0.1), b=row(0.1, 0.8, 0.1)), THREE)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_gate_tells_the_weights_of_this_row_and_class_weights_those_of_its_class() -> None:
    outputs = said(a=row(0.7, 0.2, 0.1), b=row(0.1, 0.8, 0.1))
    per_class = WeightedMix(
        members=(A, B),
        method="per_class",
        weights=(0.5, 0.5),
        class_weights=((0.9, 0.2, 0.5), (0.1, 0.8, 0.5)),
    )
    found = why(per_class, outputs, THREE)
    column = THREE.classes.index(found["answer"])
    weights = [member["weight"] for member in found["said"]["members"]]
    assert weights == [per_class.class_weights[place][column] for place in (0, 1)]  # type: ignore[index]
    # Constants alone: softmax of (0, log 3).
    gate = WeightedMix(
        members=(A, B),
        method="gate",
        weights=(0.5, 0.5),
        gate=((0.0,) * 4, (float(np.log(3)), 0.0, 0.0, 0.0)),
    )
    found = why(gate, outputs, THREE)
    assert [member["weight"] for member in found["said"]["members"]] == pytest.approx([0.25, 0.75])
    # Without a member the weights that are alike for all rows hold for the others.
    assert found["without"] == pytest.approx([0.8, 0.2])


def test_a_stage_of_a_boosting_says_what_the_sum_up_to_it_is() -> None:
    """What the stage alone would say, "cat", is no opinion about the row."""
    tree = Boosting(policy="boosting", base="a", members=(A, B), factors=(1.0, 0.5))
    found = why(tree, said(a=row(0.6, 0.3, 0.1), b=row(0.3, 0.2, 0.5)), THREE)
    first, second = found["said"]["members"]
    assert (first["answer"], second["answer"], second["weight"]) == ("ant", "ant", 0.5)
    assert first["probabilities"] == pytest.approx([0.6, 0.3, 0.1])
    assert second["probability"] == found["probability"]
    assert (found["agree"], found["differ"]) == (["a", "b"], [])
    assert second["outputs"] == pytest.approx(np.log([0.3, 0.2, 0.5]).tolist())


def test_a_boosting_without_a_stage_is_the_sum_of_those_before_it() -> None:
    """As the walk does: later stages correct a sum that is not there, and without the first there is none."""
    tree = Boosting(policy="boosting", base="a", members=(A, B, C), factors=(1.0, 1.0, 1.0))
    outputs = said(a=row(0.6, 0.3, 0.1), b=row(0.1, 0.8, 0.1), c=row(0.8, 0.1, 0.1))
    found = why(tree, outputs, THREE)
    assert found["answer"] == "ant"
    first = replay(tree.model_copy(update={"quorum": 1}), said(a=outputs[A], c=outputs[C]), "classification")
    assert first.probs is not None
    assert found["without"] == [None, pytest.approx(0.6), pytest.approx(0.06 / (0.06 + 0.24 + 0.01))]
    assert found["without"][1] == pytest.approx(float(first.probs[0, 0]))
    # The sum of a and c alone would say "ant" as well, but nobody can be given it.
    assert found["flips"] == [{"without": ["c"], "answer": "bee"}]
    document = found | {"ensemble": "x", "part": "test", "row": 0, "id": 0, "truth": "ant"}
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_boosting_of_a_regression_says_the_values_of_the_stages_that_are_left() -> None:
    tree = Boosting(policy="boosting", base="a", members=(A, B), factors=(1.0, 0.5))
    found = why(tree, said(a=np.array([[1.0, 10.0]]), b=np.array([[3.0, 30.0]])), VALUES)
    assert (found["answer"], found["without"], found["flips"]) == ([2.5, 25.0], [None, [1.0, 10.0]], None)
