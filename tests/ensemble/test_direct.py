"""Answers without a walk are the walk's, to the last bit; what only the walk knows is left to it."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.calibration import Record, TemperatureScaling
from orchestrator.config.ensemble import Member, Node, Parallel, Stacking, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.direct import direct
from orchestrator.ensemble.tree import distinct, replay
from tests.ensemble.toys import A, B, C, D, cascade, mix, outputs, parallel, values

LOGITS = outputs(rows=40)[0]
VALUES = values(rows=40)[0]
WARM = A.model_copy(update={"temperature": 1.7})
SCALED = TemperatureScaling(temperature=0.8)
INNER = Parallel(members=(WARM, B), calibration=SCALED)

META = tuple(map(tuple, np.random.default_rng(3).normal(size=(9, 4)).tolist()))

TREES: dict[str, Node] = {
    "alone": WARM,
    "mean": parallel(A, B, C),
    "votes": Parallel(members=(A, B, WARM), rule="vote"),
    "median": Parallel(members=(A, WARM, C), rule="median"),
    "geometric": Parallel(members=(A, B, C), rule="logits", calibration=SCALED),
    "mix": mix(A, WARM, C, weights=(0.5, 0.2, 0.3)),
    "nested": WeightedMix(members=(INNER, C, A, Parallel(members=(C, D))), weights=(0.4, 0.3, 0.2, 0.1)),
    "stack": Stacking(policy="stacking", members=(A, B), coefficients=META),
}


def compare(tree: Node, table: dict[Member, np.ndarray], task: Task) -> None:
    known = {
        member: table[next(one for one in table if one.digest == member.digest)] for member in distinct(tree)
    }
    stacked = np.stack([known[member] for member in distinct(tree)], axis=1)
    found = direct(tree, task, stacked.shape[2])
    assert found is not None
    for rows in (1, 40):
        mine, walked = found(stacked[:rows]), replay(tree, {m: o[:rows] for m, o in known.items()}, task)
        assert mine is not None
        np.testing.assert_array_equal(mine.scores, walked.scores)
        np.testing.assert_array_equal(mine.outputs, walked.outputs)
        np.testing.assert_array_equal(mine.stages, walked.stages)
        assert (mine.probs is None) == (walked.probs is None)
        if mine.probs is not None and walked.probs is not None:
            np.testing.assert_array_equal(mine.probs, walked.probs)
        assert list(mine.members) == list(walked.members)
        for member, mask in walked.members.items():
            np.testing.assert_array_equal(mine.members[member], mask)
            np.testing.assert_array_equal(mine.said[member], walked.said[member])
        assert (mine.missing, mine.expected) == (walked.missing, walked.expected)
        assert not mine.degraded.any()


@pytest.mark.parametrize("name", TREES)
def test_it_gives_what_the_walk_gives(name: str) -> None:
    compare(TREES[name], LOGITS, "classification")


def test_it_averages_values() -> None:
    compare(mix(A, B, weights=(0.3, 0.7)), VALUES, "regression")


def test_what_is_not_sound_is_left_to_the_walk() -> None:
    record = Record(outputs=4, low=-1.0, high=1.0, opposed=())
    found = direct(parallel(A.model_copy(update={"record": record}), B), "classification", 4)
    assert found is not None
    good = np.zeros((3, 2, 4), np.float32)
    assert found(good) is not None
    for place, value in (((0, 1, 2), np.nan), ((2, 0, 0), np.inf), ((1, 0, 3), 3.5), ((1, 0, 3), -3.5)):
        bad = good.copy()
        bad[place] = value
        assert found(bad) is None
    wild = good.copy()
    wild[1, 1, 3] = 3.5  # nothing is known of the second member's range
    assert found(wild) is not None
    assert found(good.astype(np.int32)) is None
    assert found(good[..., :3]) is None
    assert found(good[:, :1]) is None


@pytest.mark.parametrize(
    "tree",
    [
        cascade(A, B, thresholds=(0.5,)),
        parallel(A, cascade(B, C, thresholds=(0.5,))),
        mix(A, B),
        parallel(B, A.model_copy(update={"sees": (B,)})),
    ],
    ids=["cascade", "nested", "not fitted", "chain"],
)
def test_who_must_decide_walks(tree: Node) -> None:
    assert direct(tree, "classification", 4) is None
