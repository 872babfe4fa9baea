"""Paths and methods to handlers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from deployments.http.asgi import EventStream, Headers, Receive, Reply
from deployments.http.errors import wrong_method
from deployments.protocol.errors import ProtocolError, UnknownModelError


@dataclass(frozen=True)
class Call:
    """A request to a route."""

    headers: Headers
    receive: Receive
    path: Mapping[str, str]
    """What stood in the place of the path's names."""
    query: str = ""

    def queries(self, known: frozenset[str]) -> dict[str, str]:
        """The query's parameters.

        Raises:
            ProtocolError: one is unknown or comes twice.
        """
        pairs = parse_qsl(self.query, keep_blank_values=True)
        found = dict(pairs)
        if unknown := sorted(set(found) - known):
            raise ProtocolError(
                "unknown query parameter", unknown[0][:80], f"known: {', '.join(sorted(known))}"
            )
        if len(found) < len(pairs):
            raise ProtocolError("a query parameter comes twice", self.query[:80])
        return found


Handler = Callable[[Call], Awaitable[Reply | EventStream]]


class Routes:
    """A table of paths like `/v2/models/{model}`, each with its methods."""

    def __init__(self, table: Mapping[str, Mapping[str, Handler]]) -> None:
        self._table = [
            (re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(path))), handlers)
            for path, handlers in table.items()
        ]

    def find(self, method: str, path: str) -> tuple[Handler, Mapping[str, str]] | Reply:
        """Handler and names of a path, or the refusal of a method that the path has not.

        Raises:
            UnknownModelError: there is no such path.
        """
        for pattern, handlers in self._table:
            if (match := pattern.fullmatch(path)) is not None:
                handler = handlers.get("GET" if method == "HEAD" else method)
                if handler is None:
                    return wrong_method(method, path, handlers)
                return handler, match.groupdict()
        raise UnknownModelError("Not found", f"{method[:20]} {path[:200]}")
