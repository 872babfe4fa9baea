"""A search in batches: what runs next, what ended, what was measured. Plain Python; drivers run the trials.

Nothing of the search's truth lives in a driver: outcomes are stages in the store, so a killed search is run
again from its start, and trials that ended answer at once.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from orchestrator.config.free import Config
from orchestrator.config.search import Searching
from orchestrator.search.ledger import Ledger, Spent
from orchestrator.search.objectives import TrialRow
from orchestrator.search.outcome import Outcome
from orchestrator.search.study import Suggestion

Measure = Callable[[Sequence[TrialRow]], Sequence[TrialRow]]
"""Adds latencies to `evaluated` rows; called in the driver while no trial runs, or all that run rest. Idle
workers keep their cores in Ray's books meanwhile, so a measuring actor must ask for none."""
OnEvent = Callable[[TrialRow], None]
"""Called in the driver when a trial ended (any status but `ok`) and again when it was measured."""
Lookup = Callable[[Config], Outcome | None]
"""The stored outcome of a trial that ended, in this search or before; None when there is none."""
Work = Callable[[Suggestion], float]
"""How long a trial will take compared with others of its batch."""
Trainable = Callable[[dict[str, Any]], Mapping[str, float]]
"""One trial: evaluates a config, leaves its outcome where the searcher looks, returns finite numbers."""


NODE_DIED = "the actor's node was "
"""In Ray's words for a process that was lost with its node: terminated, preempted."""
_LOSSES = 5
"""Of one trial, with nodes that died, before it counts as failed."""


class Source(Protocol):
    """Where a driver's trials come from, and who is told how they ended."""

    finished: bool
    """No trial will come any more."""

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A config to run under this id; None while there is none."""
        ...

    def on_trial_complete(self, trial_id: str) -> None:
        """The trial's function returned."""
        ...

    def fail(self, trial_id: str, reason: str) -> None:
        """The trial failed after its retries."""
        ...


class Study(Protocol):
    """Suggests trials batch by batch, each from the results of all that were told."""

    def ask(self) -> list[Suggestion]:
        """The next batch; empty at the end."""
        ...

    def tell(self, rows: Sequence[TrialRow]) -> None:
        """The whole batch's results."""
        ...


@dataclasses.dataclass
class _Batch:
    """Trials that are told together."""

    numbers: set[int]
    """Of those that did not end yet."""
    ended: list[TrialRow] = dataclasses.field(default_factory=list)
    cut: bool = False
    """Trials of it were dropped, since the time was over."""


