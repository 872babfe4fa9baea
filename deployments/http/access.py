"""API keys, scopes and rates, over HTTP and gRPC.

The rule is the longest list of exceptions that a reader can keep in mind: liveness and readiness (load
balancers have no keys) and the page's own text (it holds no figures) are open; all else needs a key.
"""

from __future__ import annotations

import ipaddress
import math
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from deployments.http.asgi import Headers, Reply, header_text, headers_of, json_reply, path_of, send_reply
from deployments.observe.requests import CURRENT
from orchestrator import keys as stored
from orchestrator.config.access import AccessSettings
from orchestrator.errors import ConfigError
from orchestrator.keys import Key

OPEN = ("/", "/v2/health/live", "/v2/health/ready")
ADMIN = ("/admin/", "/v2/repository/models/")
"""What changes what is served. Listing it is `POST /v2/repository/index`, a data route."""
REMEMBERED = 256
"""Most clients, and pairs of `Host` and `Origin`, whose verdict is kept: clients send the same again."""
FRESH_S = 1.0
"""A change of the key file is seen after this time at the latest."""


@dataclass(frozen=True)
class Refusal:
    """Why a request may not pass."""

    status: int
    sentence: str
    wait_s: float = 0.0
    """After which it may be tried again."""


class Access:
    """Asks for a key where there is a file of keys.

    Args:
        settings: the keys, their rate, or that nobody is asked.

    Raises:
        ConfigError: the file of keys cannot be read.
    """

    def __init__(self, settings: AccessSettings) -> None:
        self._open = settings.open
        self._keys = None if settings.keys is None else KeyFile(Path(settings.keys))
        rate = settings.rate_per_s
        self._rates = None if rate is None else Rates(rate, settings.burst)

    def refusal(self, token: str, *, admin: bool, here: bool) -> Refusal | None:
        """Why a request that shows this token may not pass; None when it may.

        Args:
            token: empty when it shows none.
            admin: it changes what is served.
            here: it comes from this machine.
        """
        if self._keys is None:
            if self._open or here:
                return None
            return Refusal(403, "without API keys only requests of this machine are answered")
        key = self._keys.find(token)
        if key is None:
            return Refusal(401, "this needs a valid API key")
        record = CURRENT.get()
        if record is not None:
            record.key = key.name
        if admin and not key.allows("admin"):
            return Refusal(403, "this needs a key with scope admin")
        wait_s = 0.0 if self._rates is None else self._rates.take(key.name)
        return Refusal(429, "too many requests with this key; try again later", wait_s) if wait_s else None


class Guarded:
    """ASGI wrapper that lets through who may pass; without keys, this machine only."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (path := path_of(scope)) not in OPEN:
            admin = path.startswith(ADMIN)
            token = _token(headers_of(scope))
            refused = self._access.refusal(token, admin=admin, here=from_here(scope))
            if refused is not None:
                await send_reply(send, _reply(refused), with_body=scope["method"] != "HEAD")
                return
        await self._app(scope, receive, send)


class KeyFile:
    """The keys of a file, read again when it has changed. One that became unreadable lets nobody in."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = self._stamp()  # before reading: a change meanwhile is then seen later
        self._keys = stored.read(path)
        self._looked = time.monotonic()

    def find(self, token: str) -> Key | None:
        """The key of a token."""
        self._look()
        return stored.find(self._keys, token) if token else None

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked < FRESH_S:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp != self._seen:
            try:
                self._keys, self._seen = stored.read(self._path), stamp
            except ConfigError:
                # None: it is read again although the same file comes back, or may be read again.
                self._keys, self._seen = (), None

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino


@dataclass
class _Bucket:
    tokens: float
    filled: float


class Rates:
    """A token bucket for each key: `burst` requests at once, `per_s` on average.

    Each ingress replica keeps its own, so that with n of them a key has n times the rate.
    """

    def __init__(self, per_s: float, burst: int) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: dict[str, _Bucket] = {}

    def take(self, name: str) -> float:
        """Count a request; the seconds to wait when there were too many, else 0."""
        now = time.monotonic()
        bucket = self._buckets.setdefault(name, _Bucket(self._burst, now))
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.filled) * self._per_s)
        bucket.filled = now
        if bucket.tokens < 1:
            return (1 - bucket.tokens) / self._per_s
        bucket.tokens -= 1
        return 0.0


def token_of(headers: Mapping[str, str]) -> str:
    """The token of `Authorization: Bearer` or `X-API-Key`; empty when there is none."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()


def _token(headers: Headers) -> str:
    if b"authorization" not in headers and b"x-api-key" not in headers:
        return ""
    return token_of({name.decode("latin-1"): text.decode("latin-1") for name, text in headers.items()})


def from_here(scope: Scope) -> bool:
    """Whether a request comes from this machine, from nobody behind it and from no web page of elsewhere.

    Settings refuse to listen on other addresses without keys; where they are not asked, as when a Serve
    config file opens the port, this is what holds.
    """
    headers = headers_of(scope)
    client, server = scope.get("client"), scope.get("server")
    if b"x-forwarded-for" in headers or client is None or server is None:
        return False
    # A machine that connects to its own address does so from that address.
    if client[0] != server[0] and not _is_loopback(client[0]):
        return False
    return _is_asked_by_name_of_this_machine(header_text(headers, b"host"), header_text(headers, b"origin"))


@lru_cache(REMEMBERED)
def _is_asked_by_name_of_this_machine(host: str | None, origin: str | None) -> bool:
    """Browsers here also send what pages of other sites tell them to: with the site's `Origin`, or, once its
    name leads to this machine (DNS rebinding), with its name as `Host`."""
    if host is None:  # no browser
        return True
    try:
        origin = urlsplit(f"//{host}" if origin is None else origin).netloc
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    ours = name in ("localhost", socket.gethostname().lower()) or _is_address(name)
    return ours and origin.lower() == host.lower()


@lru_cache(REMEMBERED)
def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reply(refused: Refusal) -> Reply:
    headers: list[tuple[bytes, bytes]] = []
    if refused.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refused.wait_s:
        headers.append((b"retry-after", b"%d" % math.ceil(refused.wait_s)))
    return json_reply({"error": refused.sentence}, refused.status, tuple(headers))
