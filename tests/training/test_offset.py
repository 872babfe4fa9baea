"""Boosting's stages trained in this process: each makes the training loss of the sum smaller."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from orchestrator.config.data import CustomData
from orchestrator.config.groups import nth_seed
from orchestrator.config.measure import Metric
from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.run import ModelEntry
from orchestrator.config.signature import Signature, Task
from orchestrator.config.training import Augment, Sample, Training
from orchestrator.data.dataset import Dataset, Part
from orchestrator.data.load import load
from orchestrator.ensemble.boost import Progress
from orchestrator.runtime.execute import load as load_executable
from orchestrator.runtime.execute import predict
from orchestrator.store.store import Store
from orchestrator.training.batches import Views
from orchestrator.training.fitting import fit, signature_of, stage_caches
from orchestrator.training.job import TrainJob
from orchestrator.training.offset import Offset, of_stage
from orchestrator.training.sampling import out_of_bag
from tests.training.toy import FEATURES, QUICK, VALUES, digest, module_of, part, run

HERE = "tests.training.test_offset"
SMALL = Mlp(kwargs=MlpKwargs(widths=(8,)))


def waves(task: Task) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows that a few small layers do not learn at once."""
    inputs = np.random.default_rng(0).uniform(-2, 2, size=(400, 2)).astype(np.float32)
    wave = np.sin(3 * inputs[:, 0]) + np.cos(2 * inputs[:, 1])
    if task == "regression":
        return inputs, np.stack([50 + 10 * wave, 0.1 * wave * inputs[:, 0]], axis=1).astype(np.float32)
    return inputs, np.digitize(wave, [-0.6, 0.6])


def images(task: Task) -> tuple[NDArray[Any], NDArray[Any]]:
    del task
    rows = np.random.default_rng(0).integers(0, 256, size=(200, 1, 8, 8)).astype(np.uint8)
    return rows, np.digitize(rows.mean(axis=(1, 2, 3)), [120, 135])


def world(
    folder: Path,
    task: Task,
    rows: str = "waves",
    model: ModelSettings = SMALL,
    **training: Any,
) -> tuple[Dataset, Store, TrainJob]:
    path = f"{HERE}:{rows}"
    data = CustomData(dataset=path, kwargs={"task": task}, task=task)
    dataset = load(data, seed=0, cache=folder / "cache", allowed=(path,))
    settings = Training(**{"epochs": 20, "batch_size": 32, "optimizer": "adamw", "lr": 0.03, **training})
    job = TrainJob(
        name="weak",
        entry=ModelEntry(model=model, training=settings),
        data_folder=str(dataset.folder),
        store=str(folder / "store"),
        seed=0,
        metric=Metric(name="rmse" if task == "regression" else "nll"),
    )
    return dataset, Store(folder / "store"), job


def outputs_of(store: Store, artifact: str, rows: Part) -> NDArray[np.float32]:
    return predict(load_executable(store, artifact, "eager", threads=1, batch=32), rows.inputs)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_training_loss_falls_at_every_stage(task: Task, tmp_path: Path) -> None:
    dataset, store, job = world(tmp_path, task)
    rows, before, losses = dataset.part("train"), [(fit(job, store, lambda _: None), 1.0)], []
    total = Progress.of(outputs_of(store, before[0][0], rows), rows.targets, task)
    for _ in range(3):
        losses.append(total.loss)
        found = fit(replace(job, before=tuple(before)), store, lambda _: None)
        outputs = outputs_of(store, found, rows)
        factor = 0.5 * total.step(outputs)
        total = total.after(outputs, factor)
        before.append((found, factor))
    losses.append(total.loss)
    assert all(later < earlier for earlier, later in itertools.pairwise(losses)), losses
    assert losses[-1] < 0.9 * losses[0], losses
    assert len({artifact for artifact, _ in before}) == 4
    assert store.manifest(before[-1][0]).parents == tuple(artifact for artifact, _ in before[:-1])


def test_reports_are_about_the_whole_sum(tmp_path: Path) -> None:
    """A stage that hardly learns has the metric of the sum before it, not that of chance."""
    dataset, store, job = world(tmp_path, "regression")
    first = fit(job, store, lambda _: None)
    alone = Progress.of(
        outputs_of(store, first, dataset.part("validation")), dataset.part("validation").targets, "regression"
    )
    still = job.entry.training.model_copy(update={"epochs": 1, "lr": 1e-9})
    told: list[float] = []
    idle = replace(job, entry=job.entry.model_copy(update={"training": still}), before=((first, 1.0),))
    stage = fit(idle, store, lambda report: told.append(report.metric))
    total = alone.after(outputs_of(store, stage, dataset.part("validation")), 1.0)
    rmse = np.sqrt(np.square(total.total - dataset.part("validation").targets).mean())
    assert told == [pytest.approx(rmse, rel=1e-4)]


