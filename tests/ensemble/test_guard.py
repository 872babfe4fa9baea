"""The guard: wrong members go soon, sound ones hardly ever. Both rates by simulation."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import pytest

from orchestrator.config.ensemble import Cascade, Member, Node, Parallel
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.betting import NOTHING
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.guard import EVERY, FLOOR, Watch, excess, excesses, observe, readmitted, start
from orchestrator.ensemble.tree import Prediction, distinct, replay
from tests.ensemble.likely import ABILITY, likely
from tests.ensemble.toys import A, B, C, D, values

Floats = npt.NDArray[np.float32]
Table = dict[Member, Floats]
FITTED, LABELS = likely(3_000, 0)
MEMBERS = tuple(FITTED)
TREE = fit(Parallel(members=MEMBERS, quorum=2), FITTED, LABELS, Metric(), "classification")
BAD = MEMBERS[1]


def requests(tree: Node, table: Table, task: Task = "classification") -> list[list[float | None]]:
    """What each row, sent alone, says about each member."""
    whole = replay(tree, table, task)

    def row(number: int) -> Prediction:
        cut = slice(number, number + 1)
        return replace(
            whole,
            outputs=whole.outputs[cut],
            members={member: mask[cut] for member, mask in whole.members.items()},
            said={member: output[cut] for member, output in whole.said.items()},
        )

    return [excess(row(number), task) for number in range(len(whole.outputs))]


def ejection(seen: list[list[float | None]], every: float = EVERY) -> tuple[int, int] | None:
    """(position, after how many requests) of the first member that is ejected."""
    watch = start(len(seen[0]))
    for number, found in enumerate(seen, start=1):
        watch = observe(watch, found, 1, every)
        if watch.ejected:
            return watch.ejected[0], number
    return None


def permuted(output: Floats, _: int) -> Floats:
    return np.roll(output, 1, axis=1)


def noise(output: Floats, seed: int) -> Floats:
    return np.random.default_rng(seed).normal(size=output.shape, scale=output.std()).astype(np.float32)


def constant(output: Floats, _: int) -> Floats:
    return np.broadcast_to(output[:1], output.shape).copy()


@pytest.mark.parametrize("fault", [permuted, noise, constant])
def test_a_wrong_member_is_ejected_within_fifty_requests_and_no_other(fault: object) -> None:
    assert callable(fault)
    for seed in range(20):
        table, _ = likely(50, 1_000 + seed)
        found = ejection(requests(TREE, {**table, BAD: fault(table[BAD], seed)}))
        assert found is not None
        assert found[0] == 1


def test_stale_weights_are_mostly_found_within_two_hundred_requests() -> None:
    """A member whose accuracy fell from 0.78 to 0.55."""
    after = []
    for seed in range(10):
        table, _ = likely(400, 2_000 + seed)
        stale, _ = likely(400, 2_000 + seed, ability=tuple(0.62 * found for found in ABILITY))
        found = ejection(requests(TREE, {**table, BAD: stale[BAD]}))
        assert found is not None
        assert found[0] == 1
        after.append(found[1])
    assert np.median(after) < 200


def test_sound_members_are_ejected_no_more_often_than_stated() -> None:
    """With one wrong ejection allowed in 200 requests (far below the default), on 6,000."""
    table, _ = likely(6_000, 3)
    seen = requests(TREE, table)
    wrong, watch = 0, start(4)
    for found in seen:
        watch = observe(watch, found, 1, every=200)
        if watch.ejected:
            wrong, watch = wrong + 1, start(4)
    assert wrong <= 30
    assert ejection(seen) is None


def test_the_bound_is_sharp_enough_to_mean_something() -> None:
    """Opposed exactly as often as recorded, a member is ejected now and then, but within the stated rate."""
    rng = np.random.default_rng(0)
    wrong, watch = 0, start(1)
    for _ in range(10_000):
        watch = observe(watch, [float(rng.random() < 0.1) / 0.1], 1, every=50)
        if watch.ejected:
            wrong, watch = wrong + 1, start(1)
    assert 20 < wrong <= 200


def test_an_ejected_member_counts_no_more_and_the_others_start_again() -> None:
    watch = start(3)
    while not watch.ejected:
        watch = observe(watch, [0.5, 4.0, 3.0], 2)
    assert watch == Watch((NOTHING,) * 3, (1,))
    # The state is plain data.
    again = json.loads(json.dumps(asdict(watch)))
    assert Watch(tuple(map(tuple, again["evidence"])), tuple(again["ejected"])) == watch
    while len(watch.ejected) < 2:
        watch = observe(watch, [0.5, None, 3.0], 1)
    assert watch.ejected == (1, 2)


def test_nobody_is_ejected_who_cannot_be_spared_nor_without_a_record() -> None:
    watch = start(3)
    for _ in range(200):
        watch = observe(watch, [0.5, 4.0, 0.5], 0)
    assert watch.ejected == ()
    assert observe(watch, [None, None, None], 1).ejected == (1,)
    table, _ = likely(5, 0)
    assert requests(Parallel(members=MEMBERS), table)[0] == [None] * 4


def test_two_that_disagree_say_nothing_about_each_other() -> None:
    table, _ = likely(5, 0)
    two = {member: table[member] for member in MEMBERS[:2]}
    assert requests(TREE, two) == [[None] * 4] * 5
    three = {member: table[member] for member in MEMBERS[:3]}
    assert all(found[3] is None and None not in found[:3] for found in requests(TREE, three))


def test_a_cascade_s_later_stages_are_compared_on_the_rows_that_they_see() -> None:
    tree = Cascade(stages=(MEMBERS[0], Parallel(members=MEMBERS[1:], quorum=2)), thresholds=(0.9,))
    found = fit(tree, FITTED, LABELS, Metric(), "classification")
    table, _ = likely(2_000, 5)
    first, second = (found_.record for found_ in distinct(found)[:2])
    assert first is not None
    assert second is not None
    # Rows that go on are hard: the members disagree more than on all rows.
    whole = distinct(TREE)[1].record
    assert whole is not None
    assert min(second.opposed) > 1.2 * max(whole.opposed)
    assert min(first.opposed) > FLOOR
    assert ejection(requests(found, table)) is None
    assert any(None in row for row in requests(found, table))


def test_a_later_stage_s_range_is_that_of_all_rows_also_of_those_that_never_reach_it() -> None:
    """An audit of early exits asks it for those, too: there it is surer than on any hard row."""
    hard = Parallel(members=MEMBERS[1:], quorum=2)
    for threshold in (0.5, 0.0):  # some rows reach it, none does
        tree = Cascade(stages=(MEMBERS[0], hard), thresholds=(threshold,))
        found = fit(tree, FITTED, LABELS, Metric(), "classification")
        for member, output in zip(distinct(found), FITTED.values(), strict=True):
            assert member.record is not None
            assert (member.record.low, member.record.high) == (output.min(), output.max())


def test_regression_members_are_held_against_the_others_span() -> None:
    table, truth = values(rows=1_000)
    tree = fit(Parallel(members=(A, B, C, D), quorum=2), table, truth, Metric(name="rmse"), "regression")
    unseen, _ = values(rows=300, seed=1)
    assert ejection(requests(tree, unseen, "regression")) is None
    shuffled = np.random.default_rng(0).permutation(unseen[C])
    assert ejection(requests(tree, {**unseen, C: shuffled}, "regression")) is not None
    found = ejection(requests(tree, {**unseen, C: shuffled}, "regression"))
    assert found is not None
    assert found[0] == 2
    assert found[1] < 200


def test_requests_worked_out_together_say_what_each_alone_says() -> None:
    table, _ = likely(30, 7)
    whole = replay(TREE, table, "classification")
    without = replay(TREE, {member: table[member] for member in MEMBERS[1:]}, "classification")
    found = excesses([whole, without, whole], "classification")
    assert [line[0] is None for line in found] == [False, True, False]
    for line, prediction in zip(found, [whole, without, whole], strict=True):
        for one, alone in zip(line, excess(prediction, "classification"), strict=True):
            assert one == (None if alone is None else pytest.approx(alone))


def test_a_readmitted_member_starts_with_a_clean_sheet() -> None:
    watch = start(3)
    while not watch.ejected:
        watch = observe(watch, [0.5, 4.0, 3.0], 2)
    assert readmitted(watch, 1) == start(3)
