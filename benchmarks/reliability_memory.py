"""How much the driver of a search grows over its trials, which do nothing and so end fast."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.output import Ratio, Result
from benchmarks.scale import cluster_of, idle_trials, resident_bytes

NODES, AT_ONCE = 2, 4
WARM_UP = 100
"""Trials before the first look: libraries and pools are loaded then."""
GROWTH_BYTES = 50 * 2**20
"""As for a server that is asked for long (`benchmarks.soak`)."""
GOAL = 1000


def measure(arguments: argparse.Namespace, folder: Path) -> Result:
    """Memory of this process before and after."""
    del folder
    with cluster_of(NODES):
        idle_trials(WARM_UP, AT_ONCE)
        before = resident_bytes(os.getpid())
        found = idle_trials(arguments.trials, AT_ONCE)
        after = resident_bytes(os.getpid())
    growth, enough = after - before, arguments.trials >= GOAL
    row = {"trials": arguments.trials, "driver_bytes": before, "driver_bytes_at_end": after, **found}
    return [row | {"bytes_a_trial": growth / arguments.trials}], {
        "memory: growth of the driver, bytes": Ratio(
            growth, GROWTH_BYTES, at_most=True, holds=enough, of=f"{arguments.trials} trials"
        )
    }
