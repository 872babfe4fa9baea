"""Which trials are worth their remaining epochs: rules over what all trials reported, in plain Python.

A search for several objectives must not stop a cheap variant because costly ones are better: a trial is
judged by those alone that cost no more. What a variant costs is known before it is trained (`cost`, its
operations); what it will be good for is not. Nor is it judged by those that train for fewer epochs: their
learning rate has come down already, which looks better than it will be. A trial at its last epoch goes on,
since nothing is saved by stopping it.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from functools import singledispatch
from statistics import median
from typing import NamedTuple

from orchestrator.config.base import Settings
from orchestrator.config.search import Halving, Median


class Report(NamedTuple):
    """What a trial says at the end of an epoch."""

    trial: str
    epoch: int
    """From 1: finished epochs."""
    cost: float
    metric: float
    """Larger is better."""
    epochs: int
    """That the trial trains in all, if nothing stops it."""

    @property
    def is_last(self) -> bool:
        return self.epoch >= self.epochs

    def is_rival_of(self, other: Report) -> bool:
        """Whether the other trial is to be judged by this one."""
        return self.cost <= other.cost and self.epochs >= other.epochs

    def beats(self, other: Report) -> bool:
        """Whether it is a rival with a better metric."""
        return self.is_rival_of(other) and self.metric > other.metric


class Rule(ABC):
    """Told of every epoch of every trial, answers whether the trial goes on. Not for concurrent calls."""

    @abstractmethod
    def goes_on(self, report: Report) -> bool:
        """Take a report into account and judge its trial by it."""


@singledispatch
def rule_of(settings: Settings | None) -> Rule:
    """The rule of the settings; without settings every trial goes on."""
    del settings
    return Always()


class Always(Rule):
    """Stops nothing."""

    def goes_on(self, report: Report) -> bool:
        """True."""
        del report
        return True


class SuccessiveHalving(Rule):
    """Asynchronous successive halving for metric and cost (Li et al. 2020, https://arxiv.org/abs/1810.05934;
    Schmucker et al. 2021, https://arxiv.org/abs/2106.12639).

    At epochs `grace`, `grace * factor`, `grace * factor^2`, ... a trial goes on if it is among the best
    1 / `factor` of those that have come so far and train no fewer epochs, ranked by how many of their rivals
    are better; the first ones and those that no rival beats always do.
    """

    def __init__(self, settings: Halving) -> None:
        self._grace, self._factor = settings.grace, settings.factor
        self._rungs: dict[int, _Rung] = defaultdict(_Rung)

    def goes_on(self, report: Report) -> bool:
        """Judge at the rungs alone."""
        if not self._is_rung(report.epoch):
            return True
        rung = self._rungs[report.epoch]
        rung.add(report)
        count, ahead = rung.standing(report)
        return report.is_last or count < self._factor or ahead < max(1, count // self._factor)

    def _is_rung(self, epoch: int) -> bool:
        rung = self._grace
        while rung < epoch:
            rung *= self._factor
        return rung == epoch


class _Rung:
    """The reports of one epoch, a trial each, and how many rivals of each are better."""

    def __init__(self) -> None:
        self._reports: dict[str, Report] = {}
        self._better: Counter[str] = Counter()

    def add(self, report: Report) -> None:
        """Take a trial's report in; one that was there already changes nothing."""
        if report.trial in self._reports:
            return
        for other in self._reports.values():
            self._better[report.trial] += other.beats(report)
            self._better[other.trial] += report.beats(other)
        self._reports[report.trial] = report

    def standing(self, report: Report) -> tuple[int, int]:
        """How many trials train no fewer epochs, and how many of them fewer rivals beat than this one."""
        peers = [trial for trial, other in self._reports.items() if other.epochs >= report.epochs]
        own = self._better[report.trial]
        return len(peers), sum(self._better[trial] < own for trial in peers)


class MedianStopping(Rule):
    """Golovin et al. 2017, "Google Vizier", section 3.2.

    A trial stops if its best metric so far is below the median of the running averages, up to the same epoch,
    of its rivals, once there are `least` of them.
    """

    def __init__(self, settings: Median) -> None:
        self._grace, self._least = settings.grace, settings.least
        self._curves: dict[str, list[Report]] = defaultdict(list)

    def goes_on(self, report: Report) -> bool:
        """Judge after the first `grace` epochs."""
        own = self._curves[report.trial]
        if report.epoch not in (seen.epoch for seen in own):
            bisect.insort(own, report, key=lambda one: one.epoch)
        if report.epoch < self._grace or report.is_last:
            return True
        averages = [
            sum(seen.metric for seen in upto) / len(upto)
            for trial, curve in self._curves.items()
            if trial != report.trial
            and curve[0].is_rival_of(report)
            and curve[-1].epoch >= report.epoch
            and (upto := [seen for seen in curve if seen.epoch <= report.epoch])
        ]
        if len(averages) < self._least:
            return True
        return max(seen.metric for seen in own if seen.epoch <= report.epoch) >= median(averages)


@rule_of.register
def _(settings: Halving) -> Rule:
    return SuccessiveHalving(settings)


@rule_of.register
def _(settings: Median) -> Rule:
    return MedianStopping(settings)
