"""Batches: fixed size, no repeats, the same suggestions for the same results."""

from __future__ import annotations

import dataclasses
import random

import pytest
from optuna.trial import TrialState

from orchestrator.config.measure import Metric
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.config.steps import first_out_of_order, work_of
from orchestrator.errors import SearchError
from orchestrator.search.objectives import TrialRow
from orchestrator.search.ray_search import _study
from orchestrator.search.space import plan_of, training_prefix, variant_key
from orchestrator.search.study import BatchStudy, Suggestion
from orchestrator.search.trial import TrialJob
from tests.search.rows import evaluated
from tests.search.spaces import amount_of, pruned, small, whole


def result(suggestion: Suggestion) -> TrialRow:
    """A made-up trade-off: pruning loses accuracy and time, each precision has its price."""
    amount = amount_of(suggestion.config)
    precision = str(suggestion.config["precision"])
    price = {"fp32": 0.0, "bf16": 0.001, "int8_static": 0.01, "int8_dynamic": 0.02}
    takes = {"fp32": 4.0, "bf16": 2.0, "int8_static": 1.5, "int8_dynamic": 3.0}
    latency = (1 - amount) * takes[precision]
    row = evaluated(suggestion.number, suggestion.config, drop=0.05 * amount**2 + price[precision])
    if suggestion.config.get("prune_channels.criterion") == "fpgm" and amount == 0.5:
        return row.failed("cannot be pruned")
    return row.measured(latency, (latency, latency), 4 / latency, (4 / latency, 4 / latency))


def run(settings: SearchSettings, seed: int, shuffle: random.Random | None = None) -> list[Config]:
    study, configs = BatchStudy(settings, seed), []
    while batch := study.ask():
        rows = [result(suggestion) for suggestion in batch]
        if shuffle:
            shuffle.shuffle(rows)
        study.tell(rows)
        configs += [suggestion.config for suggestion in batch]
    return configs


SAMPLERS = ["tpe", "nsga2", "random", "grid"]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_suggestions_repeat_whatever_the_order_of_results(sampler: str) -> None:
    settings = SearchSettings.model_validate({"trials": 18, "batch": 4, "sampler": sampler})
    first = run(settings, seed=3)
    assert len(first) == 18
    assert run(settings, seed=3, shuffle=random.Random(1)) == first
    assert (run(settings, seed=4) == first) == (sampler == "grid")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_larger_budget_extends_a_search(sampler: str) -> None:
    short, long = (
        run(SearchSettings.model_validate({"trials": trials, "batch": 4, "sampler": sampler}), seed=1)
        for trials in (10, 20)
    )
    assert long[:10] == short


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_variant_is_suggested_twice(sampler: str) -> None:
    settings = SearchSettings.model_validate({"trials": 28, "batch": 4, "sampler": sampler})
    keys = [variant_key(config, settings) for config in run(settings, seed=0)]
    assert len(keys) == len(set(keys)) == 28


def test_a_used_up_space_ends_the_search() -> None:
    settings = SearchSettings(trials=30, batch=4, space=small([0.5], ["l1", "l2"]))
    # 2 whole ones, 2 criteria x 2 precisions.
    assert len(run(settings, seed=0)) == 6


def test_the_first_suggestions_are_plain() -> None:
    configs = run(SearchSettings(trials=12, batch=4), seed=0)
    assert configs[:5] == [
        whole(),
        pruned(0.25),
        *(whole(precision) for precision in ("bf16", "int8_static", "int8_dynamic")),
    ]


def test_a_grid_is_gone_through_in_order() -> None:
    settings = SearchSettings(trials=12, batch=4, sampler="grid", space=small())
    assert run(settings, seed=0) == [
        whole(),
        whole("bf16"),
        *(pruned(amount, precision=name) for amount in (0.25, 0.5) for name in ("fp32", "bf16")),
    ]


def test_batches_have_the_fixed_size_and_the_last_what_is_left() -> None:
    study, sizes = BatchStudy(SearchSettings(trials=10, batch=4), seed=0), []
    while batch := study.ask():
        sizes.append(len(batch))
        study.tell([result(suggestion) for suggestion in batch])
    assert sizes == [4, 4, 2]


