"""The guard in service: who is ejected for plausible but wrong answers, and for how long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator.config.ensemble import Node, Spec
from orchestrator.config.serving import GuardSettings
from orchestrator.config.signature import Task
from orchestrator.ensemble import guard
from orchestrator.ensemble.tree import Prediction, distinct

LEAST = 3
"""Members of which one can be found wrong."""
TOGETHER = 8
"""Requests that are looked at together, which costs a fraction of one after the other."""
LONGEST_S = 0.25
"""With fewer requests than that, those of so long a time are."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Term:
    since_s: float
    count: int
    """Which ejection of this member it is."""


class Watchman:
    """Watches one ensemble's answers.

    Args:
        tree: the fitted tree.
        task: what it answers.
        settings: how sure it must be, and how long a member stays out.
        clock: seconds, rising.
    """

    def __init__(
        self, tree: Node, task: Task, settings: GuardSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._members = distinct(tree)
        self._task = task
        self._settings = settings
        self._clock = clock
        self._watch = guard.start(len(self._members))
        self._waiting: list[Prediction] = []
        self._looked_s = clock()
        self._terms: dict[int, _Term] = {}
        self.ejected: Collection[int] = ()
        """Positions of the members that were found wrong, in that order."""

    def saw(self, prediction: Prediction) -> None:
        """One more answer to a request."""
        self._waiting.append(prediction)
        now = self._clock()
        if len(self._waiting) >= TOGETHER or now - self._looked_s >= LONGEST_S:
            self._look(now)

    def renew(self) -> None:
        """Let those answer again whose time is over."""
        probation_s = self._settings.probation_s
        if probation_s is None:
            return
        for position in self.ejected:
            term = self._terms[position]
            if self._clock() - term.since_s >= probation_s * 2.0 ** min(term.count - 1, 30):
                self.readmit(position)

    def readmit(self, position: int) -> None:
        """Let the member at this position answer again; from now on it is watched like any other."""
        self._watch = guard.readmitted(self._watch, position)
        self._waiting.clear()
        self.ejected = self._watch.ejected
        logger.warning("member %s is asked again", self._members[position].name)

    def _look(self, now_s: float) -> None:
        found = guard.excesses(self._waiting, self._task)
        self._waiting.clear()
        self._looked_s = now_s
        for line in found:
            known = [None if position in self._watch.ejected else one for position, one in enumerate(line)]
            self._watch = guard.observe(self._watch, known, 1, self._settings.every)
        for position in self._watch.ejected:
            if position not in self.ejected:
                count = self._terms[position].count + 1 if position in self._terms else 1
                self._terms[position] = _Term(now_s, count)
                logger.warning("member %s answers wrongly and is ejected", self._members[position].name)
        self.ejected = self._watch.ejected


def watchman_of(spec: Spec, settings: GuardSettings | None, clock: Callable[[], float]) -> Watchman | None:
    """The watchman of a served ensemble; None if it wants none, or no member could be found wrong."""
    watched = sum(member.record is not None for member in distinct(spec.tree)) >= LEAST
    return Watchman(spec.tree, spec.signature.task, settings, clock) if settings and watched else None
