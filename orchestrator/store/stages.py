"""Stages: a piece of work whose result is looked up before it is computed, once among all processes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pydantic import ValidationError

from orchestrator.config.base import Settings, canonical
from orchestrator.errors import CorruptArtifactError
from orchestrator.store import artifacts
from orchestrator.store.blobs import Blobs
from orchestrator.store.leases import Lease, locked
from orchestrator.store.names import check_segment, digests_in, is_digest
from orchestrator.store.room import wait_for_room

_log = logging.getLogger(__name__)
_LONGEST_PAUSE_S = 0.5


class StageResult(Settings):
    """What `stages/<key>.json` holds."""

    value: str
    artifact: bool
    """The value names an artifact; when that is gone, so is the result."""


def result(blobs: Blobs, key: str) -> str | None:
    """The value of a finished stage; None when it has not run, or the artifact that it made was removed.

    Raises:
        CorruptArtifactError: the file of the stage is damaged.
    """
    found = read(blobs, key)
    if found is None:
        return None
    # Renewed, since who looks it up is about to go on with it, while gc removes what is old.
    if found.artifact and not (is_digest(found.value) and artifacts.renew(blobs, found.value)):
        return None
    if not found.artifact:  # other values name the artifacts that they are about
        for digest in digests_in(found.value.encode()):
            artifacts.renew(blobs, digest)
    return found.value


def read(blobs: Blobs, key: str) -> StageResult | None:
    """What is kept of a stage, whether its artifact is still there or not; None when it has not run.

    Raises:
        CorruptArtifactError: the file of the stage is damaged.
    """
    name = _key(key)
    if not blobs.exists(name):
        return None
    try:
        return StageResult.model_validate_json(blobs.get(name))
    except ValidationError as error:
        raise CorruptArtifactError(
            "a stage's result is damaged", name, "remove that file and run again"
        ) from error


def run(blobs: Blobs, key: str, compute: Callable[[], str], *, wait_s: float | None = None) -> str:
    """The value of the stage: looked up, waited for while another process computes it, or computed here.

    A failed computation leaves no result, and the next process that waits for it tries itself. Across
    machines a process that was suspended for minutes may be taken for dead and its work done twice, which
    is wasted but harmless: artifacts are named by their content.

    Args:
        blobs: where.
        key: name of the stage: a fingerprint of all that decides its value.
        compute: does the work and returns the value.
        wait_s: longest wait for another process; without end when not given.

    Raises:
        StoreLockedError: another living process still held the stage after `wait_s`.
    """
    found = result(blobs, key)
    if found is not None:
        return found
    lease = Lease(blobs, f"stages/{check_segment(key)}")
    if (found := _wait(blobs, key, lease, wait_s)) is not None:
        return found
    done = False
    try:
        # Another process may have finished between our last look and our lease.
        value = result(blobs, key)
        if value is None:
            wait_for_room(blobs)
            value = compute()
            is_artifact = is_digest(value) and artifacts.exists(blobs, value)
            blobs.put(_key(key), canonical(StageResult(value=value, artifact=is_artifact).plain()))
        done = True
        return value
    finally:
        lease.release(forget=done)


def _wait(blobs: Blobs, key: str, lease: Lease, wait_s: float | None) -> str | None:
    """Until the stage has a value, which is returned, or `lease` is ours: None."""
    begun, pause, told = time.monotonic(), 0.01, False
    while not lease.acquire():
        if (found := result(blobs, key)) is not None:
            return found
        if not told and (holder := lease.holder()) is not None:
            _log.info("waiting for %s, which computes stage %s", holder, key)
            told = True
        if wait_s is not None and time.monotonic() - begun >= wait_s:
            raise locked(f"stage {key}", lease.holder())
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE_S)
    return None


def _key(key: str) -> str:
    return f"stages/{check_segment(key)}.json"
