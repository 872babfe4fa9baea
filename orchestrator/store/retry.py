"""Try again what a storage refuses for a while: exponential back-off with full jitter.

Waiting between 0 and an exponentially growing bound spreads many clients best (M. Brooker, "Exponential
Backoff And Jitter", AWS Architecture Blog, 2015).
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrator.errors import ConfigError

PATIENCE_VARIABLE = "ORCHESTRATOR_STORE_PATIENCE_S"
PATIENCE_S = 120.0
"""So long one call is tried again: a storage that refuses for a minute ends no run."""
_FIRST_S, _LONGEST_S = 0.1, 10.0

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


def patience_s() -> float:
    """`ORCHESTRATOR_STORE_PATIENCE_S`, or 120.

    Raises:
        ConfigError: it is no number of seconds.
    """
    text = os.environ.get(PATIENCE_VARIABLE, str(PATIENCE_S))
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e6:
        raise ConfigError(f"{PATIENCE_VARIABLE} is no number of seconds", text, "give one like 120")
    return value


def patiently(
    call: Callable[[], _T],
    passes: Callable[[Exception], bool],
    *,
    patience_s: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> _T:
    """The result of `call`, tried again while `passes(error)` says that the trouble may pass.

    Args:
        call: must be safe to repeat.
        passes: whether an error is worth another try.
        patience_s: the last error is raised once the next pause would end after this.
        sleep: instead of `time.sleep`.
        clock: instead of `time.monotonic`.
    """
    begun, bound, told = clock(), _FIRST_S, False
    while True:
        try:
            return call()
        except Exception as error:
            pause = random.uniform(0, bound)
            if not passes(error) or clock() - begun + pause > patience_s:
                raise
            if not told and bound > 1:
                _log.warning("the storage refuses (%s); trying again for %.0f s", error, patience_s)
                told = True
        sleep(pause)
        bound = min(2 * bound, _LONGEST_S)