def test_a_continuous_space_works() -> None:
    space = small({"range": [0.1, 0.6]}, precisions=("fp32",), whole=False)
    amounts = list(map(amount_of, run(SearchSettings(trials=12, batch=4, space=space), seed=0)))
    assert len(set(amounts)) == 12
    assert all(0.1 <= amount <= 0.6 for amount in amounts)


def test_asking_before_telling_and_telling_the_wrong_rows_is_refused() -> None:
    study = BatchStudy(SearchSettings(), seed=0)
    batch = study.ask()
    with pytest.raises(SearchError, match="before"):
        study.ask()
    with pytest.raises(SearchError, match="do not match"):
        study.tell([result(batch[0])])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_trial_that_was_stopped_early_is_told_as_pruned(sampler: str) -> None:
    study = BatchStudy(SearchSettings.model_validate({"batch": 4, "trials": 24, "sampler": sampler}), seed=0)
    told = 0
    while batch := study.ask():
        rows = [result(suggestion) for suggestion in batch]
        stopped = dataclasses.replace(rows[0], status="stopped", epochs=2)
        study.tell([stopped, *rows[1:]])
        told += not batch[0].shares  # one that shares a training that is stopped ends with it
    pruned_trials = [trial for trial in study.trials if trial.state == TrialState.PRUNED]
    assert [trial.user_attrs["epochs"] for trial in pruned_trials] == [2] * told


def test_every_limit_is_a_constraint_of_its_own() -> None:
    settings = SearchSettings(batch=2, trials=2, max_latency_ms=3.0, max_bytes=50)
    study = BatchStudy(settings, seed=0)
    rows = [result(suggestion).limited(settings) for suggestion in study.ask()]
    study.tell(rows)
    found = study.trials[0].constraints
    assert found == pytest.approx({"max_drop": -0.01, "max_latency_ms": 1 / 3, "max_bytes": 1.0})
    assert not rows[0].feasible


def test_a_gaussian_process_repeats_extends_and_bears_stopped_trials() -> None:
    """One short search: each of its suggestions takes a good part of a second."""

    def gp(trials: int) -> list[Config]:
        settings = SearchSettings.model_validate({"trials": trials, "batch": 5, "sampler": "gp"})
        study, configs = BatchStudy(settings, 1), []
        while batch := study.ask():
            rows = [result(suggestion) for suggestion in batch]
            study.tell([dataclasses.replace(rows[0], status="stopped", epochs=1), *rows[1:]])
            configs += [suggestion.config for suggestion in batch]
        return configs

    assert gp(12)[:11] == gp(11)


def test_tpe_keeps_to_the_constraint_more_than_random() -> None:
    """Only amounts up to about 0.6 keep the drop; pruning more is always faster."""
    space = small({"range": [0.05, 0.95]}, precisions=("fp32",), whole=False)

    def feasible(name: str) -> int:
        settings = SearchSettings.model_validate(
            {"trials": 40, "batch": 4, "sampler": name, "space": space.plain()}
        )
        found = [config for seed in range(2) for config in run(settings, seed)[20:]]
        return sum(result(Suggestion(0, config)).feasible for config in found)

    assert feasible("tpe") > 1.2 * feasible("random")


def with_siblings(**changed: object) -> SearchSettings:
    space = small(
        {"range": [0.1, 0.6]}, criteria=("l1", "l2"), precisions=("fp32", "bf16", "int8_static"), whole=False
    )
    given = {"trials": 24, "batch": 6, "siblings": 3, "space": space, "promise": {"max_drop": 0.05}}
    return SearchSettings.model_validate({**given, **changed})


def test_siblings_share_a_trained_parent_and_differ_after_it() -> None:
    settings = with_siblings()
    configs = run(settings, seed=0)
    assert len({variant_key(config, settings) for config in configs}) == 24
    trained = [training_prefix(config, settings) for config in configs]
    for begin in range(0, 24, 6):
        # The first batch, too: its own trainings are shared.
        assert sum(trained[place] not in trained[:place] for place in range(begin, begin + 6)) == 3


