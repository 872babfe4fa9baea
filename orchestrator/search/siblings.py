"""Trained parents that further trials of a search may share: what follows a recovery costs no recovery."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.config.steps import Precision, precision_of
from orchestrator.search.objectives import TrialRow
from orchestrator.search.pareto import Point, front
from orchestrator.search.space import plan_of, training_prefix, trainings_of


class Parent(NamedTuple):
    """What trials may share."""

    training: str
    """Names it (`trainings_of`)."""
    prefix: Config
    """The free values that decide it."""


class TrainedParents:
    """Of a study, the trained prefixes of plans that are worth another end.

    Worth it are those with a feasible variant on the front of its own number type: there a good recovery
    shows, whichever type its plan happened to end in. And those that the batch in the making trains itself:
    how good they are is not known yet, but another end costs little beside their training. These come first,
    until half of the batch's siblings are theirs. The one with the fewest variants is next, of equals the
    earliest, so what is next depends on results alone.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Of a study with these settings."""
        self._settings = settings
        self._rows: dict[Precision, list[TrialRow]] = defaultdict(list)
        self._known: set[str] = set()
        self._prefixes: dict[str, Config] = {}
        self._own: list[str] = []
        """Of the batch in the making."""
        self._shares_of_own = 0
        self._variants: Counter[str] = Counter()
        self._used_up: set[str] = set()

    def begin(self) -> None:
        """A batch is made."""
        self._own, self._shares_of_own = [], 0

    def learn(self, rows: Sequence[TrialRow]) -> None:
        """Take the results of a batch into account."""
        if not self._settings.siblings:
            return
        for row in sorted(rows, key=lambda row: row.number):
            names = trainings_of(row.config, self._settings) if row.feasible else ()
            if names and names[-1] in self._prefixes:
                self._rows[precision_of(plan_of(row.config, self._settings))].append(row)

    def next(self) -> Parent | None:
        """What to share next; None when there is nothing."""
        own, best = ([key for key in keys if key not in self._used_up] for keys in (self._own, self._best()))
        is_own = 2 * self._shares_of_own < self._settings.siblings
        keys = (own or best) if is_own else (best or own)
        if not keys:
            return None
        key = min(keys, key=lambda key: self._variants[key])
        return Parent(key, self._prefixes[key])

    def took(self, config: Config) -> tuple[tuple[str, ...], bool]:
        """Note a suggestion: the names of what it trains, and whether others train all of that."""
        names = trainings_of(config, self._settings)
        if not names:
            return names, False
        shares = self._known.issuperset(names)
        self._known.update(names)
        self._variants[names[-1]] += 1
        self._shares_of_own += shares and names[-1] in self._own
        prefix = training_prefix(config, self._settings)
        # A plan that ends with its training has no other end.
        if not shares and 0 < len(prefix) < len(config):
            self._prefixes[names[-1]] = prefix
            self._own.append(names[-1])
        return names, shares

    def is_end_of(self, parent: Parent, config: Config) -> bool:
        """Whether the config trains nothing but the parent."""
        return trainings_of(config, self._settings)[-1:] == (parent.training,)

    def forget(self, parent: Parent) -> None:
        """Leave out a parent that has no untried end."""
        self._used_up.add(parent.training)

    def _best(self) -> list[str]:
        """Those on a front, by the number of their first trial there."""
        found: dict[str, int] = {}
        for rows in self._rows.values():
            for place in front([Point(-row.drop, row.latency_ms) for row in rows]):
                key = trainings_of(rows[place].config, self._settings)[-1]
                found[key] = min(rows[place].number, found.get(key, rows[place].number))
        return sorted(found, key=lambda key: found[key])
