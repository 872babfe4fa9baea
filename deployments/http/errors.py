"""Every error as JSON with its status.

Ray's own replies to overload, timeouts and unknown routes are plain text, which clients of the protocol
cannot read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar

from deployments.http.asgi import Header, Reply, json_reply
from deployments.protocol.errors import ProtocolError
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    OverloadedError,
    QuorumError,
)

RETRY_AFTER_S = 1.0
"""What clients are told to wait after a refusal that may pass, if the error does not know better."""
MAY_PASS = (429, 503)


class SlowBodyError(ProtocolError):
    """The body did not arrive in time."""

    status: ClassVar[int] = 408


INTERNAL = "internal error; see the server's log"


def told_to_clients(error: Exception) -> str:
    """The sentence; what went wrong inside is for the log."""
    ours = isinstance(error, OrchestratorError) and status_of(error) != 500
    return str(error) if ours else INTERNAL


def status_of(error: OrchestratorError) -> int:
    """The HTTP status that says what kind of error it is."""
    if isinstance(error, ProtocolError):
        return error.status
    if isinstance(error, DeadlineError):
        return 504
    if isinstance(error, OverloadedError | QuorumError | MemberFailedError):
        return 503
    return 500


def refusal(status: int, sentence: str, retry_after_s: float | None = None) -> Reply:
    """The reply for an error."""
    headers: tuple[Header, ...] = ()
    if status in MAY_PASS:
        whole_s = max(1, math.ceil(retry_after_s or RETRY_AFTER_S))
        headers = ((b"retry-after", b"%d" % whole_s),)
    return json_reply({"error": sentence}, status, headers)


def wrong_method(method: str, path: str, allowed: Iterable[str]) -> Reply:
    """The reply for a method that a path does not have."""
    headers = ((b"allow", ", ".join(allowed).encode()),)
    return json_reply({"error": f"Method not allowed: {method[:20]} {path[:200]}"}, 405, headers)
