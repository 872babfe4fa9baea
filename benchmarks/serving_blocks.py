"""Blocks of load in turns: each server goes on, is measured, and is frozen again.

A proxy that was frozen may take its servers for dead when it goes on, so that a block is refused or stays
empty. Such a block is tried again, once the server answers; what fails `TRIES` times has no figure, and the
others go on.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from benchmarks.serving_arms import BARE, Arm, Case
from benchmarks.serving_models import WIDTH, Models
from benchmarks.serving_servers import Server, running
from benchmarks.serving_wrk import Load, load, write_script
from orchestrator.load.connection import Target
from orchestrator.load.request import infer_body, post

TOLERANCE = 1e-5
LOW_TOLERANCE = 2e-2
"""Of compressed members, which are compiled from another form than they are run in offline."""
TRIES = 3
WARM_UP_S = 1
AGAIN_S = 60.0
"""Longest time until a server that was frozen answers again."""
PORT = 18_000
"""Each server has ten from here on; see `serving_servers`."""


@dataclass
class Found:
    """What the blocks of one server and case saw."""

    blocks: list[Load] = field(default_factory=list)
    failed: str = ""
    """Why a block has no figure."""


Table = dict[tuple[str, Case], Found]


def in_turns(arms: Mapping[str, Arm], models: Models, rounds: int, seconds: int) -> Table:
    """Start all servers, compare their answers, then measure blocks in turns.

    Args:
        arms: the servers by name.
        models: what they serve.
        rounds: blocks of each case.
        seconds: length of a block.
    """
    sockets = Path(tempfile.mkdtemp(prefix="sb-", dir="/tmp"))
    table: Table = {(name, case): Found() for name, arm in arms.items() for case in arm.cases}
    servers: list[Server] = []
    try:
        scripts = _scripts(arms, models, sockets)
        with running(servers):
            _start(arms, models, sockets, servers, table)
            for turn in range(rounds):
                print(f"round {turn + 1} of {rounds}", file=sys.stderr)
                start = turn % len(servers)
                for server in servers[start:] + servers[:start]:
                    _blocks(server, arms[server.name], scripts, seconds, table)
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    return table


def _scripts(arms: Mapping[str, Arm], models: Models, folder: Path) -> dict[Case, Path]:
    scripts: dict[Case, Path] = {}
    for case in {case: None for arm in arms.values() for case in arm.cases}:
        body, headers = infer_body({"input": rows_of(case, models)}, binary=case.binary)
        scripts[case] = write_script(folder / f"{len(scripts)}.lua", body, headers)
    return scripts


def _start(
    arms: Mapping[str, Arm], models: Models, folder: Path, servers: list[Server], table: Table
) -> None:
    """Start all; of models that a server does not answer for, or wrongly, the table says why not."""
    for number, (name, arm) in enumerate(arms.items()):
        print(f"starting: {name}", file=sys.stderr)
        server = Server(name, arm.command, PORT + 10 * number, folder / str(number), arm.variables or {})
        servers.append(server)
        for model in arm.models:
            try:
                compare(server, model, models)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                for case in arm.cases:
                    if case.model == model:
                        table[name, case].failed = str(error)
        server.pause()


def _blocks(server: Server, arm: Arm, scripts: Mapping[Case, Path], seconds: int, table: Table) -> None:
    """One block of each case of a server that has not failed."""
    left = [case for case in arm.cases if not table[server.name, case].failed]
    if not left:
        return
    server.resume()
    for model in dict.fromkeys(case.model for case in left):
        cases = [case for case in left if case.model == model]
        url = f"{server.url}/v2/models/{model}/infer"
        request = _request(server, cases[0], scripts)
        try:
            server.wait_until(request, AGAIN_S)
            load(url, scripts[cases[-1]], connections=4, seconds=WARM_UP_S)
        except RuntimeError as error:
            print(f"{server.name}: warming up: {error}", file=sys.stderr)
        for case in cases:
            block(server, request, url, scripts[case], case, seconds, table[server.name, case])
    server.pause()


def block(
    server: Server, request: Target, url: str, script: Path, case: Case, seconds: int, found: Found
) -> None:
    """One block; tried again when the server answers again."""
    for left in reversed(range(TRIES)):
        try:
            server.wait_until(request, AGAIN_S)
            found.blocks.append(load(url, script, connections=case.connections, seconds=seconds))
        except RuntimeError as error:
            print(f"{server.name}, {case.name}: {error}", file=sys.stderr)
            if not left:
                found.failed = str(error)
        else:
            return


def rows_of(case: Case, models: Models) -> np.ndarray:
    """What is sent."""
    random = np.random.default_rng(case.rows)
    if case.model == "bulk":
        return random.normal(size=(case.rows, WIDTH)).astype(np.float32)
    return models.images[random.integers(0, len(models.images), case.rows)]


def compare(server: Server, model: str, models: Models) -> None:
    """Wait until it answers for a model, and hold its answers against those of this process.

    Raises:
        RuntimeError: it does not answer, or otherwise.
    """
    body, headers = infer_body({"input": rows_of(Case(model, 1, 1), models)})
    server.wait_until(post(f"{server.url}/v2/models/{model}/infer", body, headers))
    if model == "bulk" or server.name == BARE:
        return
    wanted = models.expected(model)
    tolerance = TOLERANCE if model in ("trio", "tiny-2", "tiny-8") else LOW_TOLERANCE
    for binary in (True, False):
        served = np.concatenate([_ask(server, model, image[None], binary) for image in models.images])
        worst = float(np.abs(served - wanted).max())
        if not worst <= tolerance:
            raise RuntimeError(f"{server.name}: answers of {model} differ by {worst:.2g}")


def _request(server: Server, case: Case, scripts: Mapping[Case, Path]) -> Target:
    """What `wrk` sends, too."""
    script = scripts[case]
    headers = dict(
        line.split('"')[1::2] for line in script.read_text().splitlines() if line.startswith("wrk.headers")
    )
    body = script.with_suffix(".body").read_bytes()
    return post(f"{server.url}/v2/models/{case.model}/infer", body, headers)


def _ask(server: Server, model: str, rows: np.ndarray, binary: bool) -> np.ndarray:
    """Probabilities [B, classes]."""
    body, headers = infer_body({"input": rows}, binary=binary)
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
    try:
        connection.request("POST", f"/v2/models/{model}/infer", body, headers)
        document = json.loads(connection.getresponse().read())
        found = {one["name"]: one for one in document["outputs"]}["probabilities"]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{server.name}: no answer of {model}: {error}") from error
    finally:
        connection.close()
    return np.asarray(found["data"], dtype=np.float32).reshape(found["shape"])
