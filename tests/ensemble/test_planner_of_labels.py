"""Ensembles over several labels a row are judged and chosen as those over classes are."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.calibration import AutoScaling
from orchestrator.config.ensemble import Cascade, Parallel, Stacking, WeightedMix
from orchestrator.config.goal import Goal
from orchestrator.config.measure import Metric
from orchestrator.ensemble.crossfit import Candidate, Evidence
from orchestrator.ensemble.goals import choose
from orchestrator.ensemble.planner import survey
from orchestrator.ensemble.tree import replay
from orchestrator.measure.metrics import score
from tests.ensemble import planned as toys

THREE = (toys.member("b"), toys.member("c"), toys.member("d"))


def labelled(rows: int, labels: int) -> tuple[toys.Outputs, np.ndarray]:
    """Log-odds of members of differing skill, and 0 or 1 of each label."""
    rng = np.random.default_rng(3)
    truth = (rng.random((rows, labels)) < 0.4).astype(np.int8)
    skills = {"a": 0.8, "b": 1.2, "c": 1.6, "d": 2.5}
    found = {
        toys.member(name): (rng.normal(size=truth.shape) + skill * (2 * truth - 1)).astype(np.float32)
        for name, skill in skills.items()
    }
    return found, truth


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(toys.member("a")),
        Candidate(Parallel(members=THREE)),
        Candidate(WeightedMix(members=THREE)),
        Candidate(WeightedMix(members=THREE, prior=5)),
        Candidate(Parallel(members=THREE, rule="logits")),
        Candidate(Parallel(members=THREE, calibration=AutoScaling())),
        Candidate(Cascade(stages=(toys.member("a"), WeightedMix(members=THREE))), (0.6,)),
        Candidate(Cascade(stages=(toys.member("a"), toys.member("b"), toys.member("d"))), (0.4, 0.5)),
    ],
    ids=["single", "mean", "mix", "prior", "logits", "calibrated", "cascade", "three_stages"],
)
def test_one_label_is_judged_as_two_classes(candidate: Candidate) -> None:
    outputs, truth = labelled(300, 1)
    pairs = {one: np.concatenate([np.zeros_like(odds), odds], axis=1) for one, odds in outputs.items()}
    nll = Metric(name="nll")
    of_labels = Evidence(outputs, truth, nll, "multilabel")
    of_classes = Evidence(pairs, truth[:, 0].astype(np.int64), nll, "classification")
    one, other = of_labels.judge(candidate), of_classes.judge(candidate)
    assert one.gain == pytest.approx(other.gain, abs=2e-4)
    assert one.reach == pytest.approx(other.reach, abs=0.02)
    members = list(outputs)
    counts = np.eye(4) + 1
    np.testing.assert_allclose(
        of_labels.mixed_loss(members, counts), of_classes.mixed_loss(members, counts), rtol=1e-4
    )


def test_ensembles_over_several_labels_are_chosen_among_those_that_the_task_has() -> None:
    outputs, truth = labelled(400, 5)
    evidence = Evidence(outputs, truth, Metric(name="macro_f1"), "multilabel")
    pool = toys.pool_of(outputs, {"a": 1.0, "b": 2.0, "c": 3.0, "d": 8.0})
    surveyed = survey(pool, evidence, Goal(), toys.COSTS, walk_ms=0.01, students={})
    trees = [point.tree for point in surveyed.points]
    assert any(isinstance(tree, Cascade) for tree in trees)
    assert {tree.rule for tree in trees if isinstance(tree, Parallel)} == {"mean", "logits", "median"}
    assert {tree.method for tree in trees if isinstance(tree, WeightedMix)} == {"likelihood"}
    assert not any(isinstance(tree, Stacking) for tree in trees)
    found = choose(surveyed, Goal())
    tree = evidence.fitted(found.point.judged.candidate)
    whole = replay(tree, outputs, "multilabel")
    best = max(evidence.judge(Candidate(one.member)).gain for one in pool)
    assert found.point.judged.gain > best
    assert score(Metric(name="macro_f1"), whole.outputs, truth) == pytest.approx(
        found.point.judged.gain, abs=0.03
    )
    cascade = next(point.judged.candidate for point in surveyed.points if isinstance(point.tree, Cascade))
    stages = replay(evidence.fitted(cascade), outputs, "multilabel").stages
    assert (stages == 0).mean() == pytest.approx(cascade.shares[0], abs=0.02)
