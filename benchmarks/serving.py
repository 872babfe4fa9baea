"""Requests per second and latency of served ensembles, beside servers that one would write by hand.

Three CNNs of 0.5 M parameters on 3x32x32 uint8 images; every server gets the same bytes, the Open Inference
Protocol's binary tensor: reading it costs all of them little, so that serving is compared and not a JSON
parser (the JSON body is measured, too). Answers are compared before anything is timed. The servers of a part
live at once, each frozen while another is measured; blocks go round in turns, and a figure is the median of
its blocks. A server that gives wrong answers or none has a row that says so, and its claims have no value::

    python -m benchmarks.serving --work FOLDER --json docs/results/serving.json

Parts that `--work` holds already are not measured again unless `--part` names them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.output import Result, main
from benchmarks.parts import run_parts
from benchmarks.serving_arms import Case
from benchmarks.serving_blocks import Found, in_turns
from benchmarks.serving_parts import PARTS, Setting
from benchmarks.serving_wrk import available


def measure(arguments: argparse.Namespace) -> Result:
    """The parts that are asked for, or all that are missing; then all that are known."""
    if not available():
        print("skipped: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return [{"skipped": "wrk is not installed"}], {}
    place = nullcontext(str(arguments.work)) if arguments.work else tempfile.TemporaryDirectory()
    with place as work:
        folder = Path(work).resolve()  # servers have another working directory
        setting = Setting.of(arguments, folder)
        parts = {name: partial(_part, name, setting, arguments) for name in PARTS}
        results = folder / ("results-quick" if arguments.quick else "results")
        return run_parts(parts, results, arguments.part)


def _part(name: str, setting: Setting, arguments: argparse.Namespace) -> Result:
    rounds, seconds = (1, 1) if arguments.quick else (arguments.rounds, arguments.seconds)
    return PARTS[name](setting, lambda arms, models: table(in_turns(arms, models, rounds, seconds)))


def table(found: Mapping[tuple[str, Case], Found]) -> list[dict[str, Any]]:
    """A row for each server and case."""
    return [_row(server, case, one) for (server, case), one in found.items()]


def _row(server: str, case: Case, found: Found) -> dict[str, Any]:
    row: dict[str, Any] = {"server": server, "case": case.name}
    if found.failed or not found.blocks:
        return row | ({"failed": found.failed} if found.failed else {})
    rates = [block.per_s for block in found.blocks]
    return row | {
        "blocks": len(rates),
        "per_s": statistics.median(rates),
        "images_per_s": statistics.median(rates) * case.rows,
        "least_per_s": min(rates),
        "most_per_s": max(rates),
        "p50_ms": statistics.median(block.p50_ms for block in found.blocks),
        "p99_ms": statistics.median(block.p99_ms for block in found.blocks),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")
    parser.add_argument("--seconds", type=int, default=2, help="length of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each case")
    parser.add_argument("--quick", action="store_true", help="does all run? Nothing compiled, 1 s blocks")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of CIFAR-10's Parquet files")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="FOLDER",
        help="keeps models and finished parts; goes on from them",
    )


if __name__ == "__main__":
    main("serving", __doc__, measure, _arguments)
