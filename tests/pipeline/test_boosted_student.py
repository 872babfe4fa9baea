"""A boosting is made on demand, a student learns from it, stages are judged as sums (no Ray is started)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.config.ensemble import Boosting, Member, leaves
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.ensemble.tree import replay
from orchestrator.measure.metrics import score
from orchestrator.pipeline.assembling import Assembly
from orchestrator.pipeline.compressing import _job, make_variant
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.ensembling import fit_ensemble
from orchestrator.pipeline.explaining import ensemble_figures
from orchestrator.pipeline.training import job_of, train
from orchestrator.progress import Progress
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob

NET = {"factory": "mlp", "kwargs": {"widths": [8]}}
QUICK = {"epochs": 2, "batch_size": 64, "lr": 0.05}
STUDENT = {
    "kind": "distill",
    "model": NET,
    "ensemble": "boosted",
    "training": {"epochs": 1, "loss": {"kind": "distillation"}},
}


def run_of(folder: Path, **changed: object) -> Run:
    values: dict[str, object] = {
        "name": "toy",
        "data": {"kind": "embedded", "limit": 300},
        "models": {"weak": {"model": NET, "training": {**QUICK, "sample": {"share": 0.8}}}},
        "variants": {"pupil": {"parent": "weak", "plan": [STUDENT]}},
        "ensembles": {
            "average": {"kind": "parallel", "members": ["weak", "pupil"]},  # needs what stands below it
            "boosted": {
                "kind": "sequential",
                "policy": "boosting",
                "base": "weak",
                "rounds": 2,
                "shrinkage": 0.5,
            },
        },
        **changed,
    }
    config = validate(RunConfig, values, "toy.yaml")
    return open_run(
        config, store=str(folder / "store"), progress=Progress(), cluster=lambda: pytest.fail("Ray")
    )


def test_a_student_is_made_after_the_boosting_that_it_learns_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    run = run_of(tmp_path)

    def done(job: TrainJob) -> str:
        return run.store.stage(job.key(), lambda: fit(job, run.store, lambda _: None))

    entry = run.config.models["weak"]
    weak = done(job_of(run, "weak", entry, {}))
    stage = done(replace(job_of(run, "boosted-2", entry, {}), before=((weak, 1.0),)))
    digests = train(run)
    assert digests == {"weak": weak}
    _, boosted = fit_ensemble(run, "boosted", {"weak": Member(name="weak", digest=weak)})
    made = make_variant(_job(run, "pupil", run.config.variants["pupil"], digests | {"boosted": boosted}))

    members, specs = Assembly(run, digests, {}, None).all()
    assert members["pupil"].digest == made
    assert run.store.manifest(made).parents == (weak, boosted)
    assert run.store.ref("toy/boosted-2") == stage
    assert [leaf.digest for leaf in leaves(specs["average"].tree)] == [weak, made]
    tree = specs["boosted"].tree
    assert isinstance(tree, Boosting)
    assert [member.digest for member in tree.members] == [weak, stage]


def test_a_stage_of_a_regression_is_judged_by_the_sum_up_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    waves = {"dataset": "tests.training.test_offset:waves", "kwargs": {"task": "regression"}}
    training = {"epochs": 3, "batch_size": 32, "optimizer": "adamw", "lr": 0.03}
    run = run_of(
        tmp_path,
        data={"kind": "custom", "task": "regression", **waves},
        models={"weak": {"model": NET, "training": training}},
        variants={},
        ensembles={"boosted": {"kind": "sequential", "policy": "boosting", "base": "weak", "rounds": 2}},
    )
    job = job_of(run, "weak", run.config.models["weak"], {})
    weak = run.store.stage(job.key(), lambda: fit(job, run.store, lambda _: None))
    later = replace(job, name="boosted-2", before=((weak, 1.0),))
    run.store.stage(later.key(), lambda: fit(later, run.store, lambda _: None))
    spec, _ = fit_ensemble(run, "boosted", {"weak": Member(name="weak", digest=weak)})
    assert isinstance(spec.tree, Boosting)
    first, second = spec.tree.train_losses or ()
    assert second < first

    outputs = {member: run.outputs(member, "test") for member in spec.tree.members}
    prediction = replay(spec.tree, outputs, "regression")
    truth = run.dataset.part("test").targets
    alone, both = ensemble_figures(run, spec, prediction)["contributions"]["members"]
    assert alone["metric"] == pytest.approx(
        score(run.config.metric, run.outputs(spec.tree.members[0], "test"), truth)
    )
    assert both["metric"] == pytest.approx(score(run.config.metric, prediction.outputs, truth))
