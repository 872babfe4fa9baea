"""Jobs as plain data: keys, claims on names, damaged runs, transfer sets (no Ray is started)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from orchestrator.compression.plan import apply_plan
from orchestrator.config.base import fingerprint
from orchestrator.config.data import CustomData
from orchestrator.config.measure import Metric
from orchestrator.config.model import ImportedModel, Mlp
from orchestrator.config.run import ModelEntry
from orchestrator.config.steps import Bf16, DynamicInt8, Qat, Recovery, StaticInt8
from orchestrator.config.training import DistillationLoss, Resources, Training
from orchestrator.data.dataset import Dataset
from orchestrator.data.load import load
from orchestrator.errors import ConfigError, DataError
from orchestrator.store.store import Store
from orchestrator.training.fitting import teacher_of, train_rows
from orchestrator.training.job import TrainJob, claim, drop_damaged, run_name
from tests.compression import toys

HERE = "tests.training.test_job"


def rows(width: int = 6, regression: bool = False) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(width)
    inputs = random.normal(size=(100, width)).astype(np.float32)
    return inputs, inputs[:, :2] if regression else np.arange(100) % 3


def dataset(folder: Path, task: str = "classification", **kwargs: Any) -> Dataset:
    path = f"{HERE}:rows"
    data = CustomData.model_validate({"dataset": path, "kwargs": kwargs, "task": task})
    return load(data, seed=0, cache=folder / "cache", allowed=(path,))


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return TrainJob(
        name="small",
        entry=ModelEntry(model=Mlp(), training=Training(epochs=3)),
        data_folder=str(dataset(tmp_path).folder),
        store=str(tmp_path / "store"),
        seed=1,
        metric=Metric(),
        allowed=("a.b:c",),
    )


def _with(job: TrainJob, **entry: Any) -> TrainJob:
    return replace(job, entry=job.entry.model_copy(update=entry))


def test_crosses_a_process_as_plain_json(job: TrainJob) -> None:
    assert TrainJob.from_plain(json.loads(json.dumps(job.plain()))) == job


def test_the_key_follows_code_of_the_users_own(
    job: TrainJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    code = "from torch import nn\n\n\ndef net(signature):\n    return nn.{}()\n"
    (tmp_path / "own_net.py").write_text(code.format("GELU"))
    own = replace(_with(job, model=ImportedModel(factory="own_net:net")), allowed=("own_net:net",))
    before = own.key()
    assert own.key() == before
    (tmp_path / "own_net.py").write_text(code.format("ReLU"))
    assert own.key() != before
    assert "code" not in job.settings()


def test_the_key_follows_what_decides_the_weights_and_nothing_else(job: TrainJob) -> None:
    others = [
        replace(job, seed=2),
        _with(job, training=Training(epochs=4)),
        _with(job, resources=Resources(cpus=2)),
        _with(job, resources=Resources(workers=2)),
        replace(job, teacher_digest="0" * 64),
    ]
    keys = {other.key() for other in others}
    assert len(keys) == len(others)
    assert job.key() not in keys
    same = _with(replace(job, store="elsewhere", name="other"), resources=Resources(max_failures=5))
    assert same.key() == job.key()


def test_settings_that_came_later_leave_old_keys_as_they_were() -> None:
    """The digest is that of 2026-11-26, before members could differ by sample, features or snapshots."""
    plain = [
        Training().plain(),
        Mlp().plain(),
        Recovery().plain(),
        Qat(to="int8_static").plain(),
        ModelEntry(model=Mlp()).plain(),
    ]
    assert fingerprint(plain) == "f13e71f2ad1a4fa246bcf0b6e7ad7d904d60fcbb6aea7da648e75a03d0e7a32b"


def test_the_key_of_a_model_alone_says_nothing_of_others(job: TrainJob) -> None:
    assert not {"number", "together"} & job.settings().keys()


def test_a_name_keeps_its_settings_until_fresh(job: TrainJob, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    changed = _with(job, training=Training(epochs=4))
    claim(job, storage, fresh=False)
    claim(job, storage, fresh=False)
    checkpoints, foreign = storage / run_name(job), storage / "small-notes"
    checkpoints.mkdir()
    foreign.mkdir()
    with pytest.raises(ConfigError, match=r"training.epochs: 3 -> 4.*--fresh"):
        claim(changed, storage, fresh=False)
    assert checkpoints.exists()

    claim(job, storage, fresh=True)
    assert checkpoints.exists(), "its settings are the same"
    claim(changed, storage, fresh=True)
    assert not checkpoints.exists()
    assert foreign.exists()
    claim(changed, storage, fresh=False)
    with pytest.raises(ConfigError, match="4 -> 3"):
        claim(job, storage, fresh=False)


def test_an_unreadable_claim_says_what_to_do(job: TrainJob, tmp_path: Path) -> None:
    (tmp_path / "small.json").write_text("{")
    with pytest.raises(ConfigError, match="--fresh"):
        claim(job, tmp_path, fresh=False)


def test_a_run_whose_checkpoint_list_was_cut_short_starts_over(tmp_path: Path) -> None:
    run = tmp_path / "small-0123456789ab"
    assert not drop_damaged(run)
    run.mkdir()
    record = run / "checkpoint_manager_snapshot.json"
    record.write_text('{"checkpoint_results": []}')
    assert not drop_damaged(run)
    record.write_text('{"checkpoint_res')
    assert drop_damaged(run)
    assert not run.exists()


def test_a_transfer_set_is_used_without_its_labels(job: TrainJob, tmp_path: Path) -> None:
    distil = Training(loss=DistillationLoss())
    transfer = dataset(tmp_path / "transfer")
    taught = replace(_with(job, training=distil), transfer_folder=str(transfer.folder))
    part = train_rows(taught, dataset(tmp_path))
    np.testing.assert_array_equal(part.inputs, transfer.part("train").inputs)
    assert set(part.targets) == {-1}
    assert taught.settings()["transfer"] == transfer.digest

    values = dataset(tmp_path, task="regression", regression=True)
    assert np.isnan(train_rows(taught, values).targets).all()

    wide = dataset(tmp_path / "wide", width=7)
    with pytest.raises(DataError, match="shape"):
        train_rows(replace(taught, transfer_folder=str(wide.folder)), dataset(tmp_path))


def test_an_int8_model_cannot_teach(job: TrainJob, tmp_path: Path) -> None:
    module, signature, settings = toys.toy("mlp")
    store, context = Store(tmp_path / "models"), toys.context(signature.input_shape)
    parent = toys.put(store, module, signature, settings)
    assert isinstance(teacher_of(job, store, apply_plan(store, parent, (Bf16(),), context)), nn.Module)
    for step in (StaticInt8(), DynamicInt8()):
        with pytest.raises(DataError, match="distil from the float model"):
            teacher_of(job, store, apply_plan(store, parent, (step,), context))
