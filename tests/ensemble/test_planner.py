"""The planner: known best answers, figures that are not flattered, and specs that do what was planned."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.calibration import AutoScaling
from orchestrator.config.ensemble import Cascade, Combined, Member, Node, Parallel, Stacking, WeightedMix
from orchestrator.config.goal import Costs, Goal
from orchestrator.config.measure import Metric
from orchestrator.ensemble.crossfit import Candidate, Evidence, threshold
from orchestrator.ensemble.goals import choose, honest
from orchestrator.ensemble.planner import (
    BEST_SINGLE,
    BIGGER,
    STUDENT,
    UNCOMPRESSED,
    Point,
    models_per_answer,
    stages_of,
    survey,
)
from orchestrator.ensemble.refit import has_own_arithmetic
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import EnsembleError
from tests.ensemble import planned as toys
from tests.ensemble.toys import A, B, C, cascade, mix, parallel, values

EQUAL = {"a": 1.5, "b": 1.5, "c": 1.5, "d": 1.5}
SPEEDS = dict.fromkeys(EQUAL, 4.0)


THREE = (toys.member("b"), toys.member("c"), toys.member("d"))
OTHERS: dict[str, Node] = {
    "logits": Parallel(members=THREE, rule="logits"),
    "vote": Parallel(members=THREE, rule="vote"),
    "median": Parallel(members=THREE, rule="median"),
    "per_class": WeightedMix(members=THREE, method="per_class"),
    "gate": WeightedMix(members=THREE, method="gate", strength=0.1),
    "stack": Stacking(policy="stacking", members=THREE, strength=0.1),
    "calibrated": Parallel(members=THREE, calibration=AutoScaling()),
}
"""Kinds that cross-fitting has no arithmetic of its own for."""


def named(tree: Node) -> str:
    return "+".join(sorted(member.name for member in distinct(tree)))


def test_a_cascade_wins_under_a_bound_on_latency() -> None:
    """`big` alone takes 20 ms and `tiny` errs on a tenth of the rows; together they fit into 8 ms."""
    outputs, targets = toys.teacher_and_student()
    survey, _ = toys.planned(outputs, targets, {"tiny": 1.0, "big": 20.0}, costs=Costs(batches=(1,)))
    found = choose(survey, Goal(latency_ms=2.0))
    assert not found.beyond
    assert isinstance(found.point.tree, Cascade)
    assert [stage.name for stage in found.point.tree.stages if isinstance(stage, Member)] == ["tiny", "big"]
    assert found.point.judged.gain == pytest.approx(0.98, abs=0.01)
    # The same as big's, at a fraction of its time: what a bound on the drop asks for.
    cheapest = choose(survey, Goal(max_drop=0.005, reference="big"))
    assert isinstance(cheapest.point.tree, Cascade)
    assert cheapest.point.latency_ms < 5.0 / 2


def test_without_a_bound_on_latency_all_members_together_win() -> None:
    outputs, targets = toys.skilled(EQUAL)
    survey, _ = toys.planned(outputs, targets, SPEEDS)
    found = choose(survey, Goal())
    assert isinstance(found.point.tree, Parallel | WeightedMix)
    assert len(distinct(found.point.tree)) == 4
    single = survey.baselines[BEST_SINGLE]
    assert single.single
    assert found.point.judged.gain > single.judged.gain + 0.05
    assert choose(survey, Goal(single_model=True)).point is single
    assert models_per_answer(choose(survey, Goal(max_models_per_answer=2)).point.tree) <= 2


def test_a_mix_wins_where_members_differ() -> None:
    """One member that is worth more than the others, which are worth something beside it."""
    outputs, targets = toys.skilled({"a": 2.5, "b": 0.8, "c": 0.8}, rows=3000)
    survey, evidence = toys.planned(outputs, targets, dict.fromkeys("abc", 4.0), metric=Metric(name="nll"))
    points = [point for point in survey.points if has_own_arithmetic(point.tree)]
    best = max(points, key=lambda point: point.judged.gain)
    assert isinstance(best.tree, WeightedMix)
    assert named(best.tree) == "a+b+c"
    tree = evidence.fitted(best.judged.candidate)
    assert isinstance(tree, WeightedMix)
    assert tree.weights is not None
    assert tree.weights[0] > max(tree.weights[1:])


def test_a_goal_that_nobody_reaches() -> None:
    outputs, targets = toys.skilled(EQUAL)
    survey, _ = toys.planned(outputs, targets, SPEEDS)
    found = choose(survey, Goal(latency_ms=1.0, max_bytes=3000))
    # Single models come closest: 4 ms and 4000 bytes.
    assert found.point.single
    assert found.beyond == {"latency_ms": pytest.approx(3.0), "max_bytes": pytest.approx(1 / 3)}
    assert honest(survey, Goal(latency_ms=1.0)) is None


def test_every_bound_is_kept_by_what_is_chosen() -> None:
    outputs, targets = toys.skilled({"a": 1.0, "b": 1.5, "c": 2.0, "d": 2.0})
    survey, _ = toys.planned(outputs, targets, {"a": 1.0, "b": 2.0, "c": 4.0, "d": 8.0})
    for goal in (
        Goal(p99_ms=6.0),
        Goal(latency_ms=5.0),
        Goal(max_bytes=5000),
        Goal(cost_per_million=1e-2),
        Goal(max_drop=0.04, max_bytes=12_000),
    ):
        point = choose(survey, goal).point
        assert point.p99_ms <= (goal.p99_ms or np.inf)
        assert point.latency_ms <= (goal.latency_ms or np.inf)
        assert point.bytes <= (goal.max_bytes or np.inf)
        assert point.cost_per_million <= (goal.cost_per_million or np.inf)
        assert survey.reference.gain - point.judged.gain <= (goal.max_drop or np.inf)


def test_a_bound_on_robustness_leaves_out_what_is_not_known() -> None:
    outputs, targets = toys.skilled(EQUAL)
    survey, _ = toys.planned(outputs, targets, SPEEDS)
    best = choose(survey, Goal()).point.judged
    single = survey.baselines[BEST_SINGLE].judged
    found = choose(survey, Goal(min_robustness=0.5), robustness={best: 0.4, single: 0.6})
    assert found.point.judged is single
    assert not found.beyond
    missed = choose(survey, Goal(min_robustness=0.7), robustness={best: 0.4, single: 0.6})
    assert missed.point.judged is single
    assert missed.beyond == {"min_robustness": pytest.approx(0.1)}


@pytest.mark.parametrize("positives", [1, 3])
def test_folds_without_a_positive_say_nothing(positives: int) -> None:
    outputs, _ = toys.skilled({"a": 1.0, "b": 1.5}, classes=2)
    targets = (np.arange(len(next(iter(outputs.values())))) < positives).astype(np.int64)
    survey, _ = toys.planned(outputs, targets, SPEEDS, metric=Metric(name="auroc"))
    assert np.isnan(survey.reference.inside).any()
    found = honest(survey, Goal(max_drop=1.0))
    # The only positive's fold leaves none to choose by, and the other folds have none to judge on.
    assert (
        found is None if positives == 1 else found is not None and np.isfinite([found.gain, found.drop]).all()
    )


def test_pure_noise_is_not_flattered() -> None:
    """The best of hundreds over members that know nothing: its own figure is luck, the honest one is not."""
    lucky, fair = [], []
    for seed in range(4):
        outputs, targets = toys.noise("abcdefgh", rows=300, seed=seed)
        survey, _ = toys.planned(outputs, targets, dict.fromkeys("abcdefgh", 4.0))
        lucky.append(choose(survey, Goal()).point.judged.gain)
        found = honest(survey, Goal())
        assert found is not None
        fair.append(found.gain)
    chance, error = 0.25, np.sqrt(0.25 * 0.75 / (4 * 300))
    assert np.mean(lucky) > chance + 3 * error
    assert abs(np.mean(fair) - chance) < 3 * error


def test_weights_are_judged_on_rows_that_they_were_not_fitted_on() -> None:
    """Eight useless members on few rows: weights fitted and judged on all rows look better than chance."""
    outputs, targets = toys.noise("abcdefgh", rows=60, classes=2)
    evidence = Evidence(outputs, targets, Metric(name="nll"), "classification")
    tree = WeightedMix(members=tuple(outputs))
    honest_loss = -evidence.judge(Candidate(tree)).gain
    fitted = replay(evidence.fitted(Candidate(tree)), outputs, "classification")
    own = float(-fitted.scores[np.arange(60), targets].mean())
    assert own < np.log(2) < honest_loss


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate(toys.member("a")),
        Candidate(parallel(toys.member("a"), toys.member("b"))),
        Candidate(mix(toys.member("a"), toys.member("b"), toys.member("d"))),
        Candidate(cascade(toys.member("a"), toys.member("d")), (0.6,)),
        Candidate(
            cascade(toys.member("a"), toys.member("b"), mix(toys.member("c"), toys.member("d"))), (0.5, 0.5)
        ),
        *map(Candidate, OTHERS.values()),
        Candidate(cascade(toys.member("a"), OTHERS["gate"]), (0.5,)),
    ],
    ids=["single", "mean", "mix", "cascade", "three-stages", *OTHERS, "gate-at-the-end"],
)
def test_the_fitted_tree_answers_as_it_was_judged(candidate: Candidate) -> None:
    """The walk over the spec's tree and the planner's own arithmetic differ by what a fold's rows change."""
    outputs, targets = toys.skilled({"a": 1.0, "b": 1.4, "c": 1.8, "d": 2.0}, rows=3000)
    evidence = Evidence(outputs, targets, Metric(), "classification")
    tree = evidence.fitted(candidate)
    walked = replay(
        tree, {member: outputs[toys.member(member.name)] for member in distinct(tree)}, "classification"
    )
    judged = evidence.judge(candidate)
    assert float((walked.outputs.argmax(1) == targets).mean()) == pytest.approx(judged.gain, abs=0.006)
    shares = [float((walked.stages >= place).mean()) for place in range(len(judged.reach))]
    assert shares == pytest.approx(judged.reach, abs=0.01)
    if candidate.shares:
        assert 1 - judged.reach[1] == pytest.approx(candidate.shares[0], abs=0.01)


