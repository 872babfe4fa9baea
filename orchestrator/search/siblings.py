"""Trained parents that further trials of a search may share: what follows a recovery costs no recovery."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from orchestrator.config.base import fingerprint
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import Config
from orchestrator.config.steps import Precision, precision_of
from orchestrator.search.objectives import TrialRow
from orchestrator.search.pareto import Point, front
from orchestrator.search.space import plan_of, training_prefix


class TrainedParents:
    """Of a study, the trained prefixes of plans that are worth another end.

    Worth it are those with a feasible variant on the front of its own number type: there a good recovery
    shows, whichever type its plan happened to end in. And those that the batch in the making trains itself:
    how good they are is not known yet, but another end costs little beside their training. The one with the
    fewest variants is next, of equals the earliest, so what is next depends on results alone.
    """

    def __init__(self, settings: SearchSettings) -> None:
        """Of a study with these settings."""
        self._settings = settings
        self._rows: dict[Precision, list[TrialRow]] = defaultdict(list)
        self._prefixes: dict[str, Config] = {}
        self._own: list[str] = []
        """Of the batch in the making."""
        self._variants: Counter[str] = Counter()
        self._used_up: set[str] = set()

    def begin(self) -> None:
        """A batch is made."""
        self._own = []

    def learn(self, rows: Sequence[TrialRow]) -> None:
        """Take the results of a batch into account."""
        if not self._settings.siblings:
            return
        for row in sorted(rows, key=lambda row: row.number):
            prefix = training_prefix(row.config, self._settings) if row.feasible else {}
            if _has_other_ends(prefix, row.config):
                self._rows[precision_of(plan_of(row.config, self._settings))].append(row)

    def next(self) -> Config | None:
        """The free values of the parent to share next; None when there is none."""
        keys = [key for key in [*self._best(), *self._own] if key not in self._used_up]
        if not keys:
            return None
        return self._prefixes[min(keys, key=lambda key: self._variants[key])]

    def took(self, config: Config) -> tuple[str, bool]:
        """Note a suggestion: the name of what it trains, empty for nothing; whether another one has that."""
        prefix = training_prefix(config, self._settings)
        if not prefix:
            return "", False
        key = _key(prefix)
        shares = self._variants[key] > 0
        self._variants[key] += 1
        if not shares and _has_other_ends(prefix, config):
            self._prefixes[key] = prefix
            self._own.append(key)
        return key, shares

    def forget(self, prefix: Config) -> None:
        """Leave out a parent that has no untried end."""
        self._used_up.add(_key(prefix))

    def _best(self) -> list[str]:
        """Keys of those on a front, by the number of their first trial there."""
        found: dict[str, int] = {}
        for rows in self._rows.values():
            for place in front([Point(-row.drop, row.latency_ms) for row in rows]):
                key = _key(training_prefix(rows[place].config, self._settings))
                found[key] = min(rows[place].number, found.get(key, rows[place].number))
        return sorted(found, key=lambda key: found[key])


def _has_other_ends(prefix: Config, config: Config) -> bool:
    """A plan that ends with its training has none."""
    return 0 < len(prefix) < len(config)


def _key(prefix: Config) -> str:
    return fingerprint(dict(prefix))