def test_a_suggestion_tells_what_it_trains_and_who_shares_that() -> None:
    settings = with_siblings()
    study, seen = BatchStudy(settings, 0), set[str]()
    while batch := study.ask():
        for suggestion in batch:
            assert len(suggestion.trainings) == 1
            assert suggestion.shares == seen.issuperset(suggestion.trainings)
            seen.update(suggestion.trainings)
        study.tell([result(suggestion) for suggestion in batch])
    # Without a training there is nothing to share.
    first = BatchStudy(SearchSettings.model_validate({"siblings": 1}), 0).ask()[0]
    assert first.config["prune_channels"] == "none"
    assert (first.trainings, first.shares) == ((), False)


def test_siblings_never_train() -> None:
    recover = {"kind": "recover", "training": {"epochs": 1, "lr": {"range": [0.01, 0.1]}}}
    quantized = {"kind": "qat", "training": {"epochs": {"choice": [1, 2]}}}
    ends = [None, {"kind": "bf16"}, [quantized, {"kind": "int8_static"}]]
    space = {
        "plan": [{"kind": "prune_channels", "amount": 0.5}, recover, {"choice": ends, "name": "precision"}]
    }
    settings = with_siblings(space=space, batch=8, siblings=6, trials=32)
    study = BatchStudy(settings, 0)
    seen, shares, further = set[str](), 0, 0
    while batch := study.ask():
        for suggestion in batch:
            *before, last = suggestion.trainings
            assert suggestion.shares == seen.issuperset(suggestion.trainings)
            assert suggestion.shares or last not in seen
            further += bool(before)
            shares += suggestion.shares
            seen.update(suggestion.trainings)
        study.tell([evaluated(one.number, one.config).measured(1, (1, 1), 1, (1, 1)) for one in batch])
    assert shares
    assert further, "quantization that trains goes on from a recovery and is a training of its own"


def test_a_training_that_no_value_decides_is_shared_by_all() -> None:
    space = {
        "plan": [
            {"kind": "prune_channels", "amount": 0.5, "rounds": 2, "recovery": {"epochs": 1}},
            {"kind": "recover"},
            {"choice": [None, {"kind": "bf16"}, {"kind": "int8_static"}]},
        ]
    }
    batch = BatchStudy(with_siblings(space=space, siblings=1, batch=3), 0).ask()
    assert [suggestion.shares for suggestion in batch] == [False, True, True]
    assert {len(suggestion.trainings) for suggestion in batch} == {2}, "between the rounds, and after them"


def test_half_of_the_siblings_go_to_the_best_of_earlier_batches() -> None:
    clip = {"choice": [None, {"kind": "clip", "method": {"choice": ["mse", "percentile"]}}]}
    first, last = with_siblings().space.plain()["plan"]
    settings = with_siblings(batch=8, siblings=6, trials=40, space={"plan": [first, clip, last]})
    study, before, best = BatchStudy(settings, 0), set[str](), list[int]()
    while batch := study.ask():
        own = {name for one in batch for name in one.trainings} - before
        best.append(sum(before.issuperset(one.trainings) for one in batch))
        before |= own
        study.tell([result(suggestion) for suggestion in batch])
    assert best[0] == 0
    assert all(count >= 3 for count in best[1:])


def test_the_first_trainings_are_drawn_at_random() -> None:
    """A sampler would know one training alone, that of all plain baselines, and suggest what is near it."""
    settings = with_siblings(trials=24)
    trained = {str(training_prefix(config, settings)): amount_of(config) for config in run(settings, seed=0)}
    baseline, *drawn = list(trained.values())[:9]
    assert baseline == 0.1
    assert len(set(drawn)) == 8
    assert max(drawn) - min(drawn) > 0.2


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_siblings_repeat_whatever_the_order_of_results_and_extend(sampler: str) -> None:
    first = run(with_siblings(sampler=sampler), seed=3)
    assert run(with_siblings(sampler=sampler), seed=3, shuffle=random.Random(1)) == first
    assert run(with_siblings(sampler=sampler, trials=10), seed=3) == first[:10]


