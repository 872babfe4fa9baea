"""What a search did, in the store: its settings, and every trial that ended, a file each.

    studies/<key>/study.json              what was searched, when it began
    studies/<key>/trials/<number>.json    a row, once it is final: what the sampler was told
    studies/<key>/retried/<number>.json   the row of a trial that failed at first, tried again
    studies/<key>/stopped/<variant>.json  a trial that was stopped early, so that it is not run again
    studies/<key>/looks/<subject>.json    what the contract part said of a variant, so that looks are counted
    studies/<key>/spent/<start>.json      seconds of one start of the search, and of the pauses in it

With the stages (outcomes) and records (latencies) this is all that a search needs to go on, on this cluster
or another one; nothing of Ray is read back.
"""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter, ValidationError

from orchestrator.config.base import canonical, fingerprint
from orchestrator.config.measure import Execution
from orchestrator.errors import CorruptArtifactError, SearchError
from orchestrator.measure.promise import Verdict
from orchestrator.search.objectives import TrialRow
from orchestrator.store.store import Store

_FOLDER = "studies"
_ROWS: TypeAdapter[TrialRow] = TypeAdapter(TrialRow)


@dataclasses.dataclass(frozen=True)
class _Look:
    digest: str
    execution: Execution
    verdict: Verdict


_LOOKS: TypeAdapter[_Look] = TypeAdapter(_Look)

_T = TypeVar("_T")


class Spent(NamedTuple):
    """Wall-clock time of a search over all its starts."""

    seconds: float = 0.0
    """From each start to the last batch that it closed."""
    paused_s: float = 0.0
    """Of those, in which no trial ran because latencies were measured."""

    @property
    def share(self) -> float:
        """Of the time that was pause; 0 where nothing is known."""
        return self.paused_s / self.seconds if self.seconds else 0.0

    def plain(self) -> dict[str, float]:
        """As plain JSON values."""
        return {
            "seconds": round(self.seconds, 1),
            "paused_s": round(self.paused_s, 1),
            "paused_share": round(self.share, 4),
        }


class Ledger:
    """Of one study: what was searched decides its key, the number of trials does not."""

    def __init__(self, store: Store, settings: dict[str, Any]) -> None:
        """Open, or begin, the ledger of a study with these plain settings."""
        self.key = fingerprint(settings)
        self._blobs, self._folder = store.blobs, f"{_FOLDER}/{self.key}"
        text = {"settings": settings, "begun": time.time()}
        self._blobs.put_if_absent(f"{self._folder}/study.json", canonical(text))

    def add(self, row: TrialRow) -> TrialRow:
        """Keep a final row; the row of its number that came first, which may be this one.

        A row that differs from one that failed is kept, too: the trial did better when it was tried again.

        Raises:
            CorruptArtifactError: a file is damaged.
        """
        key = self._row_key(row.number)
        if self._blobs.put_if_absent(key, canonical(row.plain())):
            return row
        first = self._read(key, _ROWS)
        if first.status == "failed" != row.status and first.config == row.config:
            self._blobs.put_if_absent(self._row_key(row.number, "retried"), canonical(row.plain()))
        return first

    def rows(self) -> list[TrialRow]:
        """Every row, by number.

        Raises:
            CorruptArtifactError: a file is damaged.
        """
        folders = ("trials", "retried")  # later ones count
        keys = [key for name in folders for key in self._blobs.list(f"{self._folder}/{name}")]
        found = {row.number: row for row in (self._read(key, _ROWS) for key in keys)}
        return [found[number] for number in sorted(found)]

    def check(self) -> None:
        """Nothing, if the store can be written.

        Raises:
            StoreError: it cannot.
        """
        self._blobs.put(f"{self._folder}/check.json", b"{}")

    def stop(self, variant: str, outcome: dict[str, Any]) -> None:
        """Keep the outcome of a trial that was stopped early."""
        self._blobs.put_if_absent(f"{self._folder}/stopped/{variant}.json", canonical(outcome))

    def stopped(self, variant: str) -> dict[str, Any] | None:
        """That outcome; None when the trial was not stopped."""
        key = f"{self._folder}/stopped/{variant}.json"
        if not self._blobs.exists(key):
            return None
        found: dict[str, Any] = json.loads(self._blobs.get(key))
        return found

    def look(self, digest: str, execution: Execution, verdict: Verdict) -> None:
        """Keep what the contract part said of a variant."""
        found = dataclasses.asdict(_Look(digest, execution, verdict))
        self._blobs.put_if_absent(f"{self._folder}/looks/{digest}-{execution}.json", canonical(found))

    def looks(self) -> dict[tuple[str, Execution], Verdict]:
        """What it said in all starts, by digest and execution.

        Raises:
            CorruptArtifactError: a file is damaged.
        """
        found = [self._read(key, _LOOKS) for key in self._blobs.list(f"{self._folder}/looks")]
        return {(look.digest, look.execution): look.verdict for look in found}

    def spend(self, start: str, spent: Spent) -> None:
        """Keep what one start of the search took so far; `start` is a name of its own."""
        self._blobs.put(f"{self._folder}/spent/{start}.json", canonical(spent._asdict()))

    def spent(self) -> Spent:
        """What all starts took together."""
        found = [json.loads(self._blobs.get(key)) for key in self._blobs.list(f"{self._folder}/spent")]
        return Spent(*(sum(one[name] for one in found) for name in Spent._fields))

    def _row_key(self, number: int, folder: str = "trials") -> str:
        # Arms are numbered from -2 downwards.
        return f"{self._folder}/{folder}/{number + 1_000_000:07d}.json"

    def _read(self, key: str, kind: TypeAdapter[_T]) -> _T:
        try:
            return kind.validate_json(self._blobs.get(key))
        except ValidationError as error:
            raise CorruptArtifactError("a file of the search is damaged", key, "remove that file") from error


def read(store: Store, key: str) -> tuple[dict[str, Any], list[TrialRow]]:
    """The settings and rows of a study by its key, for a report or a comparison.

    Raises:
        SearchError: there is no such study.
    """
    name = f"{_FOLDER}/{key}/study.json"
    if not store.blobs.exists(name):
        raise SearchError("no such study in the store", key)
    settings: dict[str, Any] = json.loads(store.blobs.get(name))["settings"]
    return settings, Ledger(store, settings).rows()


def untimed(row: TrialRow) -> TrialRow:
    """The row as two searches can be compared by: when it ended does not count."""
    return dataclasses.replace(row, seconds=0.0)
