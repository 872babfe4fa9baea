"""The pool's own rules, on a made-up Ray with a clock of its own."""

from __future__ import annotations

import heapq
import itertools
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from orchestrator.config.search import SearchSettings
from orchestrator.errors import SearchError
from orchestrator.search import ray_pool, ray_tune

DIES = -1.0
START_S = 0.5


class FakeRay:
    """Actors whose calls take as long as the config says; the clock goes from one end to the next."""

    def __init__(self) -> None:
        self.now, self.waits, self.widest, self.most = 0.0, 0, 0, 0
        self.alive: set[FakeActor] = set()
        self.started, self.broken, self.interrupt_at = 0, 0, float("inf")
        self._ends: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()

    def remote(self, *given: Any) -> Any:
        """`ray.remote(class)`, and `class.remote(arguments)`."""
        return self if given == (ray_pool._Worker,) else FakeActor(self)

    def options(self, **options: Any) -> FakeRay:
        self.asked_for = options
        return self

    def call(self, seconds: float, *, fails: bool) -> str:
        number = next(self._numbers)
        name = f"{'fail' if fails else 'call'} {number}"
        heapq.heappush(self._ends, (self.now + seconds, number, name))
        return name

    def wait(self, calls: list[str], timeout: float) -> tuple[list[str], list[str]]:
        self.waits += 1
        self.widest = max(self.widest, len(calls))
        if self.now >= self.interrupt_at:
            raise KeyboardInterrupt
        if self._ends[0][0] > self.now + timeout:
            self.now += timeout
            return [], calls
        self.now, _, ended = heapq.heappop(self._ends)
        assert ended in calls
        return [ended], [call for call in calls if call != ended]

    def get(self, call: str) -> None:
        if call.startswith("fail"):
            raise RayError("The actor died.\n\tnode: one\nThe process is gone.\n")

    def kill(self, actor: FakeActor) -> None:
        self.alive.discard(actor)


class FakeActor:
    """Its methods are called as `actor.run.remote(config)`."""

    def __init__(self, ray: FakeRay) -> None:
        self._ray = ray
        ray.alive.add(self)
        ray.started += 1
        ray.most = max(ray.most, len(ray.alive))
        self.ready = self.run = self

    def remote(self, config: dict[str, float] | None = None) -> str:
        if config is None:
            return self._ray.call(START_S, fails=self._ray.started <= self._ray.broken)
        return self._ray.call(abs(config["seconds"]), fails=config["seconds"] < 0)


class Trials:
    """A searcher over given durations, in batches if asked."""

    def __init__(self, seconds: list[float], batch: int | None = None) -> None:
        self._left = list(enumerate(seconds))[::-1]
        self._batch = batch or len(seconds)
        self.running: dict[str, int] = {}
        self.ended: list[int] = []
        self.failed: dict[int, str] = {}
        self.finished = not seconds

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        self.finished = not self._left and not self.running
        given = len(self.ended) + len(self.failed) + len(self.running)
        if not self._left or (self.running and given % self._batch == 0):
            return None
        number, seconds = self._left.pop()
        self.running[trial_id] = number
        return {"seconds": seconds}

    def on_trial_complete(self, trial_id: str) -> None:
        self.ended.append(self.running.pop(trial_id))

    def fail(self, trial_id: str, reason: str) -> None:
        self.failed[self.running.pop(trial_id)] = reason


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    fake = FakeRay()
    monkeypatch.setattr(ray_pool, "ray", fake)
    monkeypatch.setattr(ray_pool, "fitting", lambda *needs, **_: 16 // needs[1])
    return fake


def drive(search: Trials, batch: int = 1000, **settings: Any) -> None:
    wanted = SearchSettings(batch=batch, **settings)
    ray_pool.drive(search, dict, {}, wanted, storage=Path("unused"))


def test_a_thousand_trials_cost_the_driver_a_constant_each(ray: FakeRay) -> None:
    search = Trials([1.0] * 1000)
    drive(search)
    assert sorted(search.ended) == list(range(1000))
    assert ray.waits == 1000 + 16
    assert ray.widest == ray.most == ray.started == 16
    assert ray.now == pytest.approx(START_S + 63)  # nobody waited: ceil(1000 / 16)
    assert not ray.alive


def test_an_actor_gets_its_next_trial_as_soon_as_it_is_free(ray: FakeRay) -> None:
    seconds = [0.5 + (7 * number % 16) / 16 for number in range(160)]
    drive(Trials(seconds))
    assert ray.now < START_S + sum(seconds) / 16 + max(seconds)


def test_the_batch_is_a_barrier_and_limits_what_runs(ray: FakeRay) -> None:
    drive(Trials([1.0, 2.0] * 8, batch=4), batch=4)
    assert ray.most == 4
    assert ray.now == pytest.approx(START_S + 4 * 2)


def test_actors_are_started_for_what_there_is_to_do(ray: FakeRay) -> None:
    drive(Trials([1.0] * 3))
    assert ray.started == 3
    drive(Trials([]))
    assert ray.started == 3


def test_a_failed_trial_gets_one_more_try_on_another_actor(ray: FakeRay) -> None:
    search = Trials([1.0, DIES, 1.0, 1.0])
    drive(search, cpus=8)
    assert search.failed == {1: "The process is gone."}
    assert sorted(search.ended) == [0, 2, 3]
    # The actor that died is replaced while there is something left for it to do.
    assert (ray.started, ray.most) == (3, 2)
    assert ray.asked_for["num_cpus"] == 8
    assert not ray.alive


def test_actors_that_never_start_end_the_search(ray: FakeRay) -> None:
    ray.broken = 2
    drive(Trials([1.0] * 10), cpus=16)
    assert ray.started == 3
    ray.broken = 1000
    with pytest.raises(SearchError, match="do not start: The process is gone"):
        drive(Trials([1.0] * 10))
    assert not ray.alive


def test_an_interrupt_leaves_no_actor(ray: FakeRay) -> None:
    ray.interrupt_at = 3.0
    search = Trials([1.0] * 100)
    with pytest.raises(KeyboardInterrupt):
        drive(search)
    assert not ray.alive
    assert len(search.ended) >= 16


def test_an_error_of_the_searcher_leaves_no_actor(ray: FakeRay) -> None:
    class Broken(Trials):
        def on_trial_complete(self, trial_id: str) -> None:
            raise SearchError("the bench is gone", trial_id)

    with pytest.raises(SearchError, match="the bench is gone"):
        drive(Broken([1.0] * 4))
    assert not ray.alive


def test_the_reason_is_the_last_line_and_short(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    for text, reason in (
        ("Traceback\n  File\nValueError: no\n\n", "ValueError: no"),
        ("x" * 1000, "x" * 300),
    ):
        file.write_text(text)
        assert ray_tune._reason(str(file)) == reason
    for missing in (None, str(tmp_path / "none.txt")):
        assert ray_tune._reason(missing) == "the trial's process failed"