class BatchSearch:
    """Hands a study's suggestions to a driver, and a whole measured batch back to the study.

    A batch is told only when all its trials ended and were measured, in trial order: what is suggested
    next does not depend on which trial ended first. With `ahead` so many further batches run meanwhile, each
    asked for as soon as the oldest was told. Outcomes are looked up, not taken from the driver. The
    longest trials of a batch run first, so that short ones fill the time until it ends. Of those that share a
    training one runs first, and the others when that is done; if it fails or is stopped, they end as it does.
    """

    def __init__(
        self,
        study: Study,
        *,
        to_row: Callable[[Suggestion, Outcome], TrialRow],
        lookup: Lookup,
        measure: Measure,
        on_event: OnEvent,
        work: Work = lambda suggestion: 0,  # noqa: ARG005
        arms: Sequence[Suggestion] = (),
        ledger: Ledger | None = None,
        most_s: float = math.inf,
        ahead: int = 0,
    ) -> None:
        """Begin; `arms` run with the first batch, and the study is not told of them.

        Once all starts of the search took `most_s` seconds no trial begins any more; what has ended counts.
        """
        self.rows: list[TrialRow] = []
        self.arms: list[TrialRow] = []
        self.finished = False
        self._study, self._to_row, self._lookup = study, to_row, lookup
        self._measure, self._on_event, self._ledger, self._work = measure, on_event, ledger, work
        self._begun, self._paused_s, self._start = time.monotonic(), 0.0, uuid.uuid4().hex
        self._before = {row.number: row for row in ledger.rows()} if ledger is not None else {}
        self._spent_s = ledger.spent().seconds if ledger is not None else 0.0
        self._most_s, self._over, self._whole, self._asked = most_s, False, True, -1
        self._arms = list(arms)
        self._ahead, self._used_up = ahead, False
        self._open: list[_Batch] = []
        """The oldest first."""
        self._waiting: list[Suggestion] = []
        self._running: dict[str, Suggestion] = {}
        self._trained: set[str] = set()
        self._alike: dict[tuple[str, ...], Outcome] = {}
        """Of trainings that were stopped or failed: what all that share them get."""
        self._lost: Counter[int] = Counter()

    @property
    def running(self) -> int:
        """Trials that a driver is at."""
        return len(self._running)

    def advance(self) -> None:
        """Close batches that ended, and ask for more until trials have to run or all is done.

        A batch is asked for before the next one is closed, so what it is made from does not depend on when
        trials end.
        """
        while True:
            if len(self._open) <= self._ahead and not self._used_up:
                self._ask()
            elif self._open and not self._open[0].numbers:
                self._close(self._open[0])
                self._open.pop(0)
            else:
                break
        self.finished = self._used_up and not self._open

    def _ask(self) -> None:
        # When the time is over, what earlier starts came to is still looked up.
        over = self._over and not (self._whole and any(number > self._asked for number in self._before))
        batch = [] if over else [*self._arms, *self._study.ask()]
        self._arms, self._used_up = [], not batch
        if not batch:
            return
        self._asked = max(self._asked, *(suggestion.number for suggestion in batch))
        self._open.append(_Batch({suggestion.number for suggestion in batch}))
        waiting = []
        for suggestion in batch:
            outcome = self._known(suggestion)
            if outcome is None:
                waiting.append(suggestion)
            else:
                self._end(suggestion, outcome)
        # Graham 1969, "Bounds on Multiprocessing Timing Anomalies": the longest processing time first.
        self._waiting += sorted(waiting, key=self._work, reverse=True)
        self._begin_none_late()

    def _known(self, suggestion: Suggestion) -> Outcome | None:
        """How a trial ended, by itself or with a training that it shares."""
        found = self._lookup(suggestion.config) or self._alike.get(suggestion.trainings)
        before = self._before.get(suggestion.number)
        if before is None or before.status != "stopped" or before.config != suggestion.config:
            return found
        # Another study may have trained the whole since, and this one goes on as it began.
        ended = found is not None and found.stopped
        return found if ended else Outcome(stopped=True, metric=before.metric, epochs=(before.epochs,))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A config to run; None while the batch's other trials run, and at the end."""
        self._begin_none_late()
        self.advance()
        suggestion = next(self._ready(), None)
        if suggestion is None:
            return None
        self._waiting.remove(suggestion)
        self._running[trial_id] = suggestion
        return dict(suggestion.config)

    def on_trial_complete(self, trial_id: str) -> None:
        """The driver's word that a trial ended; one that failed is ended by `fail`."""
        if trial_id not in self._running:
            return
        suggestion = self._running.pop(trial_id)
        outcome = self._lookup(suggestion.config)
        self._end(suggestion, outcome or Outcome(failure="the trial ended without a result"))

    def fail(self, trial_id: str, reason: str) -> None:
        """End a trial that failed after its retries; one that was finished before its process died counts.

        One whose node died waits for another turn: a retry may have been sent to the same node, whose death
        takes seconds to be noticed.

        Raises:
            StoreError: the store can no longer be written, so the trial is not to blame.
        """
        if trial_id in self._running:
            suggestion = self._running.pop(trial_id)
            outcome = self._lookup(suggestion.config)
            if outcome is None and self._ledger is not None:
                self._ledger.check()
            if outcome is None and NODE_DIED in reason and self._lost[suggestion.number] < _LOSSES:
                self._lost[suggestion.number] += 1
                self._waiting.insert(0, suggestion)
                return
            self._end(suggestion, outcome or Outcome(failure=reason))

    def _ready(self) -> Iterator[Suggestion]:
        """Those that need nothing which another one is about to train."""
        trains = {name for one in self._running.values() for name in one.trainings} - self._trained
        return (one for one in self._waiting if trains.isdisjoint(one.trainings))

    def _begin_none_late(self) -> None:
        """Trials that wait are dropped when the time is over; one that failed before is not tried again."""
        if not self._waiting or self._taken_s() <= self._most_s:
            return
        waiting, self._waiting = self._waiting, []
        for suggestion in waiting:
            before, batch = self._before.get(suggestion.number), self._batch_of(suggestion.number)
            if before is not None and before.status == "failed" and before.config == suggestion.config:
                self._end(suggestion, Outcome(failure=before.reason))
            else:
                batch.numbers.remove(suggestion.number)
                batch.cut = self._over = True

    def _taken_s(self) -> float:
        """By all starts."""
        return self._spent_s + time.monotonic() - self._begun

    def _end(self, suggestion: Suggestion, outcome: Outcome) -> None:
        row = self._to_row(suggestion, outcome)
        before = self._before.get(row.number)
        same = before is not None and before.config == row.config
        seconds = before.seconds if before is not None and same else self._taken_s()
        row = dataclasses.replace(row, seconds=round(seconds, 1))
        batch = self._batch_of(row.number)
        batch.numbers.remove(row.number)
        batch.ended.append(row)
        self._on_event(row)
        if not (outcome.failure or outcome.stopped):
            self._trained.update(suggestion.trainings)
        elif suggestion.trainings and (outcome.untrained or outcome.stopped):
            self._alike[suggestion.trainings] = outcome
            also = [one for one in self._waiting if one.trainings == suggestion.trainings]
            self._waiting = [one for one in self._waiting if one not in also]
            for one in also:
                self._end(one, outcome)

    def _batch_of(self, number: int) -> _Batch:
        """That a trial which did not end yet is in."""
        return next(batch for batch in self._open if number in batch.numbers)

    def _close(self, batch: _Batch) -> None:
        """Measure what ended well, keep all, tell the study of its own.

        A trial that failed and did better when the search was started again is told as before: suggestions
        that were made and run since then stay as they are.
        """
        evaluated = [row for row in batch.ended if row.status == "evaluated"]
        evaluated.sort(key=lambda row: row.number)
        since = time.monotonic()
        measured = list(self._measure(evaluated)) if evaluated else []
        self._paused_s += time.monotonic() - since
        rows = [row for row in batch.ended if row.status != "evaluated"] + measured
        rows.sort(key=lambda row: row.number)
        first = rows if self._ledger is None else self._kept(self._ledger, rows)
        told = [
            before if before.status == "failed" and before.config == row.config else row
            for before, row in zip(first, rows, strict=True)
        ]
        self._whole = self._whole and not batch.cut
        if self._whole:  # a study wants whole batches, one after the other
            self._study.tell([row for row in told if row.number >= 0])
        self.rows += [row for row in rows if row.number >= 0]
        self.arms += [row for row in rows if row.number < 0]
        for row in measured:
            self._on_event(row)

    def _kept(self, ledger: Ledger, rows: Sequence[TrialRow]) -> list[TrialRow]:
        """The rows as the ledger first had them; the time is kept where one of them is new."""
        first = [ledger.add(row) for row in rows]
        if any(before is row for before, row in zip(first, rows, strict=True)):
            ledger.spend(self._start, Spent(time.monotonic() - self._begun, self._paused_s))
        return first


class Driver(Protocol):
    """Runs what the searcher asks for, `shared` merged into every config, until it is finished.

    `poll` is called about every second in the driver's process; `storage` may hold the driver's own files
    while it runs. A trial that failed is tried once more before the searcher is told.
    """

    def __call__(
        self,
        search: Source,
        trainable: Trainable,
        shared: Mapping[str, Any],
        settings: Searching,
        *,
        storage: Any,
        poll: Callable[[], None] = ...,
    ) -> None: ...
