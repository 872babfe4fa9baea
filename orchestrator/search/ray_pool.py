"""Trials on a pool of warm Ray actors: for trials of seconds, where Tune's event loop costs much of the time.

The driver holds at most one open trial an actor and waits on those alone, so its work a trial does not grow
with their number. No truth lives here: results are in the store, and the searcher looks them up.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from orchestrator.cluster import fitting
from orchestrator.config.search import Searching
from orchestrator.errors import SearchError, last_line

if TYPE_CHECKING:  # a worker loads this module, and what a trial does not need would cost it seconds
    from orchestrator.search.batches import Source, Trainable

POLL_S = 1.0
"""Between two looks at what running trials tell."""
RETRIES = 1
"""Of a trial that failed or whose process died; a variant that cannot be built is a result, not a failure."""
_FAILED_STARTS = 4
"""In a row, of actors that never became ready: then none will."""

log = logging.getLogger(__name__)


class _Worker:
    """Runs trials one after the other; what the trial's module imports is loaded once, here."""

    def __init__(self, trainable: Trainable, shared: Mapping[str, Any]) -> None:
        self._trainable, self._shared = trainable, dict(shared)

    def ready(self) -> None:
        """Returns when the worker is up."""

    def run(self, config: dict[str, Any]) -> None:
        """One trial. Its numbers stay here: the searcher looks outcomes up."""
        self._trainable({**self._shared, **config})


@dataclass
class _Trial:
    id: str
    config: dict[str, Any]
    failures: int = 0


@dataclass
class _Slot:
    """An actor, and the trial that it runs; none while it starts."""

    actor: ActorHandle[Any]
    trial: _Trial | None = None


def drive(
    search: Source,
    trainable: Trainable,
    shared: Mapping[str, Any],
    settings: Searching,
    *,
    storage: Path,
    poll: Callable[[], None] = lambda: None,
) -> None:
    """Run what the searcher asks for, `shared` merged into every config, until it is finished.

    Args:
        search: asks for trials and is told how they ended.
        trainable: what an actor runs; crosses to it once, with `shared`.
        shared: entries of every config.
        settings: trials at once (`batch`, where the cluster holds as many), cores and GPUs of one.
        storage: not used; the pool leaves no files.
        poll: called about every `POLL_S` seconds while trials run.

    Raises:
        ResourceError: the cluster can never hold one trial.
        SearchError: the actors do not start.
    """
    del storage
    at_once = trials_at_once(settings)
    remote: Any = ray.remote(_Worker)
    options = {
        "num_cpus": settings.cpus,
        "num_gpus": settings.gpus,
        "memory": settings.memory_bytes or None,
        "label_selector": settings.labels or None,
        "max_restarts": 0,
        "max_task_retries": 0,
    }
    pool = _Pool(search, lambda: remote.options(**options).remote(trainable, dict(shared)), at_once)
    try:
        pool.run(poll)
    finally:
        pool.close()


@dataclass
class _Pool:
    """At most `at_once` actors, each starting, idle or at one trial."""

    search: Source
    start: Callable[[], ActorHandle[Any]]
    at_once: int
    _actors: list[ActorHandle[Any]] = field(default_factory=list)
    """All that live."""
    _open: dict[Any, _Slot] = field(default_factory=dict)
    """By the call that an actor is at: its start or a trial."""
    _idle: list[ActorHandle[Any]] = field(default_factory=list)
    _queue: deque[_Trial] = field(default_factory=deque)
    """Taken from the searcher, waiting for an actor; one that failed once stands in front."""
    _taken: int = 0
    """Trials queued or running."""
    _asked: int = 0
    _failed_starts: int = 0

    def run(self, poll: Callable[[], None]) -> None:
        """Until the searcher has no more."""
        polled = time.monotonic()
        self._fill()
        while self._taken:
            ended, _ = ray.wait(list(self._open), timeout=POLL_S)
            for call in ended:
                self._end(call, self._open.pop(call))
            if time.monotonic() - polled >= POLL_S:
                polled = time.monotonic()
                poll()

    def close(self) -> None:
        """End every actor, whatever it is at."""
        while self._actors:
            ray.kill(self._actors.pop())

    def _fill(self) -> None:
        """Take what the searcher has, and give it to actors; start those that are missing."""
        while self._taken < self.at_once and not self.search.finished:
            trial_id = f"{self._asked:05d}"
            config = self.search.suggest(trial_id)
            if config is None or self.search.finished:
                break
            self._asked += 1
            self._taken += 1
            self._queue.append(_Trial(trial_id, config))
        while self._queue and self._idle:
            actor, trial = self._idle.pop(), self._queue.popleft()
            self._open[actor.run.remote(trial.config)] = _Slot(actor, trial)
        starting = sum(slot.trial is None for slot in self._open.values())
        for _ in range(len(self._queue) - starting):
            actor = self.start()
            self._actors.append(actor)
            self._open[actor.ready.remote()] = _Slot(actor)

    def _end(self, call: Any, slot: _Slot) -> None:
        """A call returned: the actor's next trial first, then what to say of this one."""
        trial = slot.trial
        try:
            ray.get(call)
        except RayError as error:
            self._failed(slot, last_line(error))
            return
        self._failed_starts = 0
        self._idle.append(slot.actor)
        if trial is None:
            self._fill()
            return
        self._taken -= 1
        self._fill()
        self.search.on_trial_complete(trial.id)
        self._fill()

    def _failed(self, slot: _Slot, reason: str) -> None:
        """The actor died, or its trial raised: a process in that state runs nothing more."""
        self._actors.remove(slot.actor)
        ray.kill(slot.actor)
        if slot.trial is None:
            self._failed_starts += 1
            if self._failed_starts >= _FAILED_STARTS:
                raise SearchError("the processes of the trials do not start", reason, "see Ray's logs")
        elif slot.trial.failures < RETRIES:
            log.info("trial %s is tried again: %s", slot.trial.id, reason)
            slot.trial.failures += 1
            self._queue.appendleft(slot.trial)
        else:
            self._taken -= 1
            self.search.fail(slot.trial.id, reason)
        self._fill()


def trials_at_once(settings: Searching) -> int:
    """A batch, or two where they overlap, or as many as the cluster holds.

    Raises:
        ResourceError: the cluster can never hold one trial.
    """
    held = fitting(
        "a search trial",
        settings.cpus,
        settings.gpus,
        "search",
        memory_bytes=settings.memory_bytes,
        labels=settings.labels,
    )
    return min(settings.batch * (1 + settings.overlap), held)
