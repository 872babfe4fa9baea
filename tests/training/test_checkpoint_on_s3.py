"""Epochs kept on S3: a storage that refuses for a while, or is away, costs time and never an epoch twice."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
import torch

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.training import Training
from orchestrator.data.load import load
from orchestrator.errors import StoreError
from orchestrator.store.retry import PATIENCE_VARIABLE
from orchestrator.store.store import Store
from orchestrator.training.checkpoint import Checkpoint
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob
from orchestrator.training.state import EpochReport, TrainState
from tests.store.s3_server import served

EPOCHS = 5
AWAY_S = 3.0


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The server's file of faults."""
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch, served(folder) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
        yield folder / "faults"


@pytest.fixture(scope="module")
def calm(faults: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainJob, str]:
    """A job, and the digest of its undisturbed training."""
    del faults
    data = load(EmbeddedData(limit=300), seed=0, cache=tmp_path_factory.mktemp("cache"), allowed=())
    job = TrainJob(
        name="net",
        entry=ModelEntry(
            model=Mlp(kwargs=MlpKwargs(widths=(16,), dropout=0.2)),
            training=Training(epochs=EPOCHS, batch_size=32, lr=0.05),
        ),
        data_folder=str(data.folder),
        store="s3://bucket/calm",
        seed=0,
        metric=Metric(),
    )
    return job, fit(job, Store(job.store), lambda _: None)


@pytest.mark.parametrize("kind", ["down", "away"])
def test_a_training_goes_on_when_the_storage_is_back(
    faults: Path, calm: tuple[TrainJob, str], kind: str
) -> None:
    job, digest = calm
    store, told = Store(f"s3://bucket/{kind}"), list[int]()

    def on_epoch(report: EpochReport) -> None:
        told.append(report.epoch)
        if report.epoch == 1:  # the third epoch's checkpoint finds nobody
            faults.write_text(kind)
            threading.Timer(AWAY_S, faults.unlink).start()

    assert fit(replace(job, store=store.location), store, on_epoch) == digest
    assert told == list(range(EPOCHS))
    assert store.blobs.list("checkpoints") == []
    store.verify(digest)


def test_one_that_gave_up_goes_on_after_its_last_epoch(
    faults: Path, calm: tuple[TrainJob, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job, digest = calm
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.5")
    store, told = Store("s3://bucket/gave-up"), list[int]()

    def on_epoch(report: EpochReport) -> None:
        told.append(report.epoch)
        if len(told) == 3:
            faults.write_text("down")

    with pytest.raises(StoreError, match="check the network and run again"):
        fit(job, store, on_epoch)
    with pytest.raises(StoreError, match="check the network and run again"):
        fit(job, store, on_epoch)  # begins nothing anew while what is kept cannot be read
    assert told == [0, 1, 2]
    faults.unlink()
    assert fit(job, store, on_epoch) == digest
    assert told == [0, 1, 2, *range(EPOCHS)]
    curve = next(record for record in store.records(digest) if record["kind"] == "training")["epochs"]
    assert [epoch["epoch"] for epoch in curve] == list(range(EPOCHS))


def test_a_state_within_an_epoch_comes_after_that_epoch(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = Checkpoint(store, "work")
    for epoch, step in ((3, 0), (3, 20), (4, 0)):
        kept.save(TrainState(epoch=epoch, step=step, model={"w": torch.tensor([epoch, step])}))
        found = kept.load()
        assert found is not None
        assert (found.epoch, found.step, found.model["w"].tolist()) == (epoch, step, [epoch, step])
    assert len(store.blobs.list("checkpoints")) == 2


def test_a_death_between_the_two_files_leaves_the_state_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    kept = Checkpoint(store, "work")
    kept.save(TrainState(epoch=3, model={"w": torch.zeros(1)}))
    store.blobs.put("checkpoints/work/000003-00000020-state.safetensors", b"x")
    found = kept.load()
    assert found is not None
    assert (found.epoch, found.step) == (3, 0)