def test_a_thousand_candidates_of_every_kind() -> None:
    skills = {name: 0.6 + 0.15 * place for place, name in enumerate("abcdefghijkl")}
    outputs, targets = toys.skilled(skills, rows=200)
    speeds = {name: 1.0 + 1.5 * place for place, name in enumerate(skills)}
    survey, _ = toys.planned(outputs, targets, speeds, family={"a": "l", "f": "l"})
    candidates = {point.judged.candidate for point in survey.points}
    assert len(candidates) >= 1000
    trees = {candidate.tree for candidate in candidates}
    assert {type(tree) for tree in trees} == {Member, Parallel, WeightedMix, Stacking, Cascade}
    assert {tree.rule for tree in trees if isinstance(tree, Parallel)} == {"mean", "logits", "vote", "median"}
    assert {tree.method for tree in trees if isinstance(tree, WeightedMix)} == {
        "likelihood",
        "per_class",
        "gate",
    }
    calibrated = {type(tree) for tree in trees if isinstance(tree, Combined) and tree.calibration}
    assert {Parallel, WeightedMix} <= calibrated
    assert any(isinstance(tree, Cascade) and not isinstance(tree.stages[-1], Member) for tree in trees)
    assert {len(tree.stages) for tree in trees if isinstance(tree, Cascade)} == {2, 3}


