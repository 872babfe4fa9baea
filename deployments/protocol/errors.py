"""Refusals of a request, each with its HTTP status."""

from __future__ import annotations

from typing import ClassVar

from orchestrator.errors import InputError


class ProtocolError(InputError):
    """The request is not valid."""

    status: ClassVar[int] = 400


class UnknownModelError(ProtocolError):
    """No model of that name or version, or no such path."""

    status = 404


class TooLargeError(ProtocolError):
    """The body is longer than the server takes."""

    status = 413


class UnsupportedEncodingError(ProtocolError):
    """The body is compressed in a way, or of a media type, that the server does not know."""

    status = 415
