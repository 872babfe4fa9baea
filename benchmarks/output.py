"""The form of every benchmark's output (docs/architecture.md) and its command line."""

from __future__ import annotations

import argparse
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.measure.machine import machine


@dataclass(frozen=True)
class Ratio:
    """A claim: a figure measured side by side with its reference in one run."""

    value: float
    """NaN where it could not be measured."""
    goal: float
    at_most: bool = False
    """The goal is a limit from above."""
    holds: bool = True
    """What else the claim needs."""
    of: str = ""
    """What the figure is of, where it was chosen among others."""

    @property
    def met(self) -> bool:
        """Whether the goal is reached."""
        reached = self.value <= self.goal if self.at_most else self.value >= self.goal
        return reached and self.holds

    def plain(self) -> dict[str, Any]:
        """As plain JSON values; what was not measured is null."""
        value = None if math.isnan(self.value) else self.value
        known = {"value": value, "goal": self.goal, "met": self.met}
        return known | ({"of": self.of} if self.of else {})


Result = tuple[list[dict[str, Any]], dict[str, Ratio]]
"""Rows, and ratios by name."""


def main(
    name: str,
    text: str,
    measure: Callable[[argparse.Namespace], Result],
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """Run a benchmark and print its rows; with `--json FILE` write them too.

    Args:
        name: of the benchmark.
        text: help.
        measure: from the arguments to the result.
        more: adds arguments of the benchmark's own.
    """
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there")
    if more is not None:
        more(parser)
    arguments = parser.parse_args()
    # So that what was started is ended by whoever started it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows, ratios = measure(arguments)
    document = {
        "benchmark": name,
        "machine": machine(),
        "git": commit(),
        "rows": rows,
        "ratios": {key: ratio.plain() for key, ratio in ratios.items()},
    }
    for row in rows:
        print("  ".join(f"{key}={_short(value)}" for key, value in row.items()))
    for key, ratio in ratios.items():
        verdict = "met" if ratio.met else "not met"
        limit = "at most" if ratio.at_most else "goal"
        print(f"{key}: {ratio.value:.4g} ({limit} {ratio.goal:g}: {verdict}) {ratio.of}".rstrip())
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_finite(document), indent=2, allow_nan=False)
        arguments.json.write_text(f"{text}\n", encoding="utf-8")


def commit() -> str:
    """Of the code that runs, shortened."""
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