def test_a_stage_of_a_regression_is_a_model_of_residuals() -> None:
    """The same weights as a training on targets less what was said before."""
    said = np.random.default_rng(5).normal(size=(70, 2)).astype(np.float32) * [30, 0.06] + [100, -5]
    rows, later = part(VALUES), part(VALUES, 50, seed=1)
    on_validation = np.full((50, 2), 2.0, np.float32)
    signature, settings = of_stage(VALUES), QUICK.model_copy(update={"lr": 0.01, "optimizer": "adamw"})
    kept = Offset(Views(1, lambda _: said.astype(np.float32)), Views(1, lambda _: on_validation))
    reports, boosted = run(
        module_of(signature), signature, settings, train=rows, validation=later, teacher=kept
    )
    residuals = Part(rows.inputs, (rows.targets - said).astype(np.float32), rows.ids)
    shifted = Part(later.inputs, later.targets - on_validation, later.ids)
    others, plain = run(module_of(signature), signature, settings, train=residuals, validation=shifted)
    for name, tensor in boosted.weights.items():
        torch.testing.assert_close(tensor, plain.weights[name], rtol=1e-3, atol=1e-4)
    assert reports[-1].metric == pytest.approx(others[-1].metric, rel=1e-3)


def test_a_sum_that_says_nothing_changes_nothing() -> None:
    nothing = Offset(
        Views(1, lambda _: np.zeros((70, 3), np.float32)), Views(1, lambda _: np.zeros((50, 3), np.float32))
    )
    plain, added = run(module_of(FEATURES), FEATURES), run(module_of(FEATURES), FEATURES, teacher=nothing)
    assert digest(added[1].weights) == digest(plain[1].weights)
    assert [report.metric for report in added[0]] == [report.metric for report in plain[0]]


def test_the_key_follows_the_stages_before_and_is_the_old_one_without(tmp_path: Path) -> None:
    _, _, job = world(tmp_path, "regression")
    assert "before" not in job.settings()
    one, other = (replace(job, before=(("a" * 64, factor),)) for factor in (1.0, 0.5))
    assert len({job.key(), one.key(), other.key()}) == 3
    assert TrainJob.from_plain(one.plain()) == one


def test_each_view_has_its_own_sum(tmp_path: Path) -> None:
    small = Cnn(kwargs=CnnKwargs(channels=(4, 4), hidden=8))
    augment = Augment(flip=True, views=2)
    dataset, store, job = world(tmp_path, "classification", "images", small, epochs=2, augment=augment)
    first = fit(job, store, lambda _: None)
    stage = replace(job, before=((first, 1.0), (first, 0.5)))
    fit(stage, store, lambda _: None)
    caches = stage_caches(stage, store, dataset, torch.device("cpu"))
    assert caches is not None
    offset, own = caches.offset(), caches.train[0][0].outputs()
    assert (offset.train.count, offset.validation.count) == (2, 1)
    for view in range(2):
        np.testing.assert_allclose(offset.train.read(view), 1.5 * own.read(view), rtol=1e-5)
    assert not np.array_equal(offset.train.read(0), offset.train.read(1))
    expected = 1.5 * outputs_of(store, first, dataset.part("validation"))
    np.testing.assert_allclose(offset.validation.read(0), expected, rtol=1e-5, atol=1e-5)  # not rounded


def test_values_of_a_stage_lie_around_zero(tmp_path: Path) -> None:
    dataset, _, job = world(tmp_path, "regression")
    assert signature_of(job, dataset) == dataset.signature
    own: Signature = signature_of(replace(job, before=(("a" * 64, 1.0),)), dataset)
    assert own.target_mean == (0.0, 0.0)
    assert own.target_std == dataset.signature.target_std


def test_each_stage_draws_other_rows(tmp_path: Path) -> None:
    _, store, job = world(tmp_path, "classification", epochs=1, sample={"share": 0.5, "replacement": False})
    first = fit(job, store, lambda _: None)
    stage = replace(job, before=((first, 1.0),))
    assert (job.sample_seed, stage.sample_seed) == (job.seed, nth_seed(job.seed, 2))
    assert stage.settings()["sample_seed"] == stage.sample_seed
    assert "sample_seed" not in job.settings()
    second = fit(stage, store, lambda _: None)
    assert store.manifest(second).what["sample_seed"] == stage.sample_seed
    assert "sample_seed" not in store.manifest(first).what


def test_the_rows_of_a_stage_are_those_that_its_own_seed_draws() -> None:
    """Labels outside of them change nothing, in the rows that the training's seed would draw they do."""
    settings, rows = QUICK.model_copy(update={"sample": Sample()}), part(FEATURES)
    nothing = Offset(
        Views(1, lambda _: np.zeros((70, 3), np.float32)), Views(1, lambda _: np.zeros((50, 3), np.float32))
    )

    def weights(wrong: NDArray[np.int64]) -> str:
        targets = rows.targets.copy()
        targets[wrong] = (targets[wrong] + 1) % 3
        changed = replace(rows, targets=targets)
        more = {"train": changed, "teacher": nothing, "seed": 3, "sample_seed": 8}
        return digest(run(module_of(FEATURES), FEATURES, settings, **more)[1].weights)

    unchanged = weights(np.empty(0, np.int64))
    assert weights(out_of_bag(70, Sample(), 8)) == unchanged
    assert weights(out_of_bag(70, Sample(), 3)) != unchanged
