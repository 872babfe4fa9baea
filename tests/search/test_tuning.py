"""A trial that trains, without Ray: resumed, stopped, failed, and known to ordinary trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.run import ModelEntry
from orchestrator.config.search import Halving
from orchestrator.config.tuning import TrainingSearch
from orchestrator.data.load import load
from orchestrator.errors import TrainingError
from orchestrator.search import trial, tuning
from orchestrator.search.best import best_of
from orchestrator.search.ledger import Ledger
from orchestrator.search.objectives import TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.ray_search import _study, run_search
from orchestrator.search.space import Config, name_of
from orchestrator.search.study import BatchStudy
from orchestrator.search.tuning import TuneJob, training_of
from orchestrator.store.store import Store
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob
from orchestrator.training.state import EpochReport
from tests.search.rows import measured, parent

ENTRY = ModelEntry.model_validate(
    {
        "model": {"factory": "mlp", "kwargs": {"widths": [16]}},
        "training": {"epochs": 3, "batch_size": 64, "lr": 0.05},
    }
)
SEARCH = TrainingSearch.model_validate(
    {
        "trials": 4,
        "batch": 2,
        "space": {
            "model": {"kwargs": {"widths": {"choice": [[16], [24]]}}},
            "training": {"lr": {"choice": [0.05, 0.1, 1e9]}},
        },
    }
)


def config(widths: str = "[24]", lr: float = 0.1) -> Config:
    return {"model.kwargs.widths": widths, "training.lr": lr}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TuneJob:
    folder = tmp_path_factory.mktemp("tuning")
    dataset = load(EmbeddedData(limit=300), seed=0, cache=folder / "cache")
    store = Store(folder / "store")
    base = TrainJob("teacher", ENTRY, str(dataset.folder), str(store.root), 0, Metric())
    return TuneJob(
        search=SEARCH,
        parent=store.stage(base.key(), lambda: fit(base, store, lambda _: None)),
        store=str(store.root),
        data_folder=str(dataset.folder),
        data_digest=dataset.digest,
        metric=Metric(),
        seed=0,
        entry=ENTRY,
    )


def test_a_job_crosses_processes_as_plain_values(job: TuneJob) -> None:
    assert TuneJob.model_validate(job.plain()) == job


def test_a_trial_trains_what_its_config_says(job: TuneJob) -> None:
    epochs: list[EpochReport] = []
    outcome = trial.evaluate(job, config(), epochs.append)
    store = Store(job.store)
    manifest = store.manifest(outcome.digest)
    assert manifest.model.plain()["kwargs"]["widths"] == [24]
    assert outcome.curve == tuple(report.metric for report in epochs)
    assert (outcome.execution, outcome.failure, len(epochs)) == ("eager", "", 3)
    assert outcome.drop == pytest.approx(trial.parent_row(job, "teacher").metric - outcome.metric)
    # A run file with that entry finds it in the store.
    assert store.stage_result(training_of(job, config()).key()) == outcome.digest
    assert trial.known(store, job, config()) == outcome
    row = trial.row_of(0, config(), outcome, job)
    assert (row.name, row.violations) == ("widths=[24] lr=0.1", {})
    assert [step["kind"] for step in row.plan] == ["model", "training"]
    assert row.plan[1]["lr"] == 0.1


def test_the_model_as_it_is_is_not_trained_again(job: TuneJob) -> None:
    outcome = trial.evaluate(job, config("[16]", 0.05), lambda _: pytest.fail("trained"))
    assert (outcome.digest, outcome.drop) == (job.parent, 0)


def test_a_trial_goes_on_after_its_last_epoch(job: TuneJob) -> None:
    seen: list[int] = []

    def dies(report: EpochReport) -> None:
        seen.append(report.epoch)
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial.evaluate(job, config("[24]", 0.05), dies)
    trained: list[float] = []
    outcome = trial.evaluate(job, config("[24]", 0.05), lambda report: trained.append(report.seconds))
    assert seen == [0, 1]
    assert len(outcome.curve) == len(trained) == 3, "what was trained before is told again"
    assert not list((Store(job.store).root / "checkpoints").rglob("*.safetensors"))
    wanted, store = training_of(job, config("[24]", 0.05)), Store(job.store)
    assert fit(wanted, store, lambda _: None) == outcome.digest, "as without the death"


def test_a_loss_that_explodes_is_a_failed_trial(job: TuneJob) -> None:
    outcome = trial.evaluate(job, config(lr=1e9))
    assert "not finite" in outcome.failure
    row = trial.row_of(1, config(lr=1e9), outcome, job)
    assert row.status == "failed"
    assert row.plan[1]["lr"] == 1e9


def test_of_a_training_that_fails_for_good_no_epoch_is_kept(job: TuneJob) -> None:
    def fails(report: EpochReport) -> None:
        if report.epoch == 1:
            raise TrainingError("the loss is not finite in epoch 2 of 3")

    assert "not finite" in trial.evaluate(job, config("[16]", 0.1), fails).failure
    assert Store(job.store).blobs.list("checkpoints") == []


def test_a_trial_can_be_stopped(job: TuneJob) -> None:
    search = job.search.model_copy(update={"early_stop": Halving()})
    halving = job.model_copy(update={"search": search, "seed": 1})
    outcome = trial.evaluate(halving, config(), goes_on=lambda report: report.epoch < 2)
    assert (outcome.stopped, len(outcome.curve)) == (True, 2)
    assert outcome.cost == 64 * 24 + 24 * 10
    assert trial.known(Store(job.store), halving, config()) == outcome


def test_a_trial_that_is_stopped_by_what_it_trained_before_leaves_no_checkpoint(job: TuneJob) -> None:
    search = job.search.model_copy(update={"early_stop": Halving()})
    halving = job.model_copy(update={"search": search, "seed": 3})
    kept = Store(job.store).root / "checkpoints"

    def dies(report: EpochReport) -> None:
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial.evaluate(halving, config(), dies)
    assert list(kept.rglob("*.safetensors"))
    outcome = trial.evaluate(halving, config(), goes_on=lambda _: False)
    assert (outcome.stopped, outcome.epochs) == (True, (1,))
    assert not list(kept.rglob("*.safetensors"))


def test_an_outcome_whose_cost_had_another_unit_is_not_taken(
    job: TuneJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 kept four times the operations: beside new trials it would be nobody's rival."""
    store = Store(job.store)
    other = job.model_copy(update={"seed": 2})
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_VERSION", 1)
        store.stage_value(trial.trial_key(other, config()), lambda: Outcome(cost=4.0).plain())
        assert trial.known(store, other, config()) is not None
    assert trial.known(store, other, config()) is None


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize(
    ("factory", "kwargs", "count"),
    [
        ("resnet", {"depth": {"range": [8, 26]}}, 4),
        ("vit", {"dim": {"choice": [32, 40]}, "heads": {"choice": [4, 16]}}, 3),
    ],
)
def test_free_values_that_make_no_model_are_passed_over(
    job: TuneJob, factory: str, kwargs: dict[str, object], count: int, sampler: str
) -> None:
    search = {"trials": 8, "sampler": sampler, "space": {"model": {"factory": factory, "kwargs": kwargs}}}
    resnets = job.model_copy(update={"search": TrainingSearch.model_validate(search)})
    batch = _study(resnets).ask()
    assert len(batch) == count
    for suggestion in batch:
        training_of(resnets, suggestion.config)


