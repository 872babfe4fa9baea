"""A run pauses while the store's disk is nearly full, and goes on when there is room.

Only what is about to compute something pauses; reading, and so serving, never does.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import ConfigError
from orchestrator.store.blobs import Blobs

LIMIT_VARIABLE = "ORCHESTRATOR_DISK_LIMIT"
LIMIT = 0.90
_POLL_S = 5.0
_log = logging.getLogger(__name__)


class Usage(NamedTuple):
    """As `shutil.disk_usage` gives it."""

    total: int
    used: int
    free: int


def limit() -> float:
    """`ORCHESTRATOR_DISK_LIMIT`, or 0.90: the share of the disk from which on runs pause; 1 never does.

    Raises:
        ConfigError: it is no share.
    """
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 1:
        raise ConfigError(f"{LIMIT_VARIABLE} is no share of a disk", text, "give one above 0, at most 1")
    return value


def _usage(folder: Path) -> Usage:
    return Usage(*shutil.disk_usage(folder))


def wait_for_room(
    blobs: Blobs,
    *,
    usage: Callable[[Path], Usage] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = _log.warning,
) -> float:
    """Return once less of the store's disk is used than the limit; seconds that were waited.

    Args:
        blobs: of the store; one that is not on a disk here has room.
        usage: of a folder's disk, as `shutil.disk_usage`.
        sleep: instead of `time.sleep`.
        say: is told one sentence when the pause begins, and one when it ends.
    """
    if not blobs.local:
        return 0.0
    usage, most, waited = usage or _usage, limit(), 0.0
    folder = Path(blobs.location)
    while True:
        try:
            found = usage(folder)
        except OSError:
            return waited  # the work itself will say what is wrong
        # As df counts: what is kept for root is no room.
        share = found.used / max(found.used + found.free, 1)
        if share < most or most >= 1:
            break
        if not waited:
            say(
                f"paused: the disk of {folder} is {share:.0%} full (limit {most:.0%}); free some space, "
                "'orchestrator models gc' helps, and the run goes on by itself"
            )
        sleep(_POLL_S)
        waited += _POLL_S
    if waited:
        say(f"going on: the disk of {folder} has room again")
    return waited