def test_variants_of_one_model_are_a_cascade_whatever_else_there_is() -> None:
    """Better and faster models of another family hide them from the front."""
    skills = {"int8": 1.0, "pruned": 1.3, "teacher": 1.6, "x": 2.0, "y": 2.4}
    outputs, targets = toys.skilled(skills)
    family = {"int8": "t", "pruned": "t", "teacher": "t"}
    speeds = {"int8": 2.0, "pruned": 5.0, "teacher": 12.0, "x": 0.5, "y": 1.0}
    survey, _ = toys.planned(outputs, targets, speeds, family=family)
    chains = {
        tuple(stage.name for stage in point.tree.stages if isinstance(stage, Member))
        for point in survey.points
        if isinstance(point.tree, Cascade)
    }
    assert {("int8", "teacher"), ("int8", "pruned", "teacher")} <= chains


def test_baselines_are_there_or_it_is_said_why_not() -> None:
    outputs, targets = toys.skilled({"a": 1.0, "b": 1.0, "big": 1.4, "both": 1.2, "a8": 0.9})
    speeds = {"a": 4.0, "b": 4.0, "big": 8.0, "both": 4.0, "a8": 1.0}
    team = frozenset(toys.member(name).digest for name in ("a", "b", "big"))
    survey, _ = toys.planned(
        outputs,
        targets,
        speeds,
        compressed={"both": True, "a8": True},
        students={toys.member("both").digest: team},
    )
    assert set(survey.baselines) >= {BEST_SINGLE, UNCOMPRESSED, STUDENT}
    assert named(survey.baselines[STUDENT].tree) == "both"
    assert {member.name for member in distinct(survey.baselines[UNCOMPRESSED].tree)} <= {"a", "b", "big"}
    assert survey.reference is survey.baselines[UNCOMPRESSED].judged
    small, few = toys.skilled({"a": 1.0, "b": 1.0})
    survey, _ = toys.planned(small, few, {"a": 4.0, "b": 4.0})
    assert {BIGGER, STUDENT}.isdisjoint(survey.baselines)
    assert [note.partition(":")[0] for note in survey.notes] == [BIGGER, STUDENT]


