"""What a run tells about its training while it trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.pipeline.watching import SearchWatch, TrainingWatch, event_text
from orchestrator.progress import Event, Progress, Training, Trials
from orchestrator.search.objectives import TrialRow
from orchestrator.training.ray_train import Ended, Failed
from orchestrator.training.state import EpochReport
from tests.pipeline.tiny import config
from tests.search.rows import measured, parent


def test_an_epoch_says_how_long_the_rest_will_take() -> None:
    run: Any = SimpleNamespace(config=config(port=1))
    first = event_text(run, 3, EpochReport(0, 0.5, 0.9, 0.1, 300.0))
    assert first == "epoch 1 of 3, loss 0.5000, validation accuracy 0.9000, 300.0 s, about 10 min left"
    assert "left" not in event_text(run, 3, EpochReport(0, 0.5, 0.9, 0.1, 20.0)), "under a minute"
    assert "left" not in event_text(run, 3, EpochReport(2, 0.5, 0.9, 0.1, 300.0)), "the last one"


class Told(list[Event]):
    """Keeps events as a consumer."""

    def show(self, event: Event) -> None:
        self.append(event)

    def close(self) -> None:
        pass

    @property
    def trials(self) -> Trials:
        """Where the search stood last."""
        fact = self[-1].fact
        assert isinstance(fact, Trials)
        return fact


def run_told() -> tuple[Any, Told]:
    told = Told()
    return SimpleNamespace(config=config(port=1), progress=Progress(told)), told


def test_a_search_tells_the_best_so_far_and_how_long_it_will_take() -> None:
    run, told = run_told()
    now = [0.0]
    watch = SearchWatch(run, parent(), 6, clock=lambda: now[0])
    watch.row(measured(0, drop=0.05, latency=2.0))  # known from before, so it says nothing about the time
    assert told.trials.best is not None
    assert (told.trials.best.name, told.trials.best.feasible) == ("v0", False)
    assert told.trials.left_s is None
    watch.running(2)
    assert (told.trials.running, told[-1].text) == (2, "")
    now[0] = 30.0
    watch.row(measured(1, drop=0.0, latency=3.0))
    before = told.trials
    assert before.best is not None
    assert (before.best.name, before.best.latency_ms, before.best.feasible) == ("v1", 3.0, True)
    assert (before.left_s, before.running) == (30.0 * 4, 1)
    watch.row(measured(2, drop=0.01, latency=1.0))
    assert told.trials.best is not None
    assert told.trials.best.name == "v2"
    assert told.trials.hypervolume is not None
    assert before.hypervolume is not None
    assert told.trials.hypervolume > before.hypervolume > 0
    watch.row(TrialRow(3, "t3", "eager").failed("no layer is left"))
    last = told.trials
    assert (last.finished, last.failed, last.left_s) == (3, 1, 30.0 / 3 * 2)
    assert (told.trials.ended, told.trials.ended_badly) == ("t3", True)
    assert told[-1].text == "trial 4 of 6: t3 failed: no layer is left"


def test_a_training_is_followed_from_waiting_to_its_end() -> None:
    run, told = run_told()
    watch = TrainingWatch(run, {"teacher": 3})
    watch("teacher", "starts: 3 epochs of 288 rows, 1 worker x 1 core, cpu")
    watch("teacher", EpochReport(0, 0.5, 0.9, 0.1, 2.0))
    watch("teacher", Ended("trained: abc"))
    watch("teacher", Failed("failed: its teacher failed"))
    facts = [event.fact for event in told if isinstance(event.fact, Training)]
    assert [fact.state for fact in facts] == ["waiting", "training", "training", "trained", "failed"]
    assert (facts[2].epoch, facts[2].epochs, facts[2].left_s) == (1, 3, 4.0)
    lines = [event.text for event in told if event.text]
    assert lines == [
        "teacher: starts: 3 epochs of 288 rows, 1 worker x 1 core, cpu",
        "teacher: epoch 1 of 3, loss 0.5000, validation accuracy 0.9000, 2.0 s",
        "teacher: trained: abc",
        "teacher: failed: its teacher failed",
    ]
