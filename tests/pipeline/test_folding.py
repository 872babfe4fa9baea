"""Stacks on out-of-fold outputs: no row is told to the meta-learner by a model that was trained on it.

The models are trained in this process, by the code that Ray's workers run; the pipeline finds them finished.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.config.ensemble import Member, Stacking
from orchestrator.config.groups import fold_name
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.ensemble.fit import fit as fit_tree
from orchestrator.ensemble.tree import replay
from orchestrator.errors import EnsembleError, ModelError
from orchestrator.pipeline import training
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.ensembling import fit_ensemble
from orchestrator.pipeline.folding import _jobs, held_out, out_of_fold_outputs
from orchestrator.progress import Progress
from orchestrator.training.fitting import fit, train_rows

HERE = "tests.pipeline.test_folding"
FOLDS = 3


def coins() -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels that have nothing to do with the rows."""
    random = np.random.default_rng(0)
    return random.normal(size=(300, 24)).astype(np.float32), random.integers(0, 2, 300)


def no_cluster() -> None:
    raise AssertionError("Ray was asked for")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose trainings are all finished: two members that know their train rows by heart."""
    folder = tmp_path_factory.mktemp("folding")
    recipe = {"epochs": 40, "batch_size": 32, "optimizer": "adamw", "lr": 0.03, "weight_decay": 0}
    values = {
        "name": "coins",
        "data": {"kind": "custom", "dataset": f"{HERE}:coins"},
        "models": {
            name: {"model": {"factory": "mlp", "kwargs": {"widths": [width]}}, "training": recipe}
            for name, width in (("heart", 96), ("other", 64))
        },
        "ensembles": {
            "stack": {
                "kind": "sequential",
                "policy": "stacking",
                "members": ["heart", "other"],
                "folds": FOLDS,
            }
        },
        "serving": None,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        config = validate(RunConfig, values, "coins.yaml")
        found = open_run(config, store=str(folder / "store"), progress=Progress(), cluster=no_cluster)
    jobs = [training.job_of(found, name, entry, {}) for name, entry in config.models.items()]
    for job in [*jobs, *(job for name in config.models for job in _jobs(found, name, FOLDS))]:
        found.store.stage(job.key(), partial(fit, job, found.store, lambda _: None))
    return found


def digest_of(run: Run, name: str, fold: int) -> str:
    digest = run.store.stage_result(_jobs(run, name, FOLDS)[fold].key())
    assert digest is not None
    return digest


def members(run: Run) -> dict[str, Member]:
    return {name: Member(name=name, digest=digest) for name, digest in training.train(run).items()}


def stack_of(run: Run) -> Stacking:
    found = members(run)
    return Stacking(policy="stacking", members=tuple(found.values()), folds=FOLDS)


def test_every_row_is_answered_by_a_model_whose_training_rows_are_without_it(run: Run) -> None:
    """The manifest holds a digest of the rows that a model was trained on."""
    part = run.dataset.part("train")
    outputs, _ = out_of_fold_outputs(run, stack_of(run))
    seen = np.zeros(len(part), dtype=int)
    for fold in range(FOLDS):
        digest = digest_of(run, "heart", fold)
        ids = train_rows(_jobs(run, "heart", FOLDS)[fold], run.dataset).ids
        recorded = run.store.manifest(digest).what["rows"]
        assert recorded == hashlib.sha256(np.sort(ids).astype("<i8").tobytes()).hexdigest()
        own = run.outputs(Member(name="fold", digest=digest), "train")
        (mine,) = (output for member, output in outputs.items() if member.name == "heart")
        without = ~np.isin(part.ids, ids)
        np.testing.assert_array_equal(mine[without], own[without])
        assert not np.array_equal(mine[~without], own[~without])
        seen += without
    assert (seen == 1).all(), "each row is left out by one model"


def test_a_model_that_saw_a_row_of_its_fold_is_refused(run: Run) -> None:
    digests = [digest_of(run, "heart", fold) for fold in range(FOLDS)]
    held_out(run, digests)
    with pytest.raises(EnsembleError, match="fold 1 was not trained on the rows of the other folds alone"):
        held_out(run, [digests[1], digests[0], digests[2]])
    whole = training.train(run)["heart"]
    with pytest.raises(EnsembleError, match="fold 3 was not trained"):
        held_out(run, [*digests[:2], whole])


def test_members_that_memorised_random_labels_are_not_believed(run: Run) -> None:
    """On their own train rows they are nearly always right: a stack fitted on that is sure of nonsense."""
    part, test = run.dataset.part("train"), run.dataset.part("test")
    tree, metric = stack_of(run), run.config.metric
    said = {member: run.outputs(member, "train") for member in members(run).values()}
    assert all((output.argmax(axis=1) == part.targets).mean() > 0.9 for output in said.values())
    leaking = fit_tree(tree.model_copy(update={"folds": None}), said, part.targets, metric, "classification")
    spec, _ = fit_ensemble(run, "stack", members(run))
    honest = spec.tree
    assert isinstance(honest, Stacking)
    assert isinstance(leaking, Stacking)
    assert honest.out_of_fold == pytest.approx(0.5, abs=0.12)
    assert leaking.out_of_fold is not None
    assert leaking.out_of_fold > 0.9
    on_test = {member: run.outputs(member, "test") for member in members(run).values()}
    losses = [
        -replay(found, on_test, "classification").scores[np.arange(len(test)), test.targets].mean()
        for found in (honest, leaking)
    ]
    assert losses[0] < 0.85, losses
    assert losses[1] > losses[0] + 0.3, losses


def test_trainings_without_a_fold_have_names_and_keys_of_their_own(run: Run) -> None:
    jobs = _jobs(run, "heart", FOLDS)
    whole = training.job_of(run, "heart", run.config.models["heart"], {})
    assert [job.name for job in jobs] == [fold_name("heart", fold, FOLDS) for fold in range(FOLDS)]
    assert jobs[2].name == "heart-fold-3-of-3"
    assert len({whole.key(), *(job.key() for job in jobs)}) == FOLDS + 1
    assert "fold" not in whole.settings()
    assert type(jobs[0]).from_plain(jobs[0].plain()) == jobs[0]


def test_factories_of_trainings_for_an_ensemble_are_imported_before_ray_starts(run: Run) -> None:
    """The file's own factories count as allowed; one that cannot be imported is told in a sentence."""
    for factory, said in ((f"{HERE}:absent", "has no callable absent"), ("no.such:thing", "cannot import")):
        models = {"own": {"model": {"factory": factory}}, **run.config.plain()["models"]}
        config = validate(RunConfig, {**run.config.plain(), "models": models}, "coins.yaml")
        other = replace(run, config=config)
        stage = training.job_of(other, "boosted-2", config.models["own"], {})
        with pytest.raises(ModelError, match=said):
            training.trained(other, [replace(stage, before=(("a" * 64, 1.0),))])
    allowed = {"own": {"model": {"factory": f"{HERE}:coins"}}}
    config = validate(RunConfig, {**run.config.plain(), "models": allowed, "ensembles": {}}, "coins.yaml")
    other = replace(run, config=config)
    with pytest.raises(AssertionError, match="Ray was asked for"):
        training.trained(other, [training.job_of(other, "own", config.models["own"], {})])
