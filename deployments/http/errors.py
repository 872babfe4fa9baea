"""Every error as JSON with its status.

Ray's own replies to overload, timeouts and unknown routes are plain text, which clients of the protocol
cannot read.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from deployments.protocol.errors import ProtocolError
from deployments.protocol.rest import to_json
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    OverloadedError,
    QuorumError,
)


def to_reply(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, media_type="application/json")


def status_of(error: OrchestratorError) -> int:
    if isinstance(error, ProtocolError):
        return error.status
    if isinstance(error, DeadlineError):
        return 504
    if isinstance(error, OverloadedError | QuorumError | MemberFailedError):
        return 503
    return 500


async def refuse(_request: HttpRequest, error: Exception) -> Response:
    """Errors that say what is wrong."""
    if not isinstance(error, OrchestratorError):
        raise error
    return to_reply({"error": str(error)}, status_of(error))


async def refuse_route(request: HttpRequest, error: Exception) -> Response:
    """Unknown paths and wrong methods."""
    if not isinstance(error, HTTPException):
        raise error
    text = f"{error.detail}: {request.method} {request.url.path[:200]}"
    return to_reply({"error": text}, error.status_code, error.headers)


async def gone(_request: HttpRequest, _error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; the code is for the access log


async def refuse_unexpected(_request: HttpRequest, _error: Exception) -> Response:
    """A defect; Starlette raises it again once this is sent, and Serve logs it."""
    return to_reply({"error": "internal error; see the server's log"}, 500)
