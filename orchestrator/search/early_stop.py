"""Which trials are worth their remaining epochs: rules over what all trials reported, in plain Python.

A search for several objectives must not stop a cheap variant because costly ones are better: each trial is
compared with those alone that cost no more. What a variant costs is known before it is trained (`cost`, its
operations times the bytes of a number); what it will be good for is not. Nor with those that train for fewer
epochs: their learning rate has come down already, which looks better than it will be. A trial at its last
epoch goes on, since nothing is saved by stopping it.
"""

from __future__ import annotations

import bisect
from abc import ABC, abstractmethod
from collections import defaultdict
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
    """Asynchronous successive halving (Li et al. 2020, https://arxiv.org/abs/1810.05934).

    At epochs `grace`, `grace * factor`, `grace * factor^2`, ... a trial goes on if it is among the best
    1 / `factor` of its rivals that have come so far; the first ones always do.
    """

    def __init__(self, settings: Halving) -> None:
        self._grace, self._factor = settings.grace, settings.factor
        self._rungs: dict[int, dict[str, Report]] = defaultdict(dict)

    def goes_on(self, report: Report) -> bool:
        """Judge at the rungs alone."""
        if not self._is_rung(report.epoch):
            return True
        rung = self._rungs[report.epoch]
        rung[report.trial] = report
        if report.is_last:
            return True
        rivals = [other.metric for other in rung.values() if other.is_rival_of(report)]
        better = sum(metric > report.metric for metric in rivals)
        return better < max(1, len(rivals) // self._factor) or len(rivals) < self._factor

    def _is_rung(self, epoch: int) -> bool:
        rung = self._grace
        while rung < epoch:
            rung *= self._factor
        return rung == epoch


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
