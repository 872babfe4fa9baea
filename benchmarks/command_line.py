"""Seconds until `orchestrator --help` answers, beside a bare Python start."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.output import Ratio, Result, main

ROUNDS = 15
LIMIT_S = 0.5


def measure(arguments: argparse.Namespace) -> Result:  # noqa: ARG001
    """Both commands in turns; the ratio is the limit over the median time."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "orchestrator --help": [sys.executable, "-m", "orchestrator", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - started)
    rows = [{"command": name, "median_s": statistics.median(taken)} for name, taken in seconds.items()]
    return rows, {
        "limit over orchestrator --help": Ratio(
            LIMIT_S / statistics.median(seconds["orchestrator --help"]), 1.0
        )
    }


if __name__ == "__main__":
    main("command_line", __doc__, measure)
