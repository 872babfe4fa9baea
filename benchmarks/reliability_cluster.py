"""A small run on three nodes of this machine: a node lost in each stage, and two runs at once."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.output import Ratio, Result
from tests.cluster.pipelines import MOMENTS, losing_nodes, three_nodes, two_at_once, undisturbed


def nodes_lost(_: argparse.Namespace, folder: Path) -> Result:
    """A node is killed while the run trains, searches, fits ensembles and serves; beside a run of its own."""
    with undisturbed(_made(folder / "calm")) as finished, three_nodes(_made(folder / "cache")) as found:
        cluster, address = found
        run = losing_nodes(finished, cluster, address, _made(folder / "run"))
    rows = [{"stage": stage, "killed": node} for stage, _, node in MOMENTS]
    return rows, {
        "nodes lost: same digests": Ratio(float(run.same), 1),
        "nodes lost: epochs trained twice": Ratio(run.repeated, 1, at_most=True),
    }


def two_runs(_: argparse.Namespace, folder: Path) -> Result:
    """Two runs of the same settings at once on one store, and one of them submitted again meanwhile."""
    with undisturbed(_made(folder / "calm")) as finished, three_nodes(_made(folder / "cache")) as found:
        run = two_at_once(finished, found[1], _made(folder / "runs"))
    return [{"runs": 2, "submitted": 3}], {"two runs: models as alone": Ratio(float(run.same), 1)}


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