def test_the_front_is_what_no_point_beats() -> None:
    outputs, targets = toys.skilled({"a": 1.0, "b": 1.5, "c": 2.0})
    survey, _ = toys.planned(outputs, targets, {"a": 1.0, "b": 2.0, "c": 4.0})

    def beats(one: Point, other: Point) -> bool:
        mine = (-one.judged.gain, one.latency_ms, one.bytes)
        theirs = (-other.judged.gain, other.latency_ms, other.bytes)
        return mine != theirs and all(own <= its for own, its in zip(mine, theirs, strict=True))

    assert survey.front
    assert not any(beats(point, kept) for kept in survey.front for point in survey.points)
    dominated = [point for point in survey.points if not any(beats(kept, point) for kept in survey.front)]
    assert {(p.judged.gain, p.latency_ms, p.bytes) for p in dominated} == {
        (p.judged.gain, p.latency_ms, p.bytes) for p in survey.front
    }


def test_the_same_inputs_give_the_same_plan() -> None:
    outputs, targets = toys.skilled(EQUAL, rows=200)
    first, evidence = toys.planned(outputs, targets, SPEEDS)
    second, again = toys.planned(outputs, targets, SPEEDS)
    assert [point.judged.candidate for point in first.points] == [p.judged.candidate for p in second.points]
    assert [point.judged.gain for point in first.points] == [point.judged.gain for point in second.points]
    shown = [point.judged for point in first.front]
    other = [point.judged for point in second.front]
    assert evidence.intervals(shown, first.reference) == again.intervals(other, second.reference)


def test_intervals_hold_the_figure_and_the_references_drop_is_nothing() -> None:
    outputs, targets = toys.skilled(EQUAL)
    survey, evidence = toys.planned(outputs, targets, SPEEDS)
    worse = min((point.judged for point in survey.points), key=lambda judged: judged.gain)
    reference, bad = evidence.intervals([survey.reference, worse], survey.reference)
    assert (reference.drop, reference.drop_ci) == (0.0, (0.0, 0.0))
    assert bad.ci[0] <= bad.value <= bad.ci[1]
    assert 0 < bad.drop_ci[0] <= bad.drop <= bad.drop_ci[1]


