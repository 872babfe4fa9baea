"""How many requests a second each arm answers at p99 <= 20 ms: served ensembles of one store in turns.

An arm is a spec of the store; all are served fused, each in a server of its own that is frozen while another
is measured. The rate is found by bisection under an open loop (`orchestrator.load`), so that a request that
has to wait counts from when it should have been sent.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.output import Ratio, Result, main
from benchmarks.serving_arms import ours
from benchmarks.serving_servers import Server, running
from orchestrator.load import capacity
from orchestrator.load.generate import Report, open_loop
from orchestrator.load.request import get, target_of
from orchestrator.store.store import Store

P99_MS = 20.0
PORT = 18_500
GOAL = 1.3
"""`--arm` that is named `joint` over the best of the others."""
JOINT = "joint"


def highest_rate(url: str, model: str, p99_ms: float, *, start: float, seconds: float, seed: int) -> float:
    """The highest rate of Poisson arrivals, per second, that a served model answers within the bound.

    Args:
        url: of the server.
        model: its name there.
        p99_ms: bound on the 99th percentile.
        start: first rate to try.
        seconds: length of each try.
        seed: of the arrivals; each try has others.
    """
    _, target = target_of(url, model)
    tries = 0

    def probe(rate: float) -> Report:
        nonlocal tries
        tries += 1
        return open_loop(target, rate=rate, seconds=seconds, seed=seed + tries)

    return capacity.highest_rate(probe, p99_ms, start=start).per_s


def measure(arguments: argparse.Namespace) -> Result:
    """Rates of all arms, round by round."""
    store = Store(arguments.store, create=False)
    named = dict(text.split("=", 1) for text in arguments.arm)
    models = {name: store.spec(ref).name for name, ref in named.items()}
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    rates: dict[str, list[float]] = {name: [] for name in named}
    servers: list[Server] = []
    try:
        with running(servers):
            for number, (name, ref) in enumerate(named.items()):
                arm = ours(store.location, "fused", [ref])
                servers.append(Server(name, arm.command, PORT + 10 * number, folder / str(number), {}))
                servers[-1].wait_until(get(f"{servers[-1].url}/v2/health/ready"))
                servers[-1].pause()
            for turn in range(arguments.rounds):
                start = turn % len(servers)
                for server in servers[start:] + servers[:start]:
                    server.resume()
                    before = rates[server.name][-1:] or [2 * arguments.start]
                    found = highest_rate(
                        server.url,
                        models[server.name],
                        arguments.p99_ms,
                        start=before[0] / 2 or arguments.start,
                        seconds=arguments.seconds,
                        seed=1000 * turn,
                    )
                    rates[server.name].append(found)
                    server.pause()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [_row(name, named[name], rates[name]) for name in named]
    return rows, _ratios({row["arm"]: float(row["per_s"]) for row in rows})


def _row(name: str, ref: str, rates: list[float]) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0))
    rate = statistics.median(rates)
    return {"arm": name, "spec": ref, "per_s": rate, "per_core_s": rate / cores, "rounds": rates}


def _ratios(rates: dict[str, float]) -> dict[str, Ratio]:
    others = {name: rate for name, rate in rates.items() if name != JOINT}
    if JOINT not in rates or not others:
        return {}
    best = max(others, key=lambda name: others[name])
    return {"joined_vs_best_arm": Ratio(rates[JOINT] / others[best], GOAL, of=f"over {best}")}


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", required=True, help="that the specs are in; an absolute path")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME=REF", help="may be repeated")
    parser.add_argument("--p99-ms", type=float, default=P99_MS)
    parser.add_argument("--start", type=float, default=50.0, help="first rate to try, per second")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of a try")
    parser.add_argument("--rounds", type=int, default=3)


if __name__ == "__main__":
    main("headline", __doc__, measure, _arguments)
