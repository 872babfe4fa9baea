"""A chain's walk: who is asked when, what a later model gets, and who answers when somebody is missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from orchestrator.config.ensemble import Chain, Later, Member, Spec, leaves
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp
from orchestrator.config.signature import Signature, Task
from orchestrator.ensemble.combine import pool, scores_of
from orchestrator.ensemble.contributions import contributions
from orchestrator.ensemble.explain import why
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.quorum import answers_without
from orchestrator.ensemble.sight import beside, told
from orchestrator.ensemble.tree import Outcome, asked_together, distinct, predict, replay, walk
from orchestrator.errors import EnsembleError, QuorumError
from tests.ensemble.toys import A, B, C, D, mix, outputs, parallel, values

TABLE, TARGETS = outputs(rows=60)
VALUES, TRUTH = values(rows=60)
SECOND = C.model_copy(update={"sees": (A, B)})
THIRD = D.model_copy(update={"sees": (A, B, SECOND)})
LATER = Later(model=Mlp())
ONE = Chain(policy="chain", members=(A, B, SECOND), later=(LATER,))
TWO = Chain(policy="chain", members=(A, B, SECOND, THIRD), later=(LATER, LATER))
INPUTS = np.random.default_rng(0).integers(0, 256, (60, 1, 3, 2), dtype=np.uint8)


@pytest.mark.parametrize(("table", "task"), [(TABLE, "classification"), (VALUES, "regression")])
def test_the_last_model_answers(table: dict[Member, Any], task: Task) -> None:
    for tree, last in ((ONE, C), (TWO, D)):
        found = replay(tree, table, task)
        np.testing.assert_array_equal(found.scores, scores_of(table[last], task))
        assert [member.name for member, mask in found.members.items() if mask.all()] == [
            member.name for member in distinct(tree)
        ]
        assert not found.degraded.any()


@pytest.mark.parametrize(("table", "task"), [(TABLE, "classification"), (VALUES, "regression")])
def test_a_later_model_gets_inputs_beside_what_the_earlier_ones_said_of_the_same_rows(
    table: dict[Member, Any], task: Task
) -> None:
    got: dict[str, npt.NDArray[Any]] = {}

    def asked(member: Member) -> Any:
        def call(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
            got[member.name] = rows
            return np.asarray(table[member.model_copy(update={"sees": ()})])

        return call

    predict(TWO, {member: asked(member) for member in distinct(TWO)}, INPUTS, task)
    np.testing.assert_array_equal(got["a"], INPUTS)
    flat = INPUTS.reshape(60, 6).astype(np.float32)
    np.testing.assert_array_equal(got["c"][:, :6], flat)
    np.testing.assert_array_equal(got["c"], beside(INPUTS, told([table[A], table[B]], task)))
    np.testing.assert_array_equal(got["d"], beside(INPUTS, told([table[A], table[B], table[C]], task)))
    if task == "classification":
        np.testing.assert_allclose(got["c"][:, 6:10].sum(axis=1), 1, rtol=1e-5)


def test_who_sees_others_is_asked_after_them_and_they_once() -> None:
    assert [[one.name for one in group] for group in asked_together(TWO)] == [["a", "b"], ["c"], ["d"]]
    for tree in (TWO, mix(TWO, A, weights=(0.5, 0.5))):
        steps, rounds = walk(tree, 60, "classification"), []
        asks = next(steps)
        while True:
            rounds.append([ask.member.name for ask in asks])
            answers = tuple(
                Outcome(TABLE[ask.member.model_copy(update={"sees": ()})][ask.rows]) for ask in asks
            )
            try:
                asks = steps.send(answers)
            except StopIteration:
                break
        assert rounds == [["a", "b"], ["c"], ["d"]]


def test_leaves_stand_behind_those_that_they_see_and_survive_the_store() -> None:
    assert [leaf.name for leaf in dict.fromkeys(leaves(THIRD))] == ["a", "b", "c", "d"]
    assert Chain.model_validate_json(TWO.model_dump_json()) == TWO
    assert "sees" not in A.plain()


def test_without_an_earlier_model_the_mean_of_the_others_answers() -> None:
    lenient = ONE.model_copy(update={"quorum": 1})
    rest = {member: output for member, output in TABLE.items() if member != A}
    found = replay(lenient, rest, "classification")
    np.testing.assert_array_equal(found.scores, scores_of(TABLE[B], "classification"))
    assert found.degraded.all()
    assert [member.name for member in found.missing] == ["a"]
    rest = {A: TABLE[A], B: TABLE[B]}
    both = [scores_of(TABLE[member], "classification") for member in (A, B)]
    np.testing.assert_array_equal(
        replay(lenient, rest, "classification").scores, pool(both, None, "classification")
    )
    with pytest.raises(QuorumError, match="a"):
        replay(ONE, {B: TABLE[B], C: TABLE[C]}, "classification")
    assert answers_without(lenient, [A])
    assert not answers_without(lenient.model_copy(update={"quorum": 2}), [A])
    assert answers_without(lenient.model_copy(update={"quorum": 2}), [C])


def test_explained_as_the_walk_answers() -> None:
    signature = _four()
    row = {member: output[:1] for member, output in TABLE.items()}
    found = why(ONE, row, signature)
    top = TABLE[C][0].argmax()
    lenient = ONE.model_copy(update={"quorum": 1})
    for place, member in enumerate((A, B, C)):
        left = {one: output for one, output in row.items() if one in (A, B, C) and one != member}
        expected = replay(lenient, left, "classification").probs
        assert expected is not None
        assert found["without"][place] == pytest.approx(float(expected[0, top]))
    assert [member["name"] for member in found["said"]["members"]] == ["a", "b", "c"]
    # A coalition in which the last one cannot see is that of the others alone.
    worth = contributions(ONE, TABLE, TARGETS, "classification")
    assert worth is not None
    right = {member: (TABLE[member].argmax(axis=1) == TARGETS).mean() for member in (A, B, C)}
    assert worth["accuracy"][2].alone == 0
    assert worth["accuracy"][0].alone == pytest.approx(right[A] - 1 / 4)
    assert worth["accuracy"][0].leave_one_out == pytest.approx(right[C] - right[B])


def test_fitted_with_a_calibration_and_a_quorum() -> None:
    asked = ONE.model_copy(update={"quorum": 1})
    fitted = fit(asked, TABLE, TARGETS, Metric(), "classification")
    assert isinstance(fitted, Chain)
    assert all(isinstance(member, Member) and member.temperature for member in fitted.members)
    assert fitted.expected is not None
    # What the last one is told does not depend on temperatures, which come after its training.
    assert Spec(name="x", tree=fitted, signature=_four()).tree == fitted


def _four() -> Signature:
    return Signature(
        task="classification",
        input_shape=(1,),
        input_dtype="float32",
        outputs=4,
        classes=tuple("wxyz"),
        mean=(0.0,),
        std=(1.0,),
    )


def test_an_untrained_chain_is_refused() -> None:
    bare = Chain(policy="chain", members=(A, B), later=(LATER,))
    with pytest.raises(EnsembleError, match="no trained later models"):
        fit(bare, TABLE, TARGETS, Metric(), "classification")
    with pytest.raises(ValidationError, match="not images: take mlp"):
        Later.model_validate({"model": {"factory": "cnn"}})
    with pytest.raises(ValidationError, match="it learns from labels"):
        Later.model_validate({"model": {"factory": "mlp"}, "training": {"loss": {"kind": "distillation"}}})
    assert Chain(policy="chain", members=(A, B), later=(LATER,), quorum=3).quorum == 3
    assert parallel(bare, A).members[0] == bare
