"""The last finished epoch of a training in the store, for a process that comes after one that died."""

from __future__ import annotations

import contextlib

from orchestrator.errors import CorruptArtifactError, NotFoundError, StoreError
from orchestrator.store.room import wait_for_room
from orchestrator.store.store import Store
from orchestrator.training.state import FACTS, TENSORS, TrainState

_FOLDER = "checkpoints"


class Stopped(Exception):  # noqa: N818 - not a failure
    """Raised by who is told of an epoch, to end the training for good: its checkpoint is of no more use."""


class Checkpoint:
    """Where the epochs of one piece of work are kept; of several, the last one.

    Only the process that holds the work's stage may write. A state's files have its epoch and step in
    their names and the facts, which hold the tensors' sha256, come last: a death in between leaves the state
    before.
    """

    def __init__(self, store: Store, key: str) -> None:
        """Of the work that is called `key`."""
        self._store, self._key = store, key
        self._blobs, self._folder = store.blobs, f"{_FOLDER}/{key}"

    def of(self, part: str) -> Checkpoint:
        """Of one of several trainings of the same work; `forget` of the whole forgets it, too."""
        return Checkpoint(self._store, f"{self._key}/{part}")

    def load(self) -> TrainState | None:
        """The last whole state; None when there is none, or none that is sound.

        Raises:
            StoreError: the store refuses; to begin anew would throw away what is kept.
        """
        for moment in reversed(self._moments()):
            try:
                files = {name: self._blobs.get(self._name(moment, name)) for name in (TENSORS, FACTS)}
                return TrainState.of_files(files, self._name(moment, TENSORS))
            except (CorruptArtifactError, NotFoundError):
                continue
        return None

    def save(self, state: TrainState) -> None:
        """Keep the state, and forget earlier ones; waits while the disk is nearly full.

        Raises:
            StoreError: the store refuses.
        """
        wait_for_room(self._blobs)
        before, moment = self._moments(), f"{state.epoch:06d}"
        if state.step:
            moment += f"-{state.step:08d}"
        for name, data in state.files().items():
            self._blobs.put(self._name(moment, name), data)
        self._remove([one for one in before if one != moment])

    def forget(self) -> None:
        """Remove what is kept: the work is done."""
        self._blobs.delete_folder(self._folder)

    def _moments(self) -> list[str]:
        """Finished epochs, and steps of the next one if any, as names of files begin; the last one last."""
        names = [key.rpartition("/")[2] for key in self._blobs.list(self._folder, recursive=False)]
        return sorted({name.rpartition("-")[0] for name in names})

    def _name(self, moment: str, name: str) -> str:
        return f"{self._folder}/{moment}-{name}"

    def _remove(self, moments: list[str]) -> None:
        for moment in moments:
            for name in (FACTS, TENSORS):
                with contextlib.suppress(StoreError):
                    self._blobs.delete(self._name(moment, name))