def test_parents_without_another_end_leave_room_for_news() -> None:
    # One number type: nothing follows the training but what is fixed.
    space = small({"range": [0.1, 0.6]}, precisions=("fp32",), whole=False)
    settings = with_siblings(space=space, trials=12)
    assert len({variant_key(config, settings) for config in run(settings, seed=0)}) == 12


def test_batches_that_overlap_are_suggested_without_the_last_results() -> None:
    settings = with_siblings(overlap=True)
    study = BatchStudy(settings, 0)
    first, second = study.ask(), study.ask()
    with pytest.raises(SearchError, match="before the last one was told"):
        study.ask()
    with pytest.raises(SearchError, match="do not match the batch"):
        study.tell([result(suggestion) for suggestion in second])
    study.tell([result(suggestion) for suggestion in first])
    assert len(study.ask()) == 6
    assert first == BatchStudy(with_siblings(), 0).ask(), "only the next ones differ"


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_of_several_suggestions_the_one_that_trains_least_is_taken(sampler: str) -> None:
    def works(cheapest_of: int | None) -> list[float]:
        space = small(
            {"range": [0.1, 0.9]}, precisions=("fp32", "bf16"), training={"epochs": {"choice": [1, 8]}}
        )
        settings = SearchSettings.model_validate(
            {"trials": 40, "batch": 4, "sampler": sampler, "space": space, "cheapest_of": cheapest_of}
        )
        configs = run(settings, seed=0)
        assert len({variant_key(config, settings) for config in configs}) == 40
        assert sum(config["prune_channels"] == "none" for config in configs) == 2, "all that train nothing"
        return [work_of(plan_of(config, settings)) for config in configs]

    # TPE finds out by itself that much pruning is good here.
    assert sum(works(3)) < 0.9 * sum(works(None))


def test_a_grid_has_no_cheaper_suggestion() -> None:
    with pytest.raises(ValueError, match="remove it"):
        SearchSettings.model_validate({"sampler": "grid", "cheapest_of": 2})


def test_siblings_need_room_and_a_sampler() -> None:
    with pytest.raises(ValueError, match=r"siblings \(6\) must be fewer than the batch \(6\)"):
        with_siblings(siblings=6)
    with pytest.raises(ValueError, match="grid"):
        SearchSettings.model_validate({"sampler": "grid", "siblings": 1})


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_an_endless_space_is_never_used_up(sampler: str) -> None:
    """A sampler that suggests what it knows already is helped out by chance."""
    space = small({"range": [0.1, 0.9]}, ["l1", "l2", "lamp"], ("fp32", "bf16", "int8_static"))
    settings = SearchSettings.model_validate(
        {"trials": 40, "batch": 4, "sampler": sampler, "space": space.plain()}
    )
    assert len(run(settings, seed=0)) == 40


def test_a_combination_out_of_order_is_left_out() -> None:
    trained = [{"kind": "prune_channels", "amount": 0.5}, {"kind": "recover", "training": {"epochs": 1}}]
    plan = [{"choice": [None, trained]}, {"choice": [None, {"kind": "factorize", "energy": 0.9}]}]
    settings = SearchSettings.model_validate({"space": {"plan": plan}, "trials": 4, "batch": 4})
    job = TrialJob(
        search=settings, parent="a" * 64, store="", data_folder="", data_digest="", metric=Metric(), seed=0
    )
    asked = _study(job).ask()
    assert len(asked) == 3
    assert all(first_out_of_order(plan_of(one.config, settings)) is None for one in asked)


def test_a_combination_that_is_no_plan_is_left_out() -> None:
    """Each option was checked when the file was read, but not all of them together."""
    step = {
        "kind": "prune_channels",
        "amount": {"choice": [0.25, 0.5]},
        "shares": {"choice": [{}, {"body*": 0.25}]},
        "rounds": {"choice": [1, 2]},
    }
    space = {"plan": [step, {"choice": [None, {"kind": "bf16"}], "name": "precision"}]}
    for sampler in ("tpe", "random", "grid"):
        settings = SearchSettings.model_validate(
            {"trials": 30, "batch": 4, "sampler": sampler, "space": space}
        )
        assert len(run(settings, seed=0)) == 12, "of 16 configs 4 have shares and rounds"
