"""What holds when processes are killed; `--part store` is the store, on a disk or a location of yours."""

from __future__ import annotations

import argparse
import tempfile

from benchmarks.output import Ratio, Result, main
from benchmarks.reliability_store import under_fire


def measure(arguments: argparse.Namespace) -> Result:
    """Kills at random moments of publication, gc and ref update; each count of damage must be 0."""
    with tempfile.TemporaryDirectory() as folder:
        location = arguments.location or f"{folder}/store"
        tally = under_fire(
            location, kills=arguments.kills, seed=arguments.seed, longest_s=arguments.longest_s
        )
    row = {"part": "store", "storage": location.partition("://")[0] if "://" in location else "local"}
    done = tally.kills >= arguments.goal
    return [row | tally.plain()], {
        "store: partial artifacts visible": Ratio(len(tally.partial), 0, at_most=True, holds=done),
        "store: lost refs": Ratio(len(tally.lost_refs), 0, at_most=True, holds=done),
        "store: wrong digests": Ratio(len(tally.wrong_digests), 0, at_most=True, holds=done),
    }


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", choices=["store"], default="store", help="what is tried")
    parser.add_argument("--location", help="an empty folder or URI (default: a temporary folder)")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--goal", type=int, default=500, help="fewer kills prove nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, default=0.5, help="a kill comes within this time")


if __name__ == "__main__":
    main("reliability", __doc__ or "", measure, _more)
