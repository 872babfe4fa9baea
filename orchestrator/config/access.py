"""Who may reach a server, and how the way there is encrypted."""

from __future__ import annotations

import ipaddress

from pydantic import Field

from orchestrator.config.base import Settings


class AccessSettings(Settings):
    """API keys of a server."""

    keys: str | None = None
    """File of keys (`orchestrator keys add`); every route but liveness, readiness and the page's own text
    then asks for one. Where the server listens on more than loopback, it must be given."""
    open: bool = False
    """Answer other machines without keys: only where a gateway in front asks for its own."""
    rate_per_s: float | None = Field(None, gt=0)
    """Requests a second of each key, on average; more are refused (429)."""
    burst: int = Field(20, ge=1)
    """Requests that a key may send at once before its rate counts."""


class TlsSettings(Settings):
    """PEM files, on the node that listens."""

    certificate: str
    """Chain of certificates, the server's first."""
    key: str
    """Private key, without a password."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
