"""The live view of a run on a terminal: one consumer of its events; elsewhere they are written as lines."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.progress import Best, Consumer, Cores, Event, LineLog, Training, Trials, line_of

REFRESH_PER_S = 2.0
MOST_TRAININGS = 8
"""Rows of trainings at once; of more the first that still train are shown."""
BAR_WIDTH = 40


def consumer_for(stream: TextIO | None = None, *, live: bool = True) -> Consumer:
    """A live view where the stream is a terminal that can show one, else a log of lines.

    Args:
        stream: where to write; standard error when not given.
        live: False for a log of lines in any case.
    """
    chosen = stream or sys.stderr
    if not live or not chosen.isatty() or os.environ.get("TERM", "dumb").lower() in ("dumb", "unknown", ""):
        return LineLog(chosen)
    # Colours are rich's business: it honours NO_COLOR. What it must not do is take a file for a terminal.
    return LiveView(Console(file=chosen, highlight=False))


class LiveView:
    """Shows where the present stage stands, and above it the lines that stay.

    Epochs and trials are figures of the view; failures and whatever has no figure are lines. Between two
    events a thread redraws the view, which moves the clock and asks nothing of the run.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._lock = threading.Lock()
        self._live: Live | None = None
        self._stage = ""
        self._trainings: dict[str, Training] = {}
        self._trials: Trials | None = None
        self._cores: Cores | None = None
        self._seconds, self._seen = 0.0, clock()

    def show(self, event: Event) -> None:
        """Take the event into the view, or write its line above it."""
        with self._lock:
            if event.stage != self._stage:
                self._stage, self._trainings, self._trials = event.stage, {}, None
            self._seconds, self._seen = event.seconds, self._clock()
            self._cores = event.cores or self._cores
            self._take(event)
            empty = not self._trainings and self._trials is None
        if empty:
            self.close()
        elif self._live is None:
            self._start()
        if event.text and (event.fact is None or _failed(event)):
            self._console.print(line_of(event), markup=False, highlight=False, soft_wrap=True)
        if self._live is not None:
            self._live.refresh()

    def close(self) -> None:
        """Take the view away; lines above it stay."""
        if self._live is not None:
            live, self._live = self._live, None
            live.stop()

    def render(self) -> RenderableType:
        """The view as it stands now."""
        with self._lock:
            ago = self._clock() - self._seen
            rows: list[RenderableType] = [self._head(ago)]
            if self._trials is not None:
                rows.append(_trials(self._trials))
            shown = [found for found in self._trainings.values() if self._trials is None or _trains(found)]
            if shown:
                rows.append(_trainings(_most(shown)))
                if len(shown) > MOST_TRAININGS:
                    rows.append(Text(f"  and {len(shown) - MOST_TRAININGS} more", style="dim"))
            return Group(*rows)

    def _start(self) -> None:
        # Standard output is left alone: while Ray runs it already goes to standard error, and it is put back
        # by others than this view.
        self._live = Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            vertical_overflow="crop",
        )
        self._live.start()

    def _take(self, event: Event) -> None:
        if isinstance(event.fact, Training):
            before = self._trainings.get(event.fact.name)
            self._trainings[event.fact.name] = _merged(before, event.fact)
        elif isinstance(event.fact, Trials):
            self._trials = event.fact
            self._trainings.pop(event.fact.ended, None)

    def _head(self, ago: float) -> Text:
        head = Text.assemble((self._stage, "bold cyan"), f"  {duration(self._seconds + ago)}")
        left = self._left()
        if left is not None:
            head.append(f", about {duration(max(0.0, left - ago))} left")
        if self._cores is not None:
            used, total = self._cores
            head.append(f"; {used:g} of {total:g} cores in use", style="dim")
        return head

    def _left(self) -> float | None:
        if self._trials is not None:
            return self._trials.left_s
        running = [found for found in self._trainings.values() if found.state in ("training", "waiting")]
        known = [found.left_s for found in running if found.left_s is not None]
        # One that has not told an epoch yet may take longest; then nothing is promised.
        return max(known) if known and len(known) == len(running) else None


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s` or `2 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _trials(trials: Trials) -> RenderableType:
    ended = trials.finished + trials.failed
    counts = f"{trials.running} running, {trials.finished} finished, {trials.failed} failed of {trials.total}"
    grid = Table.grid(padding=(0, 2))
    grid.add_row("  trials", ProgressBar(total=trials.total, completed=ended, width=BAR_WIDTH))
    grid.add_row("", counts)
    grid.add_row("  best", escape(_best(trials.best, trials.metric_name)))
    volume = "-" if trials.hypervolume is None else f"{trials.hypervolume:.4f}"
    grid.add_row("  hypervolume", volume)
    return grid


def _best(best: Best | None, metric: str) -> str:
    if best is None:
        return "none measured yet"
    figures = f"{metric} {best.metric:.4f}, {best.latency_ms:.3f} ms, {best.speedup:.2f} times as fast"
    return f"{best.name}: {figures}" + ("" if best.feasible else " (beyond the limits)")


def _trainings(trainings: list[Training]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("  model", "epoch", "loss", trainings[0].metric_name, "left"):
        table.add_column(column, justify="left" if column == "  model" else "right")
    for found in trainings:
        of = "" if found.epochs is None else f" of {found.epochs}"
        left = found.left_s if found.state == "training" else None
        table.add_row(
            f"  {escape(found.name)}",
            f"{found.epoch}{of}" if found.state == "training" else found.state,
            "" if found.loss is None else f"{found.loss:.4f}",
            "" if found.metric is None else f"{found.metric:.4f}",
            "" if left is None else duration(left),
        )
    return table


def _most(trainings: list[Training]) -> list[Training]:
    """Those that train first, in their order, cut to what is shown."""
    ordered = sorted(trainings, key=lambda found: not _trains(found))
    return trainings if len(trainings) <= MOST_TRAININGS else ordered[:MOST_TRAININGS]


def _trains(training: Training) -> bool:
    return training.state == "training"


def _merged(before: Training | None, now: Training) -> Training:
    """What has no figures of its own keeps those of the last epoch."""
    if before is None or now.loss is not None:
        return now
    return replace(before, state=now.state, epochs=now.epochs or before.epochs)


def _failed(event: Event) -> bool:
    if isinstance(event.fact, Trials):
        return event.fact.ended_badly
    return event.fact is not None and event.fact.state == "failed"
