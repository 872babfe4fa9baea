"""Population based training: who goes on from whom, with what, and what the variant says of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.errors import SearchError
from orchestrator.runtime.rebuild import rebuild
from orchestrator.search import trial
from orchestrator.search.batches import BatchSearch
from orchestrator.search.ledger import Ledger, untimed
from orchestrator.search.objectives import TrialRow
from orchestrator.search.population import PopulationStudy
from orchestrator.search.ray_search import run_search
from orchestrator.search.space import displayed, going_on, name_of, plan_of, trained_before, variant_key
from orchestrator.search.study import Suggestion
from orchestrator.search.trial import TrialJob
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport
from tests.search.jobs import job_over_a_tiny_model
from tests.search.rows import evaluated

LR, WEIGHT = "recover.training.lr", "recover.training.loss.weight"
FREE = {
    "lr": {"range": [0.001, 0.3], "log": True},
    "loss": {"kind": "distillation", "weight": {"choice": [0.3, 0.6, 0.9]}},
}


def settings(free: dict[str, Any] = FREE, **more: Any) -> SearchSettings:
    training = {"epochs": 1, "batch_size": 32, "schedule": "constant", **free}
    plan = [{"kind": "prune_channels", "amount": 0.5}, {"kind": "recover", "training": training}]
    given = {"trials": 18, "batch": 6, "sampler": {"kind": "pbt"}, "executions": ["eager"], "arms": False}
    return SearchSettings.model_validate({**given, "space": {"plan": plan}, **more})


def result(suggestion: Suggestion) -> TrialRow:
    """The nearer all rates were to 0.05, the less is lost."""
    every = [*trained_before(suggestion.config), suggestion.config]
    drop = sum(abs(float(one[LR]) - 0.05) for one in every)
    return evaluated(suggestion.number, suggestion.config, drop=drop).measured(1.0, (1, 1), 1.0, (1, 1))


Results = Callable[[Suggestion], TrialRow]


def run(
    wanted: SearchSettings, seed: int = 0, shuffle: random.Random | None = None, results: Results = result
) -> list[TrialRow]:
    study, found = PopulationStudy(wanted, seed), []
    while batch := study.ask():
        rows = [results(suggestion) for suggestion in batch]
        found += rows
        study.tell(shuffle.sample(rows, len(rows)) if shuffle else rows)
    return found


def own(config: Config) -> Config:
    return {name: config[name] for name in (LR, WEIGHT)}


def test_the_worst_go_on_from_the_best_and_all_others_from_themselves() -> None:
    rows = run(settings(sampler={"kind": "pbt", "quantile": 0.34, "resample": 0}))
    for begin in (0, 6):
        before, after = rows[begin : begin + 6], rows[begin + 6 : begin + 12]
        ranked = sorted(before, key=lambda row: row.drop)
        best, worst = ranked[:2], [row.number for row in ranked[-2:]]
        for member, child in zip(before, after, strict=True):
            parents = [*trained_before(member.config), own(member.config)]
            if member.number not in worst:
                assert trained_before(child.config) == parents
                assert own(child.config) == own(member.config)
                continue
            donors = [row for row in best if trained_before(child.config)[-1] == own(row.config)]
            assert len(donors) == 1
            ratio = float(child.config[LR]) / float(donors[0].config[LR])
            # Cut off at the range's ends, 0.3 and 0.001; rounded to six digits.
            assert ratio == pytest.approx(0.8, rel=1e-4) or ratio == pytest.approx(1.25, rel=1e-4)
            options = [0.3, 0.6, 0.9]
            moved = options.index(float(child.config[WEIGHT])) - options.index(
                float(donors[0].config[WEIGHT])
            )
            assert abs(moved) <= 1
    means = [sum(row.drop for row in rows[begin : begin + 6]) / (begin // 6 + 1) for begin in (0, 6, 12)]
    assert means == sorted(means, reverse=True), "a generation is better than the one before, an epoch"


def test_generations_repeat_whatever_the_order_of_results_and_extend() -> None:
    first = [row.config for row in run(settings(), seed=3)]
    assert [row.config for row in run(settings(), seed=3, shuffle=random.Random(1))] == first
    assert [row.config for row in run(settings(), seed=4)] != first
    assert [row.config for row in run(settings(trials=10), seed=3)] == first[:10]
    assert [len(trained_before(config)) for config in first] == [0] * 6 + [1] * 6 + [2] * 6


def test_a_member_that_failed_is_replaced_and_nobody_follows_it() -> None:
    def results(suggestion: Suggestion) -> TrialRow:
        row = result(suggestion)
        return row.failed("it broke") if suggestion.number in (0, 1, 2, 3) else row

    rows = run(settings(trials=12), results=results)
    kept = [own(row.config) for row in rows[4:6]]
    assert all(trained_before(row.config)[-1] in kept for row in rows[6:])
    assert [own(row.config) for row in rows[10:]] == kept
    everyone = run(settings(trials=12), results=lambda suggestion: result(suggestion).failed("no"))
    assert not any(trained_before(row.config) for row in everyone), "all begin anew"


def test_whole_and_stepped_numbers_move_by_a_step_at_least_and_stay_inside() -> None:
    free = {"batch_size": {"range": [16, 18]}, "lr": {"range": [0.01, 0.05], "step": 0.01}}
    wanted = settings(free, sampler={"kind": "pbt", "resample": 0, "quantile": 0.5}, trials=60)

    def results(suggestion: Suggestion) -> TrialRow:
        row = evaluated(suggestion.number, suggestion.config, drop=float(suggestion.config[LR]))
        return row.measured(1.0, (1, 1), 1.0, (1, 1))

    moved = 0
    for row in run(wanted, results=results):
        assert row.config["recover.training.batch_size"] in (16, 17, 18)
        assert row.config[LR] in (0.01, 0.02, 0.03, 0.04, 0.05)
        before = trained_before(row.config)
        moved += bool(before) and before[-1][LR] != row.config[LR]
    assert moved > 5


def test_a_config_that_goes_on_is_a_plan_with_a_recovery_for_each_generation() -> None:
    wanted = settings()
    values: list[Config] = [{LR: rate, WEIGHT: 0.3} for rate in (0.1, 0.05, 0.02)]
    first, second, third = values
    config = going_on(going_on(first, second), third)
    plan = plan_of(config, wanted)
    assert [step.kind for step in plan] == ["prune_channels", "recover", "recover", "recover"]
    assert [step.training.lr for step in plan[1:]] == [0.1, 0.05, 0.02]  # type: ignore[union-attr]
    assert name_of(config, wanted) == "lr=0.02 weight=0.3 generation=3"
    assert displayed(config) == {**third, "generation": 3}
    assert displayed(third) == third
    assert len({variant_key(one, wanted) for one in (config, third, going_on(first, third))}) == 3


def test_free_values_that_exclude_each_other_are_passed_over() -> None:
    free = {"patience": {"choice": [None, 2]}, "sparsify": {"choice": [None, {"amount": 0.5}]}}
    wanted = settings(free)

    def same(suggestion: Suggestion) -> TrialRow:
        row = evaluated(suggestion.number, suggestion.config, drop=0.001 * suggestion.number)
        return row.measured(1.0, (1, 1), 1.0, (1, 1))

    for seed in range(6):
        rows = run(wanted, seed, results=same)
        assert len(rows) == 18
        assert all(plan_of(row.config, wanted) for row in rows)


def test_asking_before_telling_and_telling_the_wrong_rows_is_refused() -> None:
    study = PopulationStudy(settings(), 0)
    batch = study.ask()
    with pytest.raises(SearchError, match="before"):
        study.ask()
    with pytest.raises(SearchError, match="do not match"):
        study.tell([result(batch[0])])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"batch": 1}, "the batch is the population: at least 2, got 1"),
        ({"siblings": 1}, "remove siblings and early_stop"),
        ({"early_stop": {"kind": "median"}}, "remove siblings and early_stop"),
        ({"overlap": True}, "remove overlap"),
        ({"cheapest_of": 2}, "remove it"),
        ({"free": {"lr": 0.1}}, "values are free"),
        ({"free": {"epochs": {"choice": [1, 2]}}}, "but not epochs"),
        ({"space": {"plan": [{"kind": "recover"}, {"kind": "recover"}]}}, "one step 'recover'"),
        ({"space": {"plan": [{"kind": "clip", "percentile": {"choice": [99, 98]}}]}}, "one step 'recover'"),
    ],
)
def test_what_a_population_cannot_compare_is_refused(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        settings(changed.pop("free", FREE), **changed)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    return job_over_a_tiny_model(tmp_path_factory.mktemp("population"), settings(trials=8, batch=4))


def copied(job: TrialJob, folder: Path) -> TrialJob:
    """The job in a store of its own."""
    Store(job.store).copy_artifact(job.parent, Store(folder))
    return job.model_copy(update={"store": str(folder)})


def measured(rows: Sequence[TrialRow]) -> list[TrialRow]:
    return [row.measured(1.0, (1, 1), 1.0, (1, 1)) for row in rows]


def searched(job: TrialJob, told: list[tuple[str, EpochReport]], most: int | None = None) -> BatchSearch:
    """The search by hand, as a driver does it; killed when `most` trials ended."""
    store = Store(job.store)
    search = BatchSearch(
        PopulationStudy(job.search, job.seed),
        to_row=lambda suggestion, outcome: trial.row_of(suggestion.number, suggestion.config, outcome, job),
        lookup=lambda config: trial.known(store, job, config),
        measure=measured,
        on_event=lambda _: None,
        ledger=Ledger(store, trial.study_settings(job)),
    )
    number = 0
    while number != most and (config := search.suggest(str(number))) is not None:
        name = variant_key(config, job.search)
        trial.evaluate(job, config, lambda report, name=name: told.append((name, report)))  # type: ignore[misc]
        search.on_trial_complete(str(number))
        number += 1
    return search


def test_a_child_goes_on_with_its_donors_weights_and_its_manifest_says_so(
    job: TrialJob, tmp_path: Path
) -> None:
    mine, told = copied(job, tmp_path / "store"), list[tuple[str, EpochReport]]()
    rows = searched(mine, told).rows
    assert [row.status for row in rows] == ["ok"] * 8
    # A trial trains its own generation and no other: the donor's is in the store.
    assert [report.epoch for _, report in told] == [0] * 4 + [1] * 4
    store = Store(mine.store)
    replaced = [
        (row, child)
        for row, child in zip(rows[:4], rows[4:], strict=True)
        if own(row.config) != own(child.config)
    ]
    assert len(replaced) == 1
    ((loser, child),) = replaced
    assert loser.drop == max(row.drop for row in rows[:4])
    donor = min(rows[:4], key=lambda row: (row.drop, row.number))
    manifest = store.manifest(child.digest)
    plan = plan_of(child.config, mine.search)
    assert manifest.plan == plan
    assert plan[:-1] == store.manifest(donor.digest).plan
    # Made with a rate of nearly nothing the child is its donor: that is where its first epoch started.
    still = mine.model_copy(
        update={"search": settings({**FREE, "lr": {"range": [1e-12, 0.3], "log": True}}, trials=8, batch=4)}
    )
    held = trial.evaluate(still, going_on(donor.config, {**own(donor.config), LR: 1e-12}))
    assert held.metric == donor.metric
    assert held.metric != loser.metric
    # The plan alone, in a store of its own, gives the same artifact: what the manifest says is what happened.
    other = copied(job, tmp_path / "other")
    assert trial.evaluate(other, child.config).digest == child.digest
    assert rebuild(store, child.digest).manifest.plan[-1] == plan[-1]


def test_the_search_itself_trains_a_population(job: TrialJob, tmp_path: Path) -> None:
    """Its trials are in the store: no Ray is running here, and none is started."""
    mine = copied(job, tmp_path / "store")
    rows = searched(mine, []).rows
    (parent,) = measured([trial.parent_row(mine, "teacher")])
    found, arms, _ = run_search(
        mine,
        parent,
        measure=measured,
        on_event=lambda _: None,
        storage=tmp_path,
        connect=lambda: pytest.fail("asked for a cluster"),
    )
    assert [untimed(row) for row in found] == [untimed(row) for row in rows]
    assert not arms


@pytest.mark.parametrize("most", [2, 5])
def test_a_search_that_was_killed_goes_on_with_the_same_population(
    job: TrialJob, tmp_path: Path, most: int
) -> None:
    whole = searched(copied(job, tmp_path / "whole"), [])
    mine = copied(job, tmp_path / "killed")
    first, second = list[tuple[str, EpochReport]](), list[tuple[str, EpochReport]]()
    searched(mine, first, most)
    again = searched(mine, second)
    assert [untimed(row) for row in again.rows] == [untimed(row) for row in whole.rows]
    assert len(first) == most
    assert len(second) == 8 - most
    assert not {name for name, _ in first} & {name for name, _ in second}
