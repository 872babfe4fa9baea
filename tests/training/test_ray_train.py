"""Training on a small local Ray: teachers, faults, resume, several workers, refusals."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from torch import Tensor, nn
from torch.nn import functional

from orchestrator.compression.plan import apply_plan
from orchestrator.compression.step import Context
from orchestrator.config.data import CustomData
from orchestrator.config.measure import Metric
from orchestrator.config.model import ImportedModel, Mlp, MlpKwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16
from orchestrator.config.training import CustomLoss, DistillationLoss, MutualLoss, Resources, Training
from orchestrator.data.load import load
from orchestrator.errors import ConfigError, ResourceError, TrainingError
from orchestrator.models.build import build
from orchestrator.runtime.rebuild import rebuild, tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training import fit_actor
from orchestrator.training.fitting import fit
from orchestrator.training.ray_train import TrainJob, train_models
from orchestrator.training.state import EpochReport
from tests.pipeline.toys import flip

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HERE = "tests.training.test_ray_train"
ROWS = f"{HERE}:rows"
BROKEN = f"{HERE}:broken"
MODEL = Mlp(kwargs=MlpKwargs(widths=(16,)))
TRAINING = Training(epochs=3, batch_size=16, lr=0.05)


def rows(seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, 200)
    centres = np.random.default_rng(9).normal(size=(3, 6)) * 2
    return (centres[labels] + random.normal(size=(200, 6))).astype(np.float32), labels


def dies_once(outputs: Tensor, targets: Tensor, marker: str, storage: str) -> Tensor:
    """Kills the process in the second epoch, when Ray knows of the first one's checkpoint; no other time."""
    steps = Path(marker)
    count = int(steps.read_text()) + 1 if steps.exists() else 1
    steps.write_text(str(count))
    if count == 12:
        while not list(Path(storage).glob("killed-*/checkpoint_manager_snapshot.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    return functional.cross_entropy(outputs, targets)


class _Broken(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2 and not torch.is_grad_enabled():
            raise RuntimeError("out of order")
        return super().forward(x)


def broken(signature: Signature) -> nn.Module:
    """Fails when it is asked for its outputs."""
    return _Broken(signature.input_shape[0], signature.outputs)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.1")
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.getcwd())
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield
        ray.shutdown()


class World:
    """A store, a data set and a place for checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, folder / "runs"
        self.store = Store(folder / "store")
        data = CustomData(dataset=ROWS)
        self.data = load(data, seed=0, cache=folder / "cache", allowed=(ROWS,))
        self.events: list[tuple[str, EpochReport | str]] = []

    def job(self, name: str, training: Training = TRAINING, **entry: Any) -> TrainJob:
        allowed = (training.loss.loss,) if isinstance(training.loss, CustomLoss) else ()
        return TrainJob(
            name=name,
            entry=ModelEntry(model=MODEL, training=training, **entry),
            data_folder=str(self.data.folder),
            store=str(self.folder / "store"),
            seed=0,
            metric=Metric(),
            allowed=allowed,
        )

    def train(self, *jobs: TrainJob, **options: Any) -> dict[str, str]:
        self.events.clear()
        return train_models(
            list(jobs), storage=self.storage, on_event=lambda *event: self.events.append(event), **options
        )

    def teacher(self, seed: int) -> str:
        """Digest of an artifact that cannot run."""
        settings, signature = ImportedModel(factory=BROKEN), self.data.signature
        module = build(settings, signature, allowed=(BROKEN,), seed=seed)
        draft = Draft(model=settings, signature=signature, data="toy", seed=seed)
        return self.store.put_artifact(draft, tensors_of(module))

    def epochs(self, name: str) -> list[int]:
        return [event.epoch for who, event in self.events if who == name and isinstance(event, EpochReport)]

    def record(self, digest: str) -> dict[str, Any]:
        return next(record for record in self.store.records(digest) if record["kind"] == "training")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def distilled(**changes: Any) -> Training:
    return TRAINING.model_copy(update={"loss": DistillationLoss(), **changes})


def test_a_student_waits_for_its_teacher_and_a_second_call_trains_nothing(world: World) -> None:
    jobs = [world.job("student", distilled(), teacher="teacher"), world.job("teacher")]
    digests = world.train(*jobs)

    assert list(digests) == ["student", "teacher"]
    assert world.store.manifest(digests["student"]).parents == (digests["teacher"],)
    what = world.store.manifest(digests["teacher"]).what
    assert {"threads": 1, "world": 1, "precision": "fp32", "torch": torch.__version__}.items() <= what.items()
    assert what["isa"]
    assert world.epochs("teacher") == world.epochs("student") == [0, 1, 2]
    assert [epoch["epoch"] for epoch in world.record(digests["teacher"])["epochs"]] == [0, 1, 2]
    test = world.data.part("test")
    for digest in digests.values():
        module = rebuild(world.store, digest).module
        with torch.no_grad():
            answers = module(torch.from_numpy(np.array(test.inputs))).argmax(dim=1).numpy()
        assert (answers == test.targets).mean() > 0.85

    begun = time.monotonic()
    assert world.train(*jobs) == digests
    assert time.monotonic() - begun < 3
    assert world.epochs("teacher") == []

    with pytest.raises(ConfigError, match=r"'teacher' was trained .* training.epochs: 3 -> 4.*--fresh"):
        world.train(world.job("teacher", TRAINING.model_copy(update={"epochs": 4})))

    small = apply_plan(world.store, digests["teacher"], (Bf16(),), Context(seed=0))
    taught = world.train(replace(world.job("taught", distilled(), teacher="small"), teacher_digest=small))[
        "taught"
    ]
    assert world.store.manifest(taught).parents == (small,)


def test_a_killed_worker_goes_on_and_ends_with_the_same_weights(world: World, tmp_path: Path) -> None:
    def training(marker: str) -> Training:
        kwargs = {"marker": str(tmp_path / marker), "storage": str(world.storage)}
        loss = CustomLoss(loss=f"{HERE}:dies_once", kwargs=kwargs)
        return TRAINING.model_copy(update={"loss": loss})

    (tmp_path / "calm").write_text("1000")
    digests = world.train(world.job("calm", training("calm")), world.job("killed", training("killed")))

    assert int((tmp_path / "killed").read_text()) == 12 + 2 * 8  # steps of epochs 2 and 3 after the kill
    assert world.epochs("killed") == [0, 1, 2]  # the finished epoch is not repeated
    calm, killed = (world.store.tensors(digests[name]) for name in ("calm", "killed"))
    assert all(torch.equal(calm[name], killed[name]) for name in calm)


def test_one_failure_leaves_the_others_and_is_named(world: World) -> None:
    explodes = TRAINING.model_copy(update={"lr": 1e30, "warmup": 0.0})
    jobs = [
        world.job("wild", explodes),
        world.job("pupil", distilled(), teacher="wild"),
        world.job("calm"),
    ]
    with pytest.raises(TrainingError, match=r"2 of 3.*wild: the loss is not finite.*pupil: its teacher"):
        world.train(*jobs)
    assert world.epochs("calm") == [0, 1, 2]
    assert world.store.stage_result(jobs[2].key()) is not None


def test_a_training_of_several_models_runs_once(world: World) -> None:
    """Snapshots, models trained together, and snapshots of a training that fails."""
    cycles = TRAINING.model_copy(update={"epochs": 2, "snapshots": 2})
    wild = cycles.model_copy(update={"lr": 1e30, "warmup": 0.0})
    tied = TRAINING.model_copy(update={"epochs": 1, "loss": MutualLoss()})
    base = {
        "snaps": world.job("snaps", cycles),
        "wild": world.job("wild", wild),
        "pair": world.job("pair", tied, copies=2),
    }
    jobs = [
        replace(job, name=own, entry=entry)
        for name, job in base.items()
        for own, entry in job.entry.models(name, job.seed).items()
    ]
    with pytest.raises(
        TrainingError, match=r"2 of 6.*wild-1: the loss is not .*wild-2: the training of 'wild'"
    ):
        world.train(*jobs)
    assert world.epochs("snaps-1") + world.epochs("snaps-2") == [0, 1]
    assert world.epochs("pair-1") + world.epochs("pair-2") == [0]

    whole = [job for job in jobs if job.group != "wild"]
    digests = world.train(*whole)
    assert [event for _, event in world.events if isinstance(event, EpochReport)] == []
    assert len(set(digests.values())) == 4
    assert {world.record(digest)["name"] for digest in digests.values()} == set(digests)
    # In this process, without Ray Train, the same models come out.
    again = Store(world.folder / "again")
    for job in whole[::2]:
        fit(replace(job, store=str(again.root)), again, lambda _: None)
    assert set(again.digests()) == set(digests.values())


def test_two_workers_learn_like_one(world: World) -> None:
    """The elastic one asks for up to three: it takes what the cluster has."""
    asked = {"elastic": {"workers": [1, 3]}, "sharded": {"workers": 2, "strategy": "fsdp"}}
    jobs = [world.job(name, resources=Resources.model_validate(given)) for name, given in asked.items()]
    digests = world.train(*jobs, world.job("alone"))

    alone = world.store.tensors(digests["alone"])
    metrics = [epoch["metric"] for epoch in world.record(digests["alone"])["epochs"]]
    for name, strategy in (("elastic", "ddp"), ("sharded", "fsdp")):
        assert "2 workers x 1 core" in next(str(event) for who, event in world.events if who == name)
        assert world.epochs(name) == [0, 1, 2]
        what = world.store.manifest(digests[name]).what
        assert (what["world"], what["strategy"]) == (2, strategy)
        # The same rows in the same steps: the gradients differ by rounding alone.
        both = world.store.tensors(digests[name])
        for key in alone:
            torch.testing.assert_close(both[key], alone[key], rtol=1e-3, atol=1e-4)
        found = [epoch["metric"] for epoch in world.record(digests[name])["epochs"]]
        assert found == pytest.approx(metrics, abs=0.11)


def test_a_teacher_that_fails_on_one_worker_ends_them_all(world: World) -> None:
    """One whose file is damaged, and one that cannot run; only the first worker meets that."""
    digests = {name: world.teacher(seed) for seed, name in enumerate(("damaged", "broken"))}
    (weights,) = (world.store.root / "artifacts" / digests["damaged"]).glob("*.safetensors")
    weights.chmod(0o644)
    flip(weights)
    resources = Resources.model_validate({"workers": 2, "max_failures": 0})
    jobs = [
        replace(
            world.job(f"of_{name}", distilled(), teacher=name, resources=resources),
            teacher_digest=digest,
            allowed=(BROKEN,),
        )
        for name, digest in digests.items()
    ]
    with pytest.raises(TrainingError) as caught:
        world.train(*jobs)
    (told,) = str(caught.value).splitlines()
    assert "failed for 2 of 2 models: of_damaged: weights.safetensors of the artifact is damaged" in told
    assert "of_broken: its workers failed once: RuntimeError: out of order" in told


@pytest.mark.parametrize(
    ("resources", "numbers"),
    [
        ({"cpus": 64}, r"1 x 64 CPUs; the cluster has 2 CPUs, and its nodes hold: 0"),
        ({"workers": 3}, r"3 x 1 CPUs"),
        ({"gpus": 1}, r"1 x 1 GPUs with 1 CPUs; the cluster has 0 GPUs and 2 CPUs, and its nodes hold: 0"),
    ],
)
def test_an_impossible_request_is_refused_at_once(
    world: World, resources: dict[str, Any], numbers: str
) -> None:
    begun = time.monotonic()
    with pytest.raises(ResourceError, match=numbers):
        world.train(world.job("calm"), world.job("huge", resources=Resources.model_validate(resources)))
    assert time.monotonic() - begun < 2
    assert world.events == []


# Last: what the lost process started keeps its cores while this Ray lives.
def test_the_loss_of_the_process_that_guides_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    start = fit_actor.start

    def remembered(*arguments: Any) -> Any:
        opened.append(start(*arguments))
        return opened[-1]

    monkeypatch.setattr(fit_actor, "start", remembered)
    jobs = [world.job(name, resources=Resources(cpus=2)) for name in ("first", "second")]

    def told(name: str, event: EpochReport | str) -> None:
        if name == "first" and "starts" in str(event):
            ray.kill(opened[0])

    with pytest.raises(TrainingError, match=r"failed for 2 of 2 models: first: the process that guides"):
        train_models(jobs, storage=world.storage, on_event=told)
