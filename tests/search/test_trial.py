"""A trial over the real store, data and steps, on a model that nobody trained."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.config.measure import Execution
from orchestrator.config.search import Halving, SearchSettings
from orchestrator.config.space import grid
from orchestrator.errors import CompressionError, ExecutionError, SearchError, UnavailableError
from orchestrator.runtime import graphs, int8
from orchestrator.runtime.outputs import outputs_on
from orchestrator.search import trial
from orchestrator.search.arms import BF16, COMPILED, arm_of, config_of
from orchestrator.search.early_stop import Report
from orchestrator.search.ledger import Ledger
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.ray_search import _arms, run_search
from orchestrator.search.space import variant_key
from orchestrator.search.study import BatchStudy
from orchestrator.search.trial import TrialJob
from orchestrator.store.store import Store
from orchestrator.training.state import EpochReport
from tests.search.jobs import job_over_a_tiny_model
from tests.search.spaces import pruned, small, whole

WHOLE = whole()
PRUNED = pruned(0.5)
INT8 = pruned(0.5, precision="int8_static")
TRAINING = {"epochs": 3, "batch_size": 64, "lr": 0.02, "loss": {"kind": "distillation"}}
SPACE = small((0.25, 0.5), ("l2", "l1", "lamp"), ("fp32", "bf16", "int8_static"), training=TRAINING)
SMALL = small((0.5,), training=TRAINING)


def measured(row: TrialRow) -> TrialRow:
    return row.measured(1.0 + row.number, (0.9, 1.1), 1.0, (0.9, 1.1))


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> TrialJob:
    settings = SearchSettings(space=SPACE, executions=("lowered", "eager"))
    return job_over_a_tiny_model(tmp_path_factory.mktemp("trial"), settings)


def test_a_job_crosses_processes_as_plain_values(job: TrialJob) -> None:
    assert TrialJob.model_validate(job.plain()) == job


def test_only_a_study_whose_trainings_mean_something_else_now_is_another(job: TrialJob) -> None:
    for training, other in (
        (None, False),
        (TRAINING, False),
        ({**TRAINING, "epochs": {"choice": [1, 2]}}, False),
        ({"choice": [TRAINING, {**TRAINING, "epochs": 1}]}, False),
        ({"epochs": 3}, True),
        ({"choice": [TRAINING, {"epochs": 1}]}, True),
    ):
        search = SearchSettings(space=small((0.5,), training=training))
        found = trial.study_settings(job.model_copy(update={"search": search}))
        assert ("trainings" in found) == other, training


def test_the_unchanged_variant_is_the_parent_without_a_drop(job: TrialJob) -> None:
    outcome = trial.evaluate(job, WHOLE)
    parent = trial.parent_row(job, "teacher")
    assert outcome.digest == job.parent == parent.digest
    assert outcome.metric == parent.metric
    assert outcome.drop == 0
    assert 0 < outcome.drop_bound < 0.2
    assert (parent.number, parent.execution, parent.name) == (PARENT, "eager", "teacher")


def test_a_trial_is_run_once_and_then_known(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(job.store)
    assert trial.known(store, job, INT8) is None
    outcome = trial.evaluate(job, INT8)
    assert outcome.failure == ""
    assert outcome.bytes == store.artifact_bytes(outcome.digest) < store.artifact_bytes(job.parent)
    assert store.manifest(outcome.digest).plan[-1].kind == "int8_static"
    monkeypatch.setattr(trial, "apply_plan", lambda *_: pytest.fail("computed again"))
    assert trial.evaluate(job, INT8) == outcome
    assert trial.known(store, job, INT8) == outcome
    other = job.model_copy(update={"seed": 1})
    assert trial.known(store, other, INT8) is None


def test_a_trial_on_a_gpu_is_another_than_on_the_processor(job: TrialJob) -> None:
    """As the plan's own stage: it trains other bits there."""
    card = job.model_copy(update={"search": job.search.model_copy(update={"gpus": 0.5})})
    both = card.model_copy(update={"search": card.search.model_copy(update={"gpus": 1})})
    assert trial.trial_key(card, PRUNED) != trial.trial_key(job, PRUNED)
    assert trial.trial_key(card, PRUNED) == trial.trial_key(both, PRUNED)


