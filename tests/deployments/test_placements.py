"""Fused, distributed and mixed ensembles behind one Ray Serve, by its fastest way in."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tritonclient.http import InferenceServerClient, InferInput

from deployments.local import serve_locally
from deployments.protocol.model import describe
from orchestrator.cluster import connected
from orchestrator.config.ensemble import Spec
from orchestrator.config.serving import AppSettings, MemberOptions, ServingSettings
from orchestrator.store.store import Store
from tests.deployments.toys import in_process, open_store, rows_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
FUSED, MIXED, DISTRIBUTED = "table", "cascade", "alone"
LISTEN = "0A"
HTTP_PORTS = range(30_000, 31_001)
"""Where Serve would let replicas of an ingress listen for HAProxy."""
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


@dataclass(frozen=True)
class Running:
    port: int
    store: Store
    specs: dict[str, Spec]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    store, specs = open_store(tmp_path_factory.mktemp("placements"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    serving = ServingSettings(
        port=port,
        placement="fused",
        compile=False,
        members={"cnn": MemberOptions(placement="distributed")},
    )
    settings = AppSettings(store=str(store.root), specs=specs, serving=serving)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("PYTHONPATH", str(ROOT))
        with connected(cpus=2), serve_locally(settings, ready_s=300):
            yield Running(port, store, {spec.name: spec for spec in specs})


@pytest.mark.parametrize("name", [FUSED, MIXED, DISTRIBUTED, "chained"])
def test_answers_are_the_same_everywhere(running: Running, name: str) -> None:
    spec = running.specs[name]
    client = InferenceServerClient(f"127.0.0.1:{running.port}", concurrency=8)
    waits = []
    rows = rows_of(spec)
    for row in rows:
        tensor = InferInput("input", [1, *row.shape], describe(spec).input.datatype)
        tensor.set_data_from_numpy(row[None])
        waits.append(client.async_infer(name, [tensor]))
    expected = in_process(running.store, spec, rows)
    output, wanted = (
        ("values", expected.outputs) if expected.probs is None else ("probabilities", expected.probs)
    )
    found = np.concatenate([wait.get_result().as_numpy(output) for wait in waits])
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    client.close()


def command(process: int) -> bytes:
    """Its first word; none once it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0]
    return b""


def below(process: int, name: bytes) -> list[int]:
    """Processes that it started, and those that they did, with that name in their command."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name, which may hold anything, is in brackets before the state and the parent.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found, older = [], {process}
    while older:
        older = {child for child, parent in parents.items() if parent in older}
        found += [child for child in older if name in command(child)]
    return found


def listening(process: int) -> list[tuple[str, int]]:
    """Addresses (as the kernel writes them) and ports that a process listens on."""
    links = (os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir())
    own = {link[8:-1] for link in links if link.startswith("socket:[")}
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text(encoding="ascii").splitlines()[1:]:
            words = line.split()
            if words[3] == LISTEN and words[9] in own:
                address, _, port = words[1].partition(":")
                found.append((address, int(port, 16)))
    return found


def test_the_ingress_listens_on_loopback_and_nobody_else_takes_http(running: Running) -> None:
    replicas = below(os.getpid(), b"ServeReplica")
    doors = [door for process in replicas for door in listening(process)]
    ours = {address for address, port in doors if port == running.port}
    assert ours
    assert ours <= set(LOOPBACK)
    assert not [door for door in doors if door[1] in HTTP_PORTS]
    assert not below(os.getpid(), b"bin/haproxy")
    assert not below(os.getpid(), b"ProxyActor")


def test_nothing_of_a_private_ray_listens_elsewhere(running: Running) -> None:
    del running
    doors = {process: listening(process) for process in below(os.getpid(), b"")}
    elsewhere = {
        command(process): [door for door in found if door[0] not in LOOPBACK]
        for process, found in doors.items()
    }
    assert sum(map(len, doors.values())) > 5
    assert not {name: found for name, found in elsewhere.items() if found}
