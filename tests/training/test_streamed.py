"""Batches of a stream: every row once, equal steps, a bounded window, and a training that goes on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.config.measure import Metric
from orchestrator.config.model import TextCnn, TextCnnKwargs
from orchestrator.config.training import DistillationLoss, Sample, Training
from orchestrator.data.dataset import Dataset, Part
from orchestrator.data.load import load
from orchestrator.data.stream import Piece, Stream, StreamFile
from orchestrator.errors import ConfigError
from orchestrator.models.build import build
from orchestrator.training.batches import Batch
from orchestrator.training.fitting import read_here
from orchestrator.training.loop import train
from orchestrator.training.state import TrainState
from orchestrator.training.streamed import Streamed, regrouped
from tests.data.texts import ROWS, settings, told, write
from tests.training.toy import digest

TRAINING = Training(epochs=3, batch_size=24, optimizer="adamw", lr=0.02)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("texts")
    return load(settings(write(folder / "texts")), seed=0, cache=folder / "cache")


def streamed(dataset: Dataset, training: Training = TRAINING, seed: int = 3, blocks: Any = None) -> Streamed:
    assert dataset.stream is not None
    return Streamed(dataset.stream, training, seed, blocks or read_here(dataset.stream, dataset.signature))


def epoch(source: Streamed, number: int, rank: int = 0, world: int = 1, first: int = 0) -> list[Batch]:
    return list(source.epoch(number, CPU, False, rank, world, first))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_once_an_epoch_in_equally_many_steps(dataset: Dataset, world: int) -> None:
    source = streamed(dataset)
    orders = []
    for number in range(2):
        ranks = [epoch(source, number, rank, world) for rank in range(world)]
        assert {len(batches) for batches in ranks} == {source.steps} == {9}
        rows = [row for batches in ranks for batch in batches for row in told(batch.inputs.numpy())]
        assert len(set(rows)) == len(rows) == ROWS
        for step in zip(*ranks, strict=True):
            # The mean over ranks of the weighed means over rows is the mean over the step's rows.
            assert sum(batch.share for batch in step) == pytest.approx(world)
            assert sum(len(batch.targets) for batch in step) in range(20, 27)
        orders.append(rows)
    assert orders[0] != orders[1]
    again = [epoch(source, 0, rank, world) for rank in range(world)]
    assert [row for each in again for batch in each for row in told(batch.inputs.numpy())] == orders[0]


def test_an_epoch_goes_on_within(dataset: Dataset) -> None:
    source = streamed(dataset)
    whole, rest = epoch(source, 1), epoch(source, 1, first=5)
    assert [told(batch.inputs.numpy()) for batch in rest] == [told(b.inputs.numpy()) for b in whole[5:]]


def test_rows_of_several_files_are_mixed_and_no_more_than_a_window_is_held(dataset: Dataset) -> None:
    stream = dataset.stream
    assert stream is not None
    read = 0

    def counted(pieces: Sequence[Piece]) -> Iterator[Part]:
        nonlocal read
        for part in read_here(stream, dataset.signature)(pieces):
            read += len(part)
            yield part

    given, most, groups = 0, 0, []
    for batch in streamed(dataset, blocks=counted).epoch(0, CPU, False, 0, 1):
        most = max(most, read - given)
        given += len(batch.targets)
        groups.append({row // 20 for row in told(batch.inputs.numpy())})
    assert given == ROWS
    assert most <= 2 * stream.shuffle + 20  # the window, what the last one left, and a block
    assert max(map(len, groups)) > 1


def test_regrouped_keeps_rows_and_order() -> None:
    rows = [Part(np.arange(a, b), np.arange(a, b), np.arange(a, b)) for a, b in ((0, 3), (3, 4), (4, 10))]
    found = list(regrouped(iter(rows), [1, 4, 5]))
    assert [part.ids.tolist() for part in found] == [[0], [1, 2, 3, 4], [5, 6, 7, 8, 9]]


def test_two_windows_of_rows_are_held_at_most() -> None:
    window, width, rows = 5_000, 64, 20_000
    stream = Stream((StreamFile("a.parquet", "", (rows,)),), "text", "label", shuffle=window, readers=1)

    def blocks(pieces: Sequence[Piece]) -> Iterator[Part]:  # noqa: ARG001
        for start in range(0, rows, 50):
            numbers = np.arange(start, start + 50)
            yield Part(np.tile(numbers[:, None], (1, width)), numbers, numbers)

    source = Streamed(stream, TRAINING.model_copy(update={"batch_size": 100}), 3, blocks)
    tracemalloc.start()
    seen = [int(batch.targets.sum()) for batch in source.epoch(0, CPU, False, 0, 1)]
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(seen) == rows * (rows - 1) // 2
    assert most < 2.2 * window * (width + 2) * 8


@pytest.mark.parametrize(
    "asked", [{"loss": DistillationLoss()}, {"sample": Sample(share=0.5)}], ids=["teacher", "sample"]
)
def test_what_a_stream_cannot_give_is_refused(dataset: Dataset, asked: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"training.(loss|sample): "):
        streamed(dataset, TRAINING.model_copy(update=asked))


def test_a_training_learns_and_goes_on_after_an_epoch_as_if_it_had_never_stopped(dataset: Dataset) -> None:
    def run(state: TrainState, epochs: int) -> list[float]:
        kwargs = TextCnnKwargs(view="words", dim=16, channels=16, widths=(1,))
        module = build(TextCnn(kwargs=kwargs), dataset.signature, seed=0)
        go = partial(train, module, dataset.part("train"), dataset.part("validation"), TRAINING)
        reports = go(
            signature=dataset.signature,
            metric=Metric(),
            seed=3,
            threads=1,
            streamed=streamed(dataset),
            state=state,
        )
        return [next(reports).metric for _ in range(epochs)]

    whole, stopped = TrainState(), TrainState()
    metrics = run(whole, 3)
    assert metrics[-1] > 0.9
    assert run(stopped, 1) + run(stopped, 2) == metrics
    assert digest(whole.model) == digest(stopped.model)
