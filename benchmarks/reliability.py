"""What holds when processes, nodes, storages and the power fail. Figures are counts of damage, and shares.

Parts, each by itself; those that `--work` holds already are not run again unless `--part` names them::

    python -m benchmarks.reliability --work FOLDER --part store s3 power
    python -m benchmarks.reliability --work FOLDER --json docs/results/reliability.json

`store` and `s3` kill a writer and a collector of garbage at random moments; `power` replays what a power cut
may leave; `nodes` loses a node of three in each stage of a run; `two` sends two runs at once; `serving` loses
a node under load; `memory` looks at the driver of a search with a thousand trials. Counts are of what ran:
a claim needs all of its kills, trials or seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from benchmarks import reliability_cluster, reliability_memory, reliability_power, reliability_serving
from benchmarks.output import Ratio, Result, main
from benchmarks.parts import run_parts
from benchmarks.reliability_store import on_s3, under_fire

Part = Callable[[argparse.Namespace, Path], Result]
"""From the arguments and an empty folder to the result."""
LONGEST_S, LONGEST_ON_S3_S = 0.5, 4.0
"""A kill comes within this time; publishing takes longer on S3."""


def store(arguments: argparse.Namespace, folder: Path) -> Result:
    """Kills at random moments of publication, gc and ref update, on a disk or at `--location`."""
    return _fired("store", arguments.location or str(folder / "store"), LONGEST_S, arguments)


def s3(arguments: argparse.Namespace, folder: Path) -> Result:
    """The same on an S3 server on loopback."""
    with on_s3(folder) as location:
        return _fired("S3", location, LONGEST_ON_S3_S, arguments)


def _fired(name: str, location: str, longest_s: float, arguments: argparse.Namespace) -> Result:
    tally = under_fire(
        location,
        kills=arguments.kills,
        seed=arguments.seed,
        longest_s=longest_s if arguments.longest_s is None else arguments.longest_s,
    )
    done = tally.kills >= arguments.goal and tally.removed > 0
    storage = location.partition("://")[0] if "://" in location else "local"
    return [{"storage": storage, **tally.plain()}], {
        f"{name}: partial artifacts visible": Ratio(len(tally.partial), 0, at_most=True, holds=done),
        f"{name}: lost refs": Ratio(len(tally.lost_refs), 0, at_most=True, holds=done),
        f"{name}: wrong digests": Ratio(len(tally.wrong_digests), 0, at_most=True, holds=done),
    }


PARTS: dict[str, Part] = {
    "store": store,
    "s3": s3,
    "power": reliability_power.measure,
    "nodes": reliability_cluster.nodes_lost,
    "two": reliability_cluster.two_runs,
    "serving": reliability_serving.measure,
    "memory": reliability_memory.measure,
}


def measure(arguments: argparse.Namespace) -> Result:
    """The parts that are asked for, or all that are missing; then all that are known."""
    place = nullcontext(str(arguments.work)) if arguments.work else tempfile.TemporaryDirectory()
    with place as work:
        parts = {name: partial(_in_own_folder, part, arguments) for name, part in PARTS.items()}
        return run_parts(parts, Path(work).resolve() / "results", arguments.part)


def _in_own_folder(part: Part, arguments: argparse.Namespace) -> Result:
    """What a part leaves behind is of no use to another run of it."""
    with tempfile.TemporaryDirectory(prefix="rb-", ignore_cleanup_errors=True) as folder:
        return part(arguments, Path(folder))


def _more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--part", nargs="+", choices=PARTS, help="only these")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keeps finished parts; goes on from them")
    parser.add_argument("--location", help="part store: an empty folder or URI (default: a temporary folder)")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--goal", type=int, default=500, help="fewer kills prove nothing")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest-s", type=float, help="a kill comes within this time (0.5; on S3 4)")
    parser.add_argument("--seconds", type=float, default=120.0, help="part serving: of load")
    parser.add_argument("--rate", type=float, default=50.0, help="part serving: requests a second")
    parser.add_argument("--trials", type=int, default=1000, help="part memory")


if __name__ == "__main__":
    main("reliability", __doc__ or "", measure, _more)
