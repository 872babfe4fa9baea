"""The last finished epoch of a training in the store, for a process that comes after one that died."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from orchestrator.errors import CorruptArtifactError, StoreError
from orchestrator.store.room import wait_for_room
from orchestrator.store.store import Store
from orchestrator.training.state import FACTS, TENSORS, TrainState

_FOLDER = "checkpoints"


class Stopped(Exception):  # noqa: N818 - not a failure
    """Raised by who is told of an epoch, to end the training for good: its checkpoint is of no more use."""


class Checkpoint:
    """Where the epochs of one piece of work are kept; of several, the last one.

    Only the process that holds the work's stage may write. An epoch's files have its number in their names
    and the facts, which hold the tensors' sha256, come last: a death in between leaves the epoch before.
    """

    def __init__(self, store: Store, key: str) -> None:
        """Of the work that is called `key`."""
        self._store, self._key = store, key
        self._blobs, self._folder = store.blobs, f"{_FOLDER}/{key}"

    def of(self, part: str) -> Checkpoint:
        """Of one of several trainings of the same work; `forget` of the whole forgets it, too."""
        return Checkpoint(self._store, f"{self._key}/{part}")

    def load(self) -> TrainState | None:
        """The state after the last whole epoch; None when there is none that can be read."""
        for number in reversed(self._epochs()):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    for name in (TENSORS, FACTS):
                        (Path(folder) / name).write_bytes(self._blobs.get(self._name(number, name)))
                    return TrainState.load(folder)
                except (CorruptArtifactError, StoreError):
                    continue
        return None

    def save(self, state: TrainState) -> None:
        """Keep the state, and forget earlier epochs; waits while the disk is nearly full.

        Raises:
            StoreError: the store refuses.
        """
        wait_for_room(self._blobs)
        before = self._epochs()
        with tempfile.TemporaryDirectory() as folder:
            state.save(folder)
            for name in (TENSORS, FACTS):
                self._blobs.put(self._name(state.epoch, name), (Path(folder) / name).read_bytes())
        self._remove([number for number in before if number != state.epoch])

    def forget(self) -> None:
        """Remove what is kept: the work is done."""
        self._blobs.delete_folder(self._folder)

    def _epochs(self) -> list[int]:
        names = [key.rpartition("/")[2] for key in self._blobs.list(self._folder)]
        return sorted({int(name.partition("-")[0]) for name in names})

    def _name(self, epoch: int, name: str) -> str:
        return f"{self._folder}/{epoch:06d}-{name}"

    def _remove(self, epochs: list[int]) -> None:
        for number in epochs:
            for name in (FACTS, TENSORS):
                with contextlib.suppress(StoreError):
                    self._blobs.delete(self._name(number, name))
