"""Handlers of what changes a served model, and of labels for its answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from deployments.front import LARGE_BYTES, Front, Gate, maybe_threaded
from deployments.http.asgi import Reply, json_reply
from deployments.http.limits import read_in_time
from deployments.http.routes import Call, Handler
from deployments.protocol.errors import ProtocolError, UnknownModelError
from deployments.releases.controls import MOST_CHANGES, Controls
from orchestrator.config.base import Settings
from orchestrator.config.load import explained
from orchestrator.config.release import Canary, Labels, Promote, Reweight, Rollback
from orchestrator.errors import (
    DeadlineError,
    EnsembleError,
    InputError,
    MemberFailedError,
    NotFoundError,
    OrchestratorError,
    RefConflictError,
)

S = TypeVar("S", bound=Settings)

CHANGE_BYTES = 64 * 2**10
"""Longest body of a change."""
LABELS_BYTES = 4 * 2**20
"""And of labels."""

logger = logging.getLogger(__name__)


class ConflictError(ProtocolError):
    """What is asked for does not go with what is served or stored."""

    status: ClassVar[int] = 409


class NoneSuchError(UnknownModelError):
    """No such release, ensemble or canary."""


class Admin:
    """The handlers, by model name.

    Args:
        controls: of the models whose releases the store holds.
        front: lets labels in as it does requests.
    """

    def __init__(self, controls: Mapping[str, Controls], front: Front) -> None:
        self._controls = controls
        self._front = front
        # Apart from requests, so that a server with too many of them can be rolled back.
        self._changes = Gate(MOST_CHANGES)

    def routes(self) -> dict[str, dict[str, Handler]]:
        """Where each handler is."""
        base = "/admin/models/{model}"
        return {
            "/admin/models": {"GET": self.states},
            base: {"GET": self.state},
            base + "/promote": {"POST": self.promote},
            base + "/rollback": {"POST": self.rollback},
            base + "/weights": {"POST": self.weights},
            base + "/canary": {"POST": self.canary, "DELETE": self.stop_canary},
            "/v2/models/{model}/feedback": {"POST": self.feedback},
        }

    async def states(self, _call: Call) -> Reply:
        found = {name: await _told(one.state()) for name, one in self._controls.items()}
        return json_reply({"models": found})

    async def state(self, call: Call) -> Reply:
        return json_reply(await _told(self._find(call).state()))

    async def promote(self, call: Call) -> Reply:
        return await self._change(call, Promote, self._find(call).promote)

    async def rollback(self, call: Call) -> Reply:
        return await self._change(call, Rollback, self._find(call).rollback)

    async def weights(self, call: Call) -> Reply:
        return await self._change(call, Reweight, self._find(call).reweight)

    async def canary(self, call: Call) -> Reply:
        return await self._change(call, Canary, self._find(call).try_out)

    async def stop_canary(self, call: Call) -> Reply:
        with self._changes:
            return json_reply(await _told(self._find(call).stop_trying()))

    async def feedback(self, call: Call) -> Reply:
        learn = self._find(call).learn
        with self._front.gate, self._front.bodies.room() as take:
            data = await self._read(call, LABELS_BYTES, take)
            body = await maybe_threaded(len(data) >= LARGE_BYTES, _parsed, Labels, data)
            return json_reply(await _told(learn(body)))

    def _find(self, call: Call) -> Controls:
        name = call.path["model"]
        if name not in self._controls:
            known = ", ".join(self._controls) or "none"
            raise UnknownModelError("no model of that name has releases", name[:80], f"those: {known}")
        return self._controls[name]

    async def _change(
        self, call: Call, form: type[S], action: Callable[[S], Awaitable[dict[str, Any]]]
    ) -> Reply:
        with self._changes:
            return json_reply(await _told(action(_parsed(form, await self._read(call, CHANGE_BYTES)))))

    async def _read(self, call: Call, limit: int, take: Callable[[int], None] = lambda _size: None) -> bytes:
        return await read_in_time(call.headers, call.receive, limit, self._front.serving.deadline_s, take)


def _parsed(form: type[S], data: bytes) -> S:
    try:
        return form.model_validate_json(data or b"{}")
    except ValidationError as error:
        found = explained(error, form, "the body")
        raise ProtocolError(found.what, found.value, found.fix) from error


async def _told(action: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    """The outcome; what went wrong as a status, and without names of files."""
    try:
        return await action
    except (ProtocolError, DeadlineError, MemberFailedError):
        raise
    except NotFoundError as error:
        raise NoneSuchError(error.what, error.value, error.fix) from error
    except RefConflictError as error:
        raise ConflictError(error.what, error.value, error.fix) from error
    except (InputError, EnsembleError) as error:
        raise ProtocolError(error.what, error.value, error.fix) from error
    except OrchestratorError as error:
        logger.error("refused: %s", error)
        raise ConflictError(error.what, None, "the server's log says more") from error
