"""Ray Train with a store on S3: epochs are kept there, whatever befalls the storage or a worker meanwhile."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import ray
import ray.train
from torch import Tensor
from torch.nn import functional

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.training import CustomLoss, Resources, Training
from orchestrator.data.load import load
from orchestrator.store.store import Store
from orchestrator.training.ray_train import TrainJob, train_models
from orchestrator.training.state import EpochReport
from tests.architecture.modules import ROOT
from tests.store.s3_server import served

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

LOSS = "tests.training.test_ray_train_on_s3:dies_once"
EPOCHS = 4
AWAY_S = 3.0


def dies_once(outputs: Tensor, targets: Tensor, marker: str) -> Tensor:
    """The first worker kills itself in the third epoch, once the second one is kept."""
    if ray.train.get_context().get_world_rank() == 0:
        file = Path(marker)
        if file.exists() and file.read_text() == "2":
            file.write_text("dead")
            os.kill(os.getpid(), signal.SIGKILL)
    return functional.cross_entropy(outputs, targets)


@pytest.fixture
def faults(tmp_path: Path) -> Iterator[Path]:
    """The server's file of faults; Ray runs, and knows of the server."""
    with pytest.MonkeyPatch.context() as patch, served(tmp_path / "s3") as environment:
        wanted = {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_METRICS_ENABLED": "0", "PYTHONPATH": str(ROOT)}
        for name, value in {**environment, **wanted}.items():
            patch.setenv(name, value)
        boto3.session.Session().client("s3").create_bucket(Bucket="bucket")
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield tmp_path / "s3/faults"
        ray.shutdown()


def test_two_workers_go_on_from_the_store(faults: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = load(EmbeddedData(limit=300), seed=0, cache=tmp_path / "cache", allowed=())

    def train(store: str, disturbed: bool) -> tuple[str, list[EpochReport | str]]:
        told: list[EpochReport | str] = []
        Store(store)
        loss = CustomLoss(loss=LOSS, kwargs={"marker": str(marker)})
        job = TrainJob(
            name="net",
            entry=ModelEntry(
                model=Mlp(kwargs=MlpKwargs(widths=(16,), dropout=0.2)),
                training=Training(epochs=EPOCHS, batch_size=32, lr=0.05, loss=loss),
                resources=Resources(workers=2, max_failures=2),
            ),
            data_folder=str(data.folder),
            store=store,
            seed=0,
            metric=Metric(),
            allowed=(LOSS,),
        )

        def on_event(_: str, event: EpochReport | str) -> None:
            told.append(event)
            if disturbed and isinstance(event, EpochReport):
                if event.epoch == 0:
                    faults.write_text("down")
                    threading.Timer(AWAY_S, faults.unlink).start()
                elif event.epoch == 1 and not marker.exists():
                    marker.write_text("2")

        storage = tmp_path / store.rpartition("/")[2]
        found = train_models([job], storage=storage, on_event=on_event)["net"]
        assert list(storage.rglob("checkpoint-*")) == [], "nothing is kept beside the store"
        assert Store(store).blobs.list("checkpoints") == []
        return found, told

    calm, _ = train("s3://bucket/calm", disturbed=False)
    begun = time.monotonic()
    found, told = train("s3://bucket/disturbed", disturbed=True)
    assert found == calm
    assert time.monotonic() - begun > AWAY_S
    assert marker.read_text() == "dead"
    goes_on = [event for event in told if isinstance(event, str) and "goes on after epoch " in event]
    assert len(goes_on) == 1, told
    epochs = [event.epoch for event in told if isinstance(event, EpochReport)]
    assert set(epochs) == set(range(EPOCHS))
    assert len(epochs) <= EPOCHS + 1, "at most one epoch twice"