def test_other_kinds_are_fitted_without_the_rows_that_judge_them() -> None:
    """A stack of useless members, fitted and judged on the same rows, would look better than chance."""
    outputs, targets = toys.noise("abcdefgh", rows=120, classes=2)
    evidence = Evidence(outputs, targets, Metric(name="nll"), "classification")
    stack = Candidate(Stacking(policy="stacking", members=tuple(outputs), strength=1e-3))
    fitted = replay(evidence.fitted(stack), outputs, "classification")
    own = float(-fitted.scores[np.arange(120), targets].mean())
    assert own < np.log(2) < -evidence.judge(stack).gain


def test_what_takes_a_search_is_chosen_once_and_no_weight_with_it() -> None:
    outputs, targets = toys.skilled(EQUAL, rows=300)
    evidence = Evidence(outputs, targets, Metric(), "classification")
    gate = evidence.with_choices(WeightedMix(members=tuple(outputs), method="gate"))
    assert isinstance(gate, WeightedMix)
    assert gate.strength is not None
    assert (gate.weights, gate.gate) == (None, None)
    mean = evidence.with_choices(Parallel(members=tuple(outputs), calibration=AutoScaling()))
    assert isinstance(mean, Parallel)
    assert mean.calibration is not None
    assert mean.calibration.kind != "auto"
    assert not mean.calibration.fitted


def test_the_best_student_of_a_team_stands_beside_it() -> None:
    outputs, targets = toys.skilled(EQUAL | {"x": 1.2, "y": 1.4})
    team = frozenset(toys.member(name).digest for name in "ab")
    students = {toys.member(name).digest: team for name in "xy"}
    survey, _ = toys.planned(outputs, targets, SPEEDS | {"x": 1.0, "y": 1.0}, students=students)
    assert survey.students.keys() == {team}
    tree = survey.students[team].tree
    assert isinstance(tree, Member)
    assert tree.name == "y"


def test_regression_has_no_cascades() -> None:
    outputs, targets = values()
    evidence = Evidence(outputs, targets, Metric(name="rmse"), "regression")
    pool = toys.pool_of(outputs, {member.name: 1.0 for member in outputs})
    found = survey(pool, evidence, Goal(), toys.COSTS, walk_ms=0.0, students={})
    assert not any(isinstance(point.tree, Cascade) for point in found.points)
    kinds = {type(point.tree) for point in found.points}
    assert kinds == {Member, Parallel, WeightedMix, Stacking}
    plain = [point for point in found.points if has_own_arithmetic(point.tree)]
    point = max(plain, key=lambda point: point.judged.gain)
    assert isinstance(point.tree, WeightedMix)
    assert point.judged.gain > found.baselines[BEST_SINGLE].judged.gain
    tree = evidence.fitted(point.judged.candidate)
    assert isinstance(tree, WeightedMix)
    assert tree.weights is not None


def test_a_member_of_two_stages_is_asked_once() -> None:
    assert stages_of(cascade(A, parallel(A, B), C)) == [[A], [B], [C]]
    assert stages_of(mix(A, B)) == [[A, B]]
    assert models_per_answer(cascade(A, parallel(A, B))) == 2
    assert models_per_answer(cascade(A, B)) == 1


def test_thresholds_lie_between_confidences() -> None:
    ordered = np.array([0.3, 0.5, 0.5, 0.7, 0.9])
    assert threshold(ordered, 0.4) == pytest.approx(0.6)
    assert threshold(ordered, 0.6) == pytest.approx(0.6)  # the tied rows stay together
    assert threshold(ordered, 1.0) == 0.0
    assert threshold(ordered, 0.0) > 1.0
    assert threshold(np.array([]), 0.5) > 1.0


def test_refusals_say_what_to_do() -> None:
    outputs, targets = toys.noise("ab", rows=8)
    with pytest.raises(EnsembleError, match="at least 10 validation rows"):
        Evidence(outputs, targets, Metric(), "classification")
    outputs, targets = toys.noise("ab")
    with pytest.raises(EnsembleError, match="models: a, b"):
        toys.planned(outputs, targets, {"a": 1.0, "b": 1.0}, Goal(reference="teacher"))
