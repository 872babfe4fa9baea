"""What the stages tell of their work: each event as a line for people and as figures for a live view."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from orchestrator.pipeline.context import Run
from orchestrator.progress import Best, Result, Training, Trials
from orchestrator.search.objectives import TrialRow
from orchestrator.search.pareto import Point, hypervolume
from orchestrator.search.space import displayed
from orchestrator.training.ray_train import Ended, Failed
from orchestrator.training.state import EpochReport

TrainingEvent = EpochReport | str


class TrainingWatch:
    """Tells of trainings that go on side by side."""

    def __init__(self, run: Run, epochs: Mapping[str, int]) -> None:
        """Begin; `epochs` of each training by its name."""
        self._run, self._epochs = run, epochs
        for name, count in epochs.items():
            run.progress("train", "", Training(name, "waiting", epochs=count))

    def __call__(self, name: str, event: TrainingEvent) -> None:
        """An epoch of a model, or a line about it."""
        epochs = self._epochs[name]
        text = f"{name}: {event_text(self._run, epochs, event)}"
        fact = Training(name, "training", epochs=epochs)
        if isinstance(event, EpochReport):
            fact = epoch_of(self._run, name, event, epochs)
        elif isinstance(event, Ended | Failed):
            fact = Training(name, "failed" if isinstance(event, Failed) else "trained")
        else:
            self._run.progress("train", text)
            text = ""
        self._run.progress("train", text, fact)


class SearchWatch:
    """Tells of a search: every trial that ended, and where the whole of it stands."""

    def __init__(
        self,
        run: Run,
        parent: TrialRow,
        trials: int,
        clock: Callable[[], float] = time.monotonic,
        stage: str = "search",
    ) -> None:
        """Begin.

        Args:
            run: told of everything.
            parent: measured; the hypervolume is against it.
            trials: how many there will be at most.
            clock: seconds, monotone.
            stage: what the events are told of.
        """
        self._stage = stage
        self._run, self._parent, self._total, self._clock = run, parent, trials, clock
        self._rows: dict[int, TrialRow] = {}
        self._running = 0
        self._began: float | None = None
        self._before = 0
        """Trials that had ended when the first one ran."""

    def row(self, row: TrialRow) -> None:
        """A trial that ended, or was measured after that."""
        if row.number >= 0:  # arms are no trials
            if row.number not in self._rows:
                self._running = max(0, self._running - 1)  # until the next count
            self._rows[row.number] = row
        self._tell(trial_line(row, self._total, self._run), row)

    def epoch(self, name: str, report: EpochReport) -> None:
        """An epoch of a trial's recovery."""
        text = f"{name}: {report.text(self._run.config.metric.label)}"
        self._run.progress(self._stage, text, epoch_of(self._run, name, report))

    def running(self, count: int) -> None:
        """How many trials run at this moment."""
        if count and self._began is None:
            self._began, self._before = self._clock(), len(self._rows)
        self._running = count
        self._tell("")

    def _tell(self, text: str, row: TrialRow | None = None) -> None:
        failed = sum(found.status == "failed" for found in self._rows.values())
        self._run.progress(
            self._stage,
            text,
            Trials(
                total=self._total,
                running=self._running,
                finished=len(self._rows) - failed,
                failed=failed,
                metric_name=self._run.config.metric.label,
                best=self._best(),
                hypervolume=self._volume(),
                left_s=self._left(),
                ended="" if row is None else row.name,
                ended_badly=row is not None and row.status == "failed",
                result=None if row is None else result_of(row),
            ),
        )

    def _measured(self) -> list[TrialRow]:
        return [row for row in self._rows.values() if row.ok]

    def _best(self) -> Best | None:
        rows = self._measured()
        if not rows:
            return None
        feasible = [row for row in rows if row.feasible]
        best = (
            min(feasible, key=lambda row: (row.latency_ms, row.drop, row.number))
            if feasible
            else min(rows, key=lambda row: (row.drop, row.latency_ms, row.number))
        )
        return Best(best.name, best.metric, best.latency_ms, best.speedup, bool(feasible))

    def _volume(self) -> float | None:
        points = [Point(-row.drop, row.latency_ms) for row in self._measured()]
        if not points:
            return None
        return hypervolume(points, parent_gain=0.0, parent_latency_ms=self._parent.latency_ms)

    def _left(self) -> float | None:
        ended, open_ = len(self._rows) - self._before, self._total - len(self._rows)
        if self._began is None or ended <= 0 or open_ <= 0:
            return None
        return (self._clock() - self._began) / ended * open_


def result_of(row: TrialRow) -> Result | None:
    """What a row brought; None where it was not measured."""
    if not row.ok:
        return None
    return Result(
        row.number,
        row.name,
        displayed(row.config),
        row.metric,
        row.drop,
        row.latency_ms,
        row.bytes,
        row.feasible,
    )


def epoch_of(run: Run, name: str, report: EpochReport, epochs: int | None = None) -> Training:
    """An epoch as figures; `epochs` of the whole training, where it is known."""
    metric = run.config.metric.label
    return Training(
        name, "training", report.epoch + 1, epochs, report.loss, report.metric, metric, report.seconds
    )


def event_text(run: Run, epochs: int, event: TrainingEvent) -> str:
    """One of so many epochs of a model in one line, with the minutes that the others will take."""
    if isinstance(event, str):
        return event
    metric = run.config.metric.label
    left = event.seconds * (epochs - event.epoch - 1)
    return (
        f"epoch {event.epoch + 1} of {epochs}, loss {event.loss:.4f}, "
        f"validation {metric} {event.metric:.4f}, {event.seconds:.1f} s"
        + (f", about {left / 60:.0f} min left" if left >= 60 else "")
    )


def trial_line(row: TrialRow, trials: int, run: Run) -> str:
    """A trial in one line."""
    head = f"arm {row.name}" if row.number < 0 else f"trial {row.number + 1} of {trials}: {row.name}"
    if row.status == "failed":
        return f"{head} failed: {row.reason}"
    if row.status == "stopped":
        return f"{head} {row.reason}: {run.config.metric.label} {row.metric:.4f}"
    if row.status == "evaluated":
        metric = run.config.metric.label
        return f"{head}: {metric} {row.metric:.4f}, drop {row.drop:+.4f}, {row.bytes:,} bytes"
    return f"{head}: {row.latency_ms:.3f} ms, {row.speedup:.2f} times the parent's speed"
