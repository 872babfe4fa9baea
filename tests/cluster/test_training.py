"""Training across nodes: a node that is lost, one that says so before, workers that hang, labels."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.core.generated import autoscaler_pb2

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.training import CustomLoss, Resources, Training
from orchestrator.data.load import load
from orchestrator.errors import ResourceError, TrainingError
from orchestrator.store.store import Store
from orchestrator.training.ray_train import TrainJob, train_models
from orchestrator.training.state import EpochReport
from tests.architecture.modules import ROOT
from tests.search.nodes import Nodes, nodes

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

HERE = "tests.cluster.losses"
ROWS, BATCH = 300, 16
TIMEOUT_S = 8.0
"""For a step that takes milliseconds, on a machine that is busy."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("RAY_TRAIN_METRICS_ENABLED", "0")
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
        with nodes() as found:
            yield found


class Work:
    """A training on the cluster in a thread of its own, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        data = EmbeddedData(limit=ROWS)
        self.data = load(data, seed=0, cache=folder / "cache", allowed=())
        self.told: list[EpochReport | str] = []
        self.found: dict[str, str] = {}
        self.failure: BaseException | None = None

    def job(self, loss: str, store: str = "store", **settings: Any) -> TrainJob:
        chosen = CustomLoss(loss=f"{HERE}:{loss}", kwargs=settings.pop("kwargs"))
        training = Training(epochs=settings.pop("epochs"), batch_size=BATCH, lr=0.05, loss=chosen)
        resources = Resources.model_validate(settings)
        model = Mlp(kwargs=MlpKwargs(widths=(16,), dropout=0.2))
        Store(self.folder / store)
        return TrainJob(
            name="net",
            entry=ModelEntry(model=model, training=training, resources=resources),
            data_folder=str(self.data.folder),
            store=str(self.folder / store),
            seed=0,
            metric=Metric(),
            allowed=(chosen.loss,),
        )

    def train(self, job: TrainJob) -> str:
        """The digest."""
        storage = self.folder / f"runs-{Path(job.store).name}"
        return train_models([job], storage=storage, on_event=lambda _, event: self.told.append(event))["net"]

    def start(self, job: TrainJob) -> threading.Thread:
        """Train in a thread; `done` tells how it ended."""

        def work() -> None:
            try:
                self.found["digest"] = self.train(job)
            except BaseException as error:
                self.failure = error

        thread = threading.Thread(target=work)
        thread.start()
        return thread

    def steps(self) -> list[str]:
        file = self.folder / "steps"
        return file.read_text(encoding="utf-8").splitlines() if file.exists() else []

    def says(self, text: str) -> bool:
        return any(text in str(event) for event in self.told)

    def wait(self, ready: Callable[[], bool], thread: threading.Thread, timeout_s: float = 240) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            assert thread.is_alive(), (self.failure, self.told)
            assert time.monotonic() < end, self.told
            time.sleep(0.02)


@pytest.fixture
def work(tmp_path: Path, cluster: Nodes) -> Iterator[Work]:
    yield Work(tmp_path)
    cluster.restore()


def epochs(work: Work) -> list[int]:
    return [event.epoch for event in work.told if isinstance(event, EpochReport)]


def node_of(line: str) -> str:
    return line.split()[1]


def drain(cluster: Nodes, node_id: str, deadline_s: float) -> None:
    """What a provider does before it takes a spot machine away."""
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined]
    deadline_ms = int((time.time() + deadline_s) * 1000)
    accepted, why = GcsClient(address=cluster.address).drain_node(node_id, reason, "taken away", deadline_ms)
    assert accepted, why


def test_a_lost_node_costs_at_most_an_epoch(work: Work, cluster: Nodes) -> None:
    kwargs = {"folder": str(work.folder), "pause_s": 0.02}
    job = work.job("noted", epochs=6, kwargs=kwargs)
    calm = work.train(replace(job, store=work.job("noted", "calm", epochs=6, kwargs=kwargs).store))
    undisturbed = len(work.steps())
    (work.folder / "steps").unlink()
    work.told.clear()

    thread = work.start(job)
    work.wait(lambda: len(epochs(work)) >= 2, thread)
    cluster.kill(node_of(work.steps()[-1]))
    thread.join(400)
    assert work.found == {"digest": calm}, work.failure
    assert len(set(map(node_of, work.steps()))) == 2, "another node took over"
    assert len(work.steps()) - undisturbed <= undisturbed // 6 + 2, "at most one epoch twice"


def test_a_node_that_is_taken_away_is_saved_before(work: Work, cluster: Nodes) -> None:
    """One long epoch: without the notice all of it would be lost."""
    kwargs = {"folder": str(work.folder), "pause_s": 1.0}
    job = work.job("noted", epochs=1, kwargs=kwargs)
    quick = work.job("noted", "calm", epochs=1, kwargs=kwargs)
    steps = -(-len(work.data.part("train").ids) // BATCH)

    thread = work.start(job)
    work.wait(lambda: len(work.steps()) >= 2, thread)
    lost = node_of(work.steps()[-1])
    drain(cluster, lost, deadline_s=60)
    work.wait(lambda: work.says("a node is about to be taken away: saved in epoch 1 after step "), thread)
    assert len(work.steps()) < steps, "saved within the epoch"
    cluster.kill(lost)
    thread.join(400)
    assert work.failure is None, work.failure
    assert work.says("goes on after epoch 0, step "), work.told
    assert len(work.steps()) < steps + steps // 2, "it did not begin anew"
    assert {node_of(line) for line in work.steps()} > {lost}
    assert work.found["digest"] == work.train(quick), "the weights of an undisturbed training"


@pytest.mark.parametrize("times", [1, 9], ids=["once", "always"])
def test_a_training_that_hangs(work: Work, times: int) -> None:
    """Ended, told, and tried again; given up in a sentence when it always hangs."""
    kwargs = {"folder": str(work.folder), "times": times}
    job = work.job("hangs", epochs=2, kwargs=kwargs, step_timeout_s=TIMEOUT_S, max_failures=1)
    if times == 1:
        work.train(job)
        assert work.says("the last attempt hung at cluster/losses.py:"), work.told
        assert work.says("in never_ends and was ended")
        return
    with pytest.raises(TrainingError) as caught:
        work.train(job)
    told = str(caught.value)
    assert "no step ended within 8 s; its workers were ended 2 times, at last in: cluster/losses.py:" in told
    assert "raise resources.step_timeout_s" in told
    assert "\n" not in told


def test_labels_choose_the_node(work: Work) -> None:
    kwargs = {"folder": str(work.folder)}
    zone = {node["NodeID"]: node["Labels"].get("zone") for node in ray.nodes() if node["Alive"]}
    work.train(work.job("noted", epochs=1, kwargs=kwargs, labels={"zone": "b"}))
    assert {zone[node_of(line)] for line in work.steps()} == {"b"}
    with pytest.raises(ResourceError, match=r"no node with cores has the labels .*'net' asks for: zone: c"):
        work.train(work.job("noted", "other", epochs=1, kwargs=kwargs, labels={"zone": "c"}))
    assert json.dumps(sorted(filter(None, zone.values()))) == '["a", "b"]'
