"""A run file whose entries stand for several models, from the trained models on (no Ray is started)."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.ensemble import leaves
from orchestrator.config.load import validate
from orchestrator.config.run import RunConfig
from orchestrator.pipeline.assembling import Assembly
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.training import curves, job_of, train
from orchestrator.progress import Progress
from orchestrator.training.fitting import fit

NET = {"factory": "mlp", "kwargs": {"widths": [16]}}
QUICK = {"batch_size": 64, "lr": 0.05}
NAMES = ["net-1", "net-2", "snaps-1", "snaps-2", "pair-1", "pair-2"]


def run_of(folder: Path) -> Run:
    values: dict[str, object] = {
        "name": "toy",
        "data": {"kind": "embedded", "limit": 300},
        "models": {
            "net": {"model": NET, "copies": 2, "training": {**QUICK, "epochs": 2, "sample": {}}},
            "snaps": {"model": NET, "training": {**QUICK, "epochs": 4, "snapshots": 2}},
            "pair": {
                "model": NET,
                "copies": 2,
                "training": {**QUICK, "epochs": 2, "loss": {"kind": "mutual"}},
            },
        },
        "ensembles": {"mix": {"kind": "weighted_mix", "members": ["net", "snaps", "pair"]}},
    }
    config = validate(RunConfig, values, "toy.yaml")
    return open_run(
        config, store=str(folder / "store"), progress=Progress(), cluster=lambda: pytest.fail("Ray")
    )


def test_all_models_of_a_group_are_named_and_combined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    run = run_of(tmp_path)
    jobs = {name: job_of(run, name, entry, {}) for name, entry in run.config.models.items()}
    for name in ("net-1", "net-2", "snaps-1", "pair-2"):  # one of each training
        job = jobs[name]
        run.store.stage(job.key(), lambda job=job: fit(job, run.store, lambda _: None))  # type: ignore[misc]
    digests = train(run)
    assert list(digests) == NAMES
    assert len(set(digests.values())) == len(NAMES)
    assert {name: run.store.ref(f"toy/{name}") for name in NAMES} == digests
    assert {name: len(curve) for name, curve in curves(run, digests).items()} == dict(
        zip(NAMES, [2, 2, 4, 4, 2, 2], strict=True)
    )
    _, specs = Assembly(run, digests, {}, None).all()
    assert [member.name for member in leaves(specs["mix"].tree)] == NAMES
