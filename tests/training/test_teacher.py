"""The kept outputs of a teacher: half precision, a file a view, read when an epoch needs it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from orchestrator.config.signature import Signature
from orchestrator.config.training import Augment, DistillationLoss, Training
from orchestrator.errors import StoreError
from orchestrator.store.store import Store
from orchestrator.training.batches import Rows
from orchestrator.training.teacher import TeacherCache, as_kept
from tests.training.toy import IMAGES, VALUES, digest, module_of, part, run

TEACHER = "a" * 64
TRAINING = Training(
    epochs=5, batch_size=16, loss=DistillationLoss(), augment=Augment(flip=True, crop=2, views=3)
)


def cache(store: Store, signature: Signature = IMAGES, training: Training = TRAINING) -> TeacherCache:
    return TeacherCache(store, TEACHER, "rows", part(signature), signature.task, training, seed=3, threads=1)


def filled(tmp_path: Path, signature: Signature = IMAGES, training: Training = TRAINING) -> TeacherCache:
    found = cache(Store(tmp_path), signature, training)
    found.fill(lambda: module_of(signature, seed=1))
    return found


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "predictions" / TEACHER).iterdir())


def test_logits_are_kept_as_float16_by_sample_id(tmp_path: Path) -> None:
    filled(tmp_path)
    assert len(files(tmp_path)) == 3
    for path in files(tmp_path):
        table = pq.read_table(path)
        assert str(table.schema.field("outputs").type.value_type) == "halffloat"
        assert table.column("id").to_pylist() == list(part(IMAGES).ids)


def test_more_views_find_those_that_there_are(tmp_path: Path) -> None:
    filled(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    filled(tmp_path, training=TRAINING.model_copy(update={"augment": Augment(flip=True, crop=2, views=5)}))
    assert len(files(tmp_path)) == 5
    assert before.items() <= {path: path.stat().st_mtime_ns for path in files(tmp_path)}.items()


def test_values_of_a_regression_are_kept_as_float32(tmp_path: Path) -> None:
    filled(tmp_path, VALUES, TRAINING.model_copy(update={"augment": Augment()}))
    (path,) = files(tmp_path)
    assert str(pq.read_table(path).schema.field("outputs").type.value_type) == "float"


def test_outputs_are_the_teachers_own_in_each_view(tmp_path: Path) -> None:
    outputs = filled(tmp_path).outputs()
    rows = Rows(part(IMAGES), TRAINING.augment, 3, 16, None)
    teacher = module_of(IMAGES, seed=1).eval()
    assert outputs.count == 3
    for view in range(3):
        own = rows.outputs_of(teacher, view)
        assert np.array_equal(outputs.read(view), as_kept(own, "classification").float().numpy())
        assert np.allclose(outputs.read(view), own.numpy(), rtol=1e-3, atol=1e-3)
    assert not np.array_equal(outputs.read(0), outputs.read(1))


def test_a_full_cache_runs_no_teacher(tmp_path: Path) -> None:
    filled(tmp_path)

    def build() -> nn.Module:
        raise AssertionError("the teacher was built")

    cache(Store(tmp_path)).fill(build)
    fewer = TRAINING.model_copy(update={"epochs": 1, "lr": 0.01})
    cache(Store(tmp_path), training=fewer).fill(build)


def test_a_removed_view_alone_is_computed_again(tmp_path: Path) -> None:
    first = filled(tmp_path)
    before = [first.outputs().read(view) for view in range(3)]
    files(tmp_path)[1].unlink()
    left = {path: path.stat().st_mtime_ns for path in files(tmp_path)}
    again = filled(tmp_path)
    assert all(path.stat().st_mtime_ns == kept for path, kept in left.items())
    for view in range(3):
        assert np.array_equal(again.outputs().read(view), before[view])


def test_a_view_that_vanished_is_one_sentence(tmp_path: Path) -> None:
    outputs = filled(tmp_path).outputs()
    for path in files(tmp_path):
        path.unlink()
    with pytest.raises(StoreError, match="outputs are not in the store"):
        outputs.read(0)


def test_students_of_the_cache_and_of_the_teacher_itself_are_equal(tmp_path: Path) -> None:
    teacher = module_of(IMAGES, seed=1).eval()

    def own(rows: torch.Tensor) -> torch.Tensor:
        return as_kept(teacher(rows), "classification").float()

    by_teacher = run(module_of(IMAGES), IMAGES, TRAINING, teacher=own)[1]
    by_cache = run(module_of(IMAGES), IMAGES, TRAINING, teacher=filled(tmp_path).outputs())[1]
    assert digest(by_teacher.weights) == digest(by_cache.weights)


def test_epochs_hold_one_view_at_a_time(tmp_path: Path) -> None:
    rows = Rows(part(IMAGES), TRAINING.augment, 3, 16, filled(tmp_path).outputs())
    for epoch in range(4):
        list(rows.epoch(epoch, torch.device("cpu"), False, 0, 1))
        assert list(rows._outputs) == [epoch % 3]


def test_logits_beyond_half_precision_stay_finite() -> None:
    kept = as_kept(torch.tensor([[1e9, -1e9, float("nan")]]), "classification")
    assert kept.dtype == torch.float16
    assert torch.isfinite(kept[0, :2]).all()
    assert torch.isnan(kept[0, 2])
