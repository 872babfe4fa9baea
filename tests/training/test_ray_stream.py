"""Streams read by Ray Data: FSDP workers that see every row once, the same result again, and bad files."""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from orchestrator.config.measure import Metric
from orchestrator.config.model import ImportedModel
from orchestrator.config.run import ModelEntry
from orchestrator.config.signature import Signature
from orchestrator.config.training import Resources, Training
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import load
from orchestrator.errors import TrainingError
from orchestrator.store.store import Store
from orchestrator.training import ray_stream
from orchestrator.training.fitting import fit, read_here
from orchestrator.training.job import TrainJob
from orchestrator.training.ray_stream import ReadFailedError, read_ahead
from orchestrator.training.ray_train import train_models
from tests.data import texts

pytestmark = [pytest.mark.ray, pytest.mark.slow]

FACTORY = "tests.training.test_ray_stream:telling"
TWO = Resources(workers=2, strategy="fsdp")


class _Stack(nn.Module):
    """Layers that repeat; knows whether all of them were in shards when it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in range(2))
        self.sharded = False

    def forward(self, x: Tensor) -> Tensor:
        self.sharded = all(isinstance(weights, DTensor) for weights in self.parameters())
        for layer in self.layers:
            x = x + layer(x)
        return x


class _Telling(nn.Module):
    """Writes down the rows of each training step, and whether its stack was in shards: a line of JSON a call,
    in a file a rank."""

    def __init__(self, signature: Signature, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.words = nn.Embedding(1000, 16)
        self.stack = _Stack()
        self.head = nn.Linear(16, signature.outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stack(self.words(x.long()).mean(1))
        if self.training:
            rank = distributed.get_rank() if distributed.is_initialized() else 0
            with (self.folder / f"rank-{rank}").open("a") as file:
                file.write(json.dumps([self.stack.sharded, texts.told(x.numpy())]) + "\n")
        logits: Tensor = self.head(hidden)
        return logits


def telling(signature: Signature, folder: str) -> nn.Module:
    """Model factory."""
    return _Telling(signature, folder)


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


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load(texts.settings(texts.write(tmp_path / "texts")), seed=0, cache=tmp_path / "cache")


def job_of(dataset: Dataset, folder: Path, store: str, resources: Resources) -> TrainJob:
    Store(folder / store)
    (folder / "told").mkdir(exist_ok=True)
    model = ImportedModel(factory=FACTORY, kwargs={"folder": str(folder / "told")})
    training = Training(epochs=3, batch_size=24, optimizer="adamw", lr=0.05)
    return TrainJob(
        name="model",
        entry=ModelEntry(model=model, training=training, resources=resources),
        data_folder=str(dataset.folder),
        store=str(folder / store),
        seed=3,
        metric=Metric(),
        allowed=(FACTORY,),
    )


def trained(job: TrainJob) -> str:
    return train_models([job], storage=Path(job.store + "-runs"), on_event=lambda *_: None)["model"]


def steps(folder: Path) -> list[list[list[int]]]:
    """By rank, the rows of each step since the last call; in all of them the stack was in shards."""
    found = []
    for path in sorted((folder / "told").glob("rank-*")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(sharded for sharded, _ in lines)
        found.append([rows for _, rows in lines])
        path.unlink()
    return found


def test_two_workers_see_every_row_once_an_epoch_and_come_to_the_same_again(
    dataset: Dataset, tmp_path: Path
) -> None:
    digests, told = [], []
    for store in ("one", "two"):
        digests.append(trained(job_of(dataset, tmp_path, store, TWO)))
        told.append(steps(tmp_path))
    assert digests[0] == digests[1]
    assert told[0] == told[1]

    each_epoch = 9
    assert [len(rank) for rank in told[0]] == [3 * each_epoch] * 2
    orders = []
    for epoch in range(3):
        begin = epoch * each_epoch
        rows = [row for rank in told[0] for step in rank[begin : begin + each_epoch] for row in step]
        assert len(set(rows)) == len(rows) == texts.ROWS
        assert all(len(step) <= 13 for rank in told[0] for step in rank)
        orders.append(rows)
    assert orders[0] != orders[1] != orders[2]

    kept = Store(tmp_path / "one")
    assert kept.manifest(digests[0]).what["strategy"] == "fsdp"
    (record,) = [found for found in kept.records(digests[0]) if found["kind"] == "training"]
    assert record["epochs"][-1]["metric"] > 0.9


def test_one_worker_comes_to_what_a_process_without_ray_does(dataset: Dataset, tmp_path: Path) -> None:
    job = job_of(dataset, tmp_path, "ray", Resources())
    here = job_of(dataset, tmp_path, "here", Resources())
    assert trained(job) == fit(here, Store(here.store), lambda _: None)


def test_a_file_that_is_damaged_meanwhile_ends_all_workers_with_its_sentence(
    dataset: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "texts" / "train" / "part-2.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])  # the footer stays
    with pytest.raises(TrainingError, match=r"its workers failed once: .*cannot read as Parquet .*part-2"):
        trained(job_of(dataset, tmp_path, "store", TWO.model_copy(update={"max_failures": 0})))


def test_reading_stays_near_the_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that are gone after the first block are missed, since they were not read yet."""
    folder = texts.write(tmp_path / "texts")
    for number in range(40):
        pq.write_table(texts.table(0, 2000), folder / "train" / f"more-{number:02d}.parquet")
    dataset = load(texts.settings(folder), seed=0, cache=tmp_path / "cache")
    stream, signature = dataset.stream, dataset.signature
    assert stream is not None

    def rows(blocks: Any) -> Counter[int]:
        return Counter(row for part in blocks(stream.groups) for row in texts.told(part.inputs))

    assert rows(read_ahead(stream, signature)) == rows(read_here(stream, signature))
    monkeypatch.setattr(ray_stream, "BLOCK_BYTES", 10_000)
    monkeypatch.setattr(ray_stream, "AHEAD_BYTES", 100_000)
    blocks = read_ahead(stream, signature)(stream.groups)
    next(blocks)
    time.sleep(5)  # all could be read by now
    for file in stream.files:
        Path(file.path).unlink()
    with pytest.raises(ReadFailedError, match=r"data file not found: .*.parquet. check data.root"):
        list(blocks)
