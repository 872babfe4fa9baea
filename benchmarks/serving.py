"""Requests per second and latency of served ensembles, beside servers that one would write by hand.

Three untrained CNNs of 0.5 M parameters on 3x32x32 uint8 images; every server gets the same bytes, the Open
Inference Protocol's binary tensor: reading it costs all of them little, so that serving is compared and not a
JSON parser (the JSON body is measured, too). Answers are compared before anything is timed. All servers live
at once, each frozen while another is measured; blocks go round in turns, and a figure is the median of its
blocks.
"""

from __future__ import annotations

import argparse
import http.client
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.output import Result, main
from benchmarks.serving_arms import BARE, Arm, Case, arms, cases
from benchmarks.serving_models import BULK_ROWS, WIDTH, Models, make
from benchmarks.serving_ratios import ratios, split
from benchmarks.serving_servers import Server, running
from benchmarks.serving_start import cold_start_s
from benchmarks.serving_wrk import Load, available, load, write_script
from orchestrator.load.connection import Target
from orchestrator.load.request import infer_body, post

TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2
WARM_UP_S = 1
PORT = 18_000
"""Each server has ten from here on; see `serving_servers`."""


def measure(arguments: argparse.Namespace) -> Result:
    """Start everything, compare answers, then blocks in turns."""
    if not available():
        print("skipped: wrk is not installed (apt-get install wrk)", file=sys.stderr)
        return [{"skipped": "wrk is not installed"}], {}
    rounds, seconds = (1, 1) if arguments.quick else (arguments.rounds, arguments.seconds)
    place = nullcontext(str(arguments.work)) if arguments.work else tempfile.TemporaryDirectory()
    sockets = tempfile.mkdtemp(prefix="sb-", dir="/tmp")
    try:
        with place as work:
            models = make(Path(work), "eager" if arguments.quick else "aoti")
            everything = arms(models.folder, models.store.location, compiled=not arguments.quick)
            table = _measure(everything, models, Path(sockets), rounds, seconds)
            start_s = cold_start_s(models, 1 if arguments.quick else 5)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    rows = [_row(server, case, blocks) for (server, case), blocks in table.items()]
    rates = {(row["server"], row["case"]): row for row in rows}
    return [*rows, {"cold_start_s": start_s}, *split(rates)], ratios(rates, start_s)


def _measure(
    everything: Mapping[str, Arm], models: Models, folder: Path, rounds: int, seconds: int
) -> dict[tuple[str, Case], list[Load]]:
    scripts: dict[Case, Path] = {}
    for arm in everything.values():
        for model in arm.models:
            for case in cases(model):
                body, headers = infer_body({"input": _rows(case)}, binary=case.binary)
                scripts[case] = write_script(folder / f"{len(scripts)}.lua", body, headers)
    table: dict[tuple[str, Case], list[Load]] = {}
    servers: list[Server] = []
    with running(servers):
        for number, (name, arm) in enumerate(everything.items()):
            print(f"starting: {name}", file=sys.stderr)
            variables = arm.variables or {}
            server = Server(name, arm.command, PORT + 10 * number, folder / str(number), variables)
            servers.append(server)
            _compare(server, arm, models)
            server.pause()
        for turn in range(rounds):
            print(f"round {turn + 1} of {rounds}", file=sys.stderr)
            start = turn % len(servers)
            for server in servers[start:] + servers[:start]:
                for case, found in _blocks(server, everything[server.name], scripts, seconds).items():
                    table.setdefault((server.name, case), []).append(found)
    return table


def _blocks(server: Server, arm: Arm, scripts: Mapping[Case, Path], seconds: int) -> dict[Case, Load]:
    """One block of each case of a server."""
    server.resume()
    found = {}
    for model in arm.models:
        url = f"{server.url}/v2/models/{model}/infer"
        server.wait_until(_request(server, model))
        load(url, scripts[cases(model)[-1]], connections=4, seconds=WARM_UP_S)
        for case in cases(model):
            found[case] = load(url, scripts[case], connections=case.connections, seconds=seconds)
    server.pause()
    return found


def _rows(case: Case) -> np.ndarray:
    random = np.random.default_rng(case.rows)
    if case.model == "bulk":
        return random.normal(size=(BULK_ROWS, WIDTH)).astype(np.float32)
    return random.integers(0, 256, (case.rows, 3, 32, 32), dtype=np.uint8)


def _compare(server: Server, arm: Arm, models: Models) -> None:
    """Wait until it answers, and hold its answers against those of this process.

    Raises:
        RuntimeError: it gives other answers.
    """
    for model in arm.models:
        server.wait_until(_request(server, model))
        if model == "bulk" or server.name == BARE:
            continue
        wanted = models.expected(model)
        tolerance = BF16_TOLERANCE if model.endswith("bf16") else TOLERANCE
        for binary in (True, False):
            served = np.concatenate([_ask(server, model, image[None], binary) for image in models.images])
            worst = float(np.abs(served - wanted).max())
            if not worst <= tolerance:
                raise RuntimeError(f"{server.name}: answers of {model} differ by {worst:.2g}")


def _request(server: Server, model: str) -> Target:
    body, headers = infer_body({"input": _rows(cases(model)[0])})
    return post(f"{server.url}/v2/models/{model}/infer", body, headers)


def _ask(server: Server, model: str, rows: np.ndarray, binary: bool) -> np.ndarray:
    """Probabilities [B, classes]."""
    body, headers = infer_body({"input": rows}, binary=binary)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        document = json.loads(connection.getresponse().read())
    finally:
        connection.close()
    found = next(one for one in document["outputs"] if one["name"] == "probabilities")
    return np.asarray(found["data"], dtype=np.float32).reshape(found["shape"])


def _row(server: str, case: Case, blocks: list[Load]) -> dict[str, Any]:
    rates = [block.per_s for block in blocks]
    return {
        "server": server,
        "case": case.name,
        "per_s": statistics.median(rates),
        "images_per_s": statistics.median(rates) * case.rows,
        "least_per_s": min(rates),
        "most_per_s": max(rates),
        "p50_ms": statistics.median(block.p50_ms for block in blocks),
        "p99_ms": statistics.median(block.p99_ms for block in blocks),
    }


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=int, default=2, help="length of a block")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each case")
    parser.add_argument("--quick", action="store_true", help="does all run? Nothing compiled, 1 s blocks")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep the compiled models there")


if __name__ == "__main__":
    main("serving", __doc__, measure, _arguments)