def test_a_finished_search_needs_no_cluster(job: TuneJob, tmp_path: Path) -> None:
    def ready(row: TrialRow) -> TrialRow:
        return row.measured(1.0 + row.number, (0.9, 1.1), 1.0, (0.9, 1.1))

    study = BatchStudy(job.search, job.seed)
    while batch := study.ask():
        outcomes = [trial.evaluate(job, suggestion.config) for suggestion in batch]
        rows = [
            trial.row_of(suggestion.number, suggestion.config, outcome, job)
            for suggestion, outcome in zip(batch, outcomes, strict=True)
        ]
        study.tell([row if row.status == "failed" else ready(row) for row in rows])
    before = trial.parent_row(job, "teacher").measured(1.0, (0.9, 1.1), 1.0, (1.0, 1.0))
    found, arms, _ = run_search(
        job,
        before,
        measure=lambda rows: [ready(row) for row in rows],
        on_event=lambda _: None,
        storage=tmp_path,
        connect=lambda: pytest.fail("asked for a cluster"),
    )
    assert (len(found), arms) == (4, [])
    assert len({name_of(row.config, job.search) for row in found}) == 4
    assert Ledger(Store(job.store), trial.study_settings(job)).rows() == found


def test_the_best_is_best_in_the_metric_within_the_limits() -> None:
    search = SEARCH.model_copy(update={"max_latency_ms": 3.0})
    rows = [
        measured(number, drop=drop, latency=latency).limited(search)
        for number, (drop, latency) in enumerate([(-0.05, 4.0), (-0.02, 2.0), (-0.02, 1.0), (0.01, 0.5)])
    ]
    best = best_of(rows, parent(), search, "accuracy")
    assert best.row.number == 2
    assert best.reason.startswith("v2 reaches accuracy 0.9200 on the rows that chose it (0.0200 better than")
    # The parent takes 4 ms: any trial within the limit is better than nothing.
    assert best_of(rows[3:], parent(), search, "accuracy").row.number == 3
    # Without a limit it has to be beaten.
    worse = [measured(0, drop=0.01).limited(SEARCH)]
    assert best_of(worse, parent(), SEARCH, "accuracy").row == parent()
    assert "beats the model as it is" in best_of(worse, parent(), SEARCH, "accuracy").reason
    strict = search.model_copy(update={"max_latency_ms": 0.1})
    none = best_of([row.limited(strict) for row in rows], parent(), strict, "accuracy")
    assert none.row == parent()
    assert none.reason.startswith("none qualifies: no trial stays within its limits; nearest were: v3")
    failed = best_of([rows[3].limited(strict), measured(9).failed("died")], parent(), strict, "accuracy")
    assert "v9" not in failed.reason
