"""Does a server that is asked for long stay as it was? `orchestrator serve` under steady open-loop load.

Samples of all its processes: memory, open files, threads; of the ingress also the tasks of its event loop.
What counts is the growth from the end of the warm-up, which is a tenth of the time, to the end, by medians of
a tenth of the samples each; then whether anything is left once the server is told to stop::

    python -m benchmarks.soak --minutes 45 --json docs/results/soak.json
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from benchmarks.output import Ratio, Result, main
from benchmarks.serving_arms import TRIO, ours
from benchmarks.serving_models import make
from benchmarks.serving_servers import Server, running
from orchestrator.load.generate import Report, open_loop
from orchestrator.load.request import get, infer_body, post, target_of

PORT = 18_900
WARM_UP = 0.1
"""Share of the time."""
GROWTH_BYTES, GROWTH_FILES, GROWTH_THREADS, GROWTH_TASKS = 50 * 2**20, 20, 10, 20
_TASKS = re.compile(r"^orchestrator_tasks(?:\{[^}]*\})? ([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """All processes of the server together."""

    seconds: float
    processes: int
    bytes: int
    """Memory, shared pages counted once."""
    files: int
    threads: int
    tasks: float
    """Of the ingress."""


def sample(server: Server, seconds: float) -> Sample:
    """How the server is now."""
    found = [one for one in map(_process, server.processes()) if one is not None]
    memory, files, threads = (sum(numbers) for numbers in zip(*found, strict=True))
    with urlopen(f"{server.url}/metrics", timeout=30) as reply:
        tasks = _TASKS.search(reply.read().decode())
    return Sample(seconds, len(found), memory, files, threads, float(tasks[1]) if tasks else float("nan"))


def _process(number: int) -> tuple[int, int, int] | None:
    """Proportional memory in bytes, open files, threads; None if it is gone."""
    folder = Path("/proc") / str(number)
    with suppress(OSError):
        shares = re.search(r"^Pss:\s+(\d+) kB$", (folder / "smaps_rollup").read_text(), re.MULTILINE)
        threads = len(os.listdir(folder / "task"))
        return int(shares[1]) * 1024 if shares else 0, len(os.listdir(folder / "fd")), threads
    return None


def measure(arguments: argparse.Namespace) -> Result:
    """Load while samples are taken, then stop."""
    seconds = arguments.minutes * 60
    folder = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    servers: list[Server] = []
    try:
        models = make(folder / "models", "eager" if arguments.eager else "aoti", [TRIO])
        arm = ours(models.store.location, arguments.placement, [f"serving/{TRIO}"])
        with running(servers):
            server = Server("soak", arm.command, PORT, folder / "server", {})
            servers.append(server)
            server.wait_until(get(f"{server.url}/v2/health/ready"))
            _, target = target_of(server.url, TRIO)
            bad = post(f"{server.url}/v2/models/{TRIO}/infer", b"{", {})
            eight, headers = infer_body({"input": np.zeros((8, 3, 32, 32), np.uint8)}, binary=False)
            large = post(f"{server.url}/v2/models/{TRIO}/infer", eight, headers)
            mix = [target] * 18 + [large, bad]
            samples, report = _loaded(server, mix, arguments.rate, seconds, arguments.every_s)
            left = server.stop()
            servers.clear()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    row = {"placement": arguments.placement, "rate": arguments.rate, **report.plain(), "left_behind": left}
    rows = [row, *({**vars(one)} for one in samples)]
    return rows, judged(samples, report, left)


def _loaded(
    server: Server, targets: Sequence[Any], rate: float, seconds: float, every_s: float
) -> tuple[list[Sample], Report]:
    found: list[Sample] = []
    reports: list[Report] = []
    load = threading.Thread(
        target=lambda: reports.append(open_loop(targets, rate=rate, seconds=seconds, timeout_s=30.0))
    )
    load.start()
    started = time.monotonic()
    while load.is_alive():
        load.join(every_s)
        found.append(sample(server, time.monotonic() - started))
    return found, reports[0]


def judged(samples: Sequence[Sample], report: Report, left: int) -> dict[str, Ratio]:
    """Each growth beside its limit."""
    last = samples[-1].seconds
    warm = [one for one in samples if one.seconds >= WARM_UP * last] or list(samples)
    few = max(1, len(warm) // 10)

    def growth(name: str) -> float:
        values = [float(getattr(one, name)) for one in warm]
        return statistics.median(values[-few:]) - statistics.median(values[:few])

    refused = report.outcomes["400"]  # one request in twenty is no JSON
    failed = report.requests - report.answered - refused
    return {
        "memory_growth_bytes": Ratio(growth("bytes"), GROWTH_BYTES, at_most=True),
        "more_processes": Ratio(growth("processes"), 0, at_most=True),
        "more_files": Ratio(growth("files"), GROWTH_FILES, at_most=True),
        "more_threads": Ratio(growth("threads"), GROWTH_THREADS, at_most=True),
        "more_tasks": Ratio(growth("tasks"), GROWTH_TASKS, at_most=True),
        "left_behind": Ratio(left, 0, at_most=True),
        "failed": Ratio(failed / max(report.requests, 1), 0.001, at_most=True),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--every-s", type=float, default=10.0, help="between two samples")
    parser.add_argument("--placement", choices=("fused", "distributed"), default="fused")
    parser.add_argument("--eager", action="store_true", help="nothing is compiled")


if __name__ == "__main__":
    main("soak", __doc__, measure, _arguments)
