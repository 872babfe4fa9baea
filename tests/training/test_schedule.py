"""The schedule of trainings by itself: no Ray is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp
from orchestrator.config.run import ModelEntry
from orchestrator.config.training import Resources
from orchestrator.errors import ResourceError
from orchestrator.training import fit_actor, ray_train
from orchestrator.training.job import TrainJob
from orchestrator.training.ray_train import _check_resources, _Schedule, _Totals


def job(name: str, **resources: Any) -> TrainJob:
    entry = ModelEntry(model=Mlp(), resources=Resources(**resources))
    return TrainJob(name, entry, "rows", "store", 0, Metric())


def schedule(*jobs: TrainJob, cpus: int = 1) -> _Schedule:
    workers = {job.name: 1 for job in jobs}
    return _Schedule(jobs, workers, _Totals(((cpus, 0),)), Path("runs"), lambda *_: None, lambda *_: None)


class Actor:
    """Stands for any actor: a call gives its name."""

    def __getattr__(self, name: str) -> Any:
        return self

    def remote(self, *_: object) -> str:
        return "call"


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Actors start and end without Ray; gives those that were ended."""
    found: list[Any] = []
    monkeypatch.setattr(ray_train, "open_mailbox", Actor)
    monkeypatch.setattr(fit_actor, "start", lambda *_: Actor())
    monkeypatch.setattr(ray, "kill", found.append)
    monkeypatch.setattr(ray_train, "deliver", lambda *_: None)
    return found


def test_a_worker_is_placed_on_one_node() -> None:
    cores = _Totals(((3, 0), (3, 0)))
    assert _check_resources(job("a", workers=(1, 8), cpus=2), cores) == 2
    with pytest.raises(ResourceError, match=r"3 x 2 CPUs; the cluster has 6 CPUs.* hold: 2 such workers"):
        _check_resources(job("a", workers=3, cpus=2), cores)
    mixed = _Totals(((8, 0), (2, 4)))
    assert _check_resources(job("a", workers=4, gpus=0.5), _Totals(((8, 2),))) == 4
    with pytest.raises(ResourceError, match="4 x 1 GPUs with 1 CPUs; the cluster has 4 GPUs and 10 CPUs"):
        _check_resources(job("a", workers=4, gpus=1), mixed)


def test_a_job_that_does_not_fit_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for a long training, and a look into the store opens it and hashes all settings."""
    first, second = job("first"), job("second")
    waiting = schedule(first, second)
    waiting.running["call"] = first
    looked: list[str] = []

    def known(job: TrainJob) -> str:
        looked.append(job.name)
        return "ab"

    monkeypatch.setattr(waiting, "_known", known)
    assert not waiting._start(second, {"first", "second"})
    assert looked == []
    waiting.running.clear()
    assert waiting._start(second, {"first", "second"})
    assert (looked, waiting.digests) == (["second"], {"second": "ab"})


def test_a_lost_mailbox_ends_no_training(monkeypatch: pytest.MonkeyPatch, killed: list[Any]) -> None:
    def lost(*_: object) -> None:
        raise ActorDiedError

    monkeypatch.setattr(ray_train, "deliver", lost)
    monkeypatch.setattr(ray, "wait", lambda calls, **_: (calls, []))
    monkeypatch.setattr(ray, "get", lambda _: "ab" * 32)
    running = schedule(job("first"))
    monkeypatch.setattr(running, "_known", lambda _: None)
    assert running.run() == {"first": "ab" * 32}
    assert killed == [running.fits, running.mailbox]


def test_an_interrupt_leaves_no_actor(monkeypatch: pytest.MonkeyPatch, killed: list[Any]) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ray, "wait", interrupted)
    running = schedule(job("first"))
    monkeypatch.setattr(running, "_known", lambda _: None)
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert killed == [running.fits, running.mailbox]