def test_int8_that_the_compiler_refuses_runs_lowered(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def outputs(store: Store, digest: str, execution: Execution, *rest: Any, **more: Any) -> Any:
        asked.append(execution)
        if execution == "aoti":
            raise ExecutionError("AOTInductor runs 0 of 3 layers in int8", "aoti", "run the variant lowered")
        return outputs_on(store, digest, execution, *rest, **more)

    monkeypatch.setattr(trial, "outputs_on", outputs)
    compiled = job.model_copy(
        update={"search": job.search.model_copy(update={"executions": ("aoti", "lowered", "eager")})}
    )
    outcome = trial.evaluate(compiled, INT8)
    assert outcome.execution == "lowered"
    assert asked[:2] == ["aoti", "lowered"]
    assert trial.row_of(1, INT8, outcome, compiled).execution == "lowered"


def test_what_the_machine_lacks_is_no_property_of_a_variant(
    job: TrialJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run eager without a compiler, a variant is run again, compiled, where there is one."""
    there = False

    def outputs(store: Store, digest: str, execution: Execution, *rest: Any, **more: Any) -> Any:
        if execution == "aoti" and not there:
            raise UnavailableError("no C++ compiler was found", "aoti", "install g++, or run eager")
        return outputs_on(store, digest, "eager" if execution == "aoti" else execution, *rest, **more)

    monkeypatch.setattr(trial, "outputs_on", outputs)
    search, store = job.search.model_copy(update={"executions": ("aoti", "eager")}), Store(job.store)
    full = job.model_copy(update={"search": search, "lacking": (), "seed": 5})
    without = full.model_copy(update={"lacking": ("aoti",)})
    config = whole()
    assert trial.evaluate(without, config).execution == "eager"
    assert trial.known(store, without, config) is not None
    assert trial.known(store, full, config) is None
    with pytest.raises(UnavailableError):  # on a worker: the row is failed, and tried at the next start
        trial.evaluate(full, config)
    there = True
    compiled = trial.evaluate(full, config)
    assert compiled.execution == "aoti"
    assert trial.known(store, full, config) == compiled
    found = trial.known(store, without, config)
    assert found is not None
    assert found.execution == "eager", "what cannot be measured here does not count here"


def test_arms_that_are_compiled_need_a_compiler(job: TrialJob) -> None:
    assert isinstance(job.search, SearchSettings)
    settings = job.search.model_copy(update={"arms": True})
    here = job.model_copy(update={"search": settings, "lacking": ()})
    labels = [arm_of(one.config) for one in _arms(here)]
    assert labels[:2] == [COMPILED, BF16]
    assert [arm_of(one.config) for one in _arms(here.model_copy(update={"lacking": ("aoti",)}))] == labels[2:]


def test_outputs_that_are_not_finite_are_a_result(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(store: Store, digest: str, *rest: Any, **more: Any) -> Any:
        found = outputs_on(store, digest, *rest, **more).copy()
        found[0, 0] = np.nan if digest != job.parent else found[0, 0]
        return found

    monkeypatch.setattr(trial, "outputs_on", outputs)
    other, config = job.model_copy(update={"seed": 5}), whole("bf16")
    outcome = trial.evaluate(other, config)
    assert outcome.failure.startswith("the variant's outputs are not finite")
    assert trial.known(Store(job.store), other, config) == outcome


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_int8_runs_compiled_where_its_kernels_are_kept(job: TrialJob) -> None:
    compiled = job.model_copy(
        update={"search": job.search.model_copy(update={"executions": ("aoti", "lowered", "eager")})}
    )
    config = pruned(0.5, "l1", "int8_static")
    assert trial.row_of(1, config, trial.evaluate(compiled, config), compiled).execution == "aoti"


def test_a_row_carries_the_constraint(job: TrialJob) -> None:
    outcome = trial.evaluate(job, PRUNED)
    row = trial.row_of(4, PRUNED, outcome, job)
    assert (row.number, row.name, row.execution, row.status) == (
        4,
        "amount=0.5 criterion=l2 fp32",
        "eager",
        "evaluated",
    )
    assert row.violations == {"max_drop": pytest.approx(outcome.drop - job.search.promise.max_drop)}
    assert row.bytes < trial.parent_row(job, "teacher").bytes


def test_a_step_that_does_not_fit_is_a_failed_row(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise CompressionError("no channel can be removed", "mlp", "prune less")

    monkeypatch.setattr(trial, "apply_plan", refuse)
    config = pruned(0.25)
    outcome = trial.evaluate(job, config)
    row = trial.row_of(0, config, outcome, job)
    assert row.status == "failed"
    assert row.reason == "no channel can be removed: mlp. prune less."
    # It would fail again, so it is known.
    assert trial.known(Store(job.store), job, config) == outcome


def test_an_error_that_may_pass_is_raised_not_kept(job: TrialJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(trial, "apply_plan", crash)
    config = pruned(0.5, "lamp")
    with pytest.raises(MemoryError):
        trial.evaluate(job, config)
    assert trial.known(Store(job.store), job, config) is None


def test_a_removed_artifact_is_made_again(job: TrialJob, tmp_path: Path) -> None:
    outcome = trial.evaluate(job, PRUNED)
    store = Store(job.store)
    folder = store.root / "artifacts" / outcome.digest
    folder.rename(tmp_path / "moved")
    assert trial.known(store, job, PRUNED) is None
    again = trial.evaluate(job, PRUNED)
    assert again.digest == outcome.digest
    assert store.has(outcome.digest)


def test_a_finished_search_needs_no_cluster(job: TrialJob, tmp_path: Path) -> None:
    """All its trials are in the store: no Ray is running here, and none is started."""
    small = SearchSettings.model_validate(
        {**job.search.plain(), "trials": 6, "batch": 3, "space": SMALL.plain(), "arms": False}
    )
    known = job.model_copy(update={"search": small})
    parent = trial.parent_row(job, "teacher").measured(1.0, (1.0, 1.0), 1.0, (1.0, 1.0))
    study = BatchStudy(small, known.seed)
    while batch := study.ask():
        outcomes = [trial.evaluate(known, suggestion.config) for suggestion in batch]
        study.tell(
            [
                measured(trial.row_of(suggestion.number, suggestion.config, outcome, known))
                for suggestion, outcome in zip(batch, outcomes, strict=True)
            ]
        )
    rows, arms, _ = run_search(
        known,
        parent,
        measure=lambda rows: [measured(row) for row in rows],
        on_event=lambda _: None,
        storage=tmp_path,
        connect=lambda: pytest.fail("asked for a cluster"),
    )
    assert [row.number for row in rows] == list(range(len(rows)))
    assert all(row.ok for row in rows)
    assert not arms
    assert Ledger(Store(known.store), trial.study_settings(known)).rows() == rows
    with pytest.raises(SearchError, match="no latency"):
        run_search(
            known, parent.failed("cannot run"), measure=list, on_event=lambda _: None, storage=tmp_path
        )


def test_a_trial_goes_on_after_its_last_epoch(job: TrialJob) -> None:
    """A worker that dies in an epoch costs that epoch, and the result is the same."""
    config = pruned(0.25, "l1")
    seen: list[int] = []

    def dies(report: EpochReport) -> None:
        seen.append(report.epoch)
        if report.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trial.evaluate(job, config, dies)
    assert seen == [0, 1]
    outcome = trial.evaluate(job, config, lambda report: seen.append(report.epoch))
    assert seen == [0, 1, 2]
    assert outcome.epochs == (3,), "its number, whoever trained the others"
    assert not list((Store(job.store).root / "checkpoints").rglob("*.safetensors"))
    # Made again from nothing, without a death.
    store = Store(job.store)
    for key in [
        key for key in store.blobs.list("stages") if store.blobs.get(key).find(outcome.digest.encode()) > 0
    ]:
        store.blobs.delete(key)
    shutil.rmtree(store.root / "artifacts" / outcome.digest)
    assert trial.evaluate(job, config).digest == outcome.digest


def test_thirty_number_types_over_one_recovered_parent_cost_one_recovery(job: TrialJob) -> None:
    """Prefixes of a plan are stages: what plans have in common is computed once."""
    training = {"epochs": 2, "batch_size": 64, "lr": 0.03, "loss": {"kind": "distillation"}}
    plan = [
        {"kind": "prune_channels", "amount": 0.5},
        {"kind": "recover", "training": training},
        {"kind": "clip", "method": "percentile", "percentile": {"range": [99.0, 99.9], "step": 0.1}},
        {"kind": "int8_static", "observer": {"choice": ["minmax", "histogram", "percentile"]}},
    ]
    search = SearchSettings.model_validate(
        {"space": {"plan": plan}, "sampler": "grid", "executions": ["lowered"]}
    )
    many = job.model_copy(update={"search": search})
    epochs: list[EpochReport] = []
    configs = grid(search.space)
    assert configs is not None
    assert len(configs) == 30
    outcomes = [trial.evaluate(many, config, epochs.append) for config in configs[:6]]
    assert len(epochs) == 2
    assert all(not outcome.failure for outcome in outcomes)


@pytest.mark.slow
def test_early_stop_counts_the_epochs_of_steps_that_another_trial_trained(job: TrialJob) -> None:
    training = {**TRAINING, "epochs": 2}
    plan = [
        {"kind": "recover", "training": training},
        {
            "choice": [
                {"kind": "qat", "to": to, "training": {**training, "epochs": 1}}
                for to in ("int8_weight_only", "int4_weight_only")
            ]
        },
    ]
    search = SearchSettings.model_validate({"space": {"plan": plan}, "early_stop": {"kind": "median"}})
    mine = job.model_copy(update={"search": search})
    reports: list[Report] = []

    def goes_on(report: Report) -> bool:
        reports.append(report)
        return True

    found = [trial.evaluate(mine, config, goes_on=goes_on) for config in grid(search.space) or []]
    assert [outcome.epochs for outcome in found] == [(1, 2, 3), (3,)]
    assert [report.epoch for report in reports] == [1, 2, 3, 3]


@pytest.mark.slow
@pytest.mark.parametrize("recovered", [False, True])
def test_no_epoch_is_judged_before_its_cost_is_known(job: TrialJob, recovered: bool) -> None:
    """Training between the rounds of a pruning comes before the pruned model that a cost is of."""
    training = {**TRAINING, "epochs": 2}
    pruning = {"kind": "prune_channels", "amount": 0.5, "rounds": 2, "recovery": training}
    plan = [pruning, *([{"kind": "recover", "training": training}] if recovered else []), {"kind": "bf16"}]
    search = SearchSettings.model_validate({"space": {"plan": plan}, "early_stop": {"kind": "median"}})
    # Of another seed for each, as no step was trained before.
    mine = job.model_copy(update={"search": search, "seed": 7 + recovered})
    reports: list[Report] = []

    def goes_on(report: Report) -> bool:
        reports.append(report)
        return True

    outcome = trial.evaluate(mine, {}, goes_on=goes_on)
    assert trial.epochs_of(mine, {}) == (4 if recovered else 2)
    pruned_macs = 64 * 16 + 16 * 16 + 16 * 10
    assert outcome.cost == pruned_macs
    assert [(report.epoch, report.cost) for report in reports] == (
        [(3, pruned_macs), (4, pruned_macs)] if recovered else []
    )


@pytest.mark.slow
def test_siblings_are_traced_once_and_are_the_artifacts_that_each_would_be_alone(
    job: TrialJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs that a process keeps save time and change nothing: digests, metrics and bounds are equal."""
    plan = [
        {"kind": "prune_channels", "amount": 0.5},
        {"kind": "recover", "training": {**TRAINING, "epochs": 1}},
        {"choice": [None, {"kind": "clip", "method": "percentile", "percentile": 90.0}]},
        {
            "choice": [
                {"kind": "int8_static", "observer": {"choice": ["minmax", "mse"]}},
                {"kind": "int8_static", "keep_float": ["body.0"]},
                {"kind": "int8_dynamic"},
            ]
        },
    ]
    search = SearchSettings.model_validate({"space": {"plan": plan}, "executions": ["lowered"]})
    configs = grid(search.space)
    assert configs is not None
    calls: Counter[str] = Counter()

    def counted(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            calls[name] += 1
            return work(*given)

        return call

    monkeypatch.setattr(int8, "export", counted("export", int8.export))
    monkeypatch.setattr(int8, "lower", counted("lower", int8.lower))
    outcomes: list[list[Outcome]] = []
    for name, alone in (("alone", True), ("together", False)):
        store = Store(tmp_path / name)
        Store(job.store).copy_artifact(job.parent, store)
        own = job.model_copy(update={"search": search, "store": str(store.root)})
        forget()
        calls.clear()
        outcomes.append([])
        for config in configs:
            if alone:
                forget()
            outcomes[-1].append(trial.evaluate(own, config))
        # Each is lowered to be scored; to see that it has kernels, once for each of three forms.
        assert calls == ({"export": 8, "lower": 16} if alone else {"export": 1, "lower": 8 + 3})
    assert outcomes[0] == outcomes[1]
    assert len({outcome.digest for outcome in outcomes[0]}) == len(configs) == 8


def forget() -> None:
    graphs.TRACED.clear()
    graphs.QUANTIZED.clear()


def test_a_trial_that_is_stopped_is_not_run_again(job: TrialJob) -> None:
    search = job.search.model_copy(update={"early_stop": Halving(), "trials": 99})
    halving = job.model_copy(update={"search": search})
    reports: list[Report] = []

    def stops(report: Report) -> bool:
        reports.append(report)
        return len(reports) < 2

    config = pruned(0.25, "lamp", "bf16")
    outcome = trial.evaluate(halving, config, goes_on=stops)
    assert outcome.stopped
    assert len(outcome.curve) == len(reports) == 2
    assert outcome.epochs == (1, 2)
    assert reports[0].cost > 0
    assert outcome.metric == reports[-1].metric
    assert trial.known(Store(job.store), halving, config) == outcome
    row = trial.row_of(3, config, outcome, halving)
    assert (row.status, row.epochs, row.reason) == ("stopped", 2, "stopped after epoch 2")
    # A study that stops nothing runs it, from the epoch where it was stopped.
    whole_outcome = trial.evaluate(job, config)
    assert whole_outcome.epochs == (1, 2, 3)
    assert whole_outcome.digest
    # Nor does that change what the study that stopped it goes on with.
    assert trial.known(Store(job.store), halving, config) == outcome
    assert trial.evaluate(halving, config) == outcome


def test_an_arm_is_not_stopped_with_the_trial_that_it_equals(job: TrialJob) -> None:
    halving = job.model_copy(update={"search": job.search.model_copy(update={"early_stop": Halving()})})
    arm, store = config_of(BF16), Store(job.store)
    stopped = Outcome(stopped=True, metric=0.5)
    Ledger(store, trial.study_settings(halving)).stop(variant_key(arm, halving.search), stopped.plain())
    assert trial.known(store, halving, arm) is None
