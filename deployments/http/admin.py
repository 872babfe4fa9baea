"""Handlers of what changes a served model, and of labels for its answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import ValidationError

from deployments.http.asgi import Reply, json_reply
from deployments.http.errors import SlowBodyError
from deployments.http.limits import read_body
from deployments.http.routes import Call, Handler
from deployments.protocol.errors import ProtocolError, UnknownModelError
from deployments.releases.controls import Controls
from orchestrator.config.base import Settings
from orchestrator.config.load import explained
from orchestrator.config.release import Canary, Labels, Promote, Reweight, Rollback
from orchestrator.config.serving import ServingSettings
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

BODY_BYTES = 4 * 2**20
"""Longest body."""

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
        serving: limits.
    """

    def __init__(self, controls: Mapping[str, Controls], serving: ServingSettings) -> None:
        self._controls = controls
        self._serving = serving

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
        return await self._do(call, Promote, self._find(call).promote)

    async def rollback(self, call: Call) -> Reply:
        return await self._do(call, Rollback, self._find(call).rollback)

    async def weights(self, call: Call) -> Reply:
        return await self._do(call, Reweight, self._find(call).reweight)

    async def canary(self, call: Call) -> Reply:
        return await self._do(call, Canary, self._find(call).try_out)

    async def stop_canary(self, call: Call) -> Reply:
        return json_reply(await _told(self._find(call).stop_trying()))

    async def feedback(self, call: Call) -> Reply:
        return await self._do(call, Labels, self._find(call).learn)

    def _find(self, call: Call) -> Controls:
        name = call.path["model"]
        if name not in self._controls:
            known = ", ".join(self._controls) or "none"
            raise UnknownModelError("no model of that name has releases", name[:80], f"those: {known}")
        return self._controls[name]

    async def _do(self, call: Call, form: type[S], action: Callable[[S], Awaitable[dict[str, Any]]]) -> Reply:
        try:
            async with asyncio.timeout(self._serving.deadline_s):
                data = await read_body(call.headers, call.receive, BODY_BYTES)
        except TimeoutError as error:
            raise SlowBodyError("the body did not arrive in time") from error
        try:
            body = form.model_validate_json(data or b"{}")
        except ValidationError as error:
            found = explained(error, form, "the body")
            raise ProtocolError(found.what, found.value, found.fix) from error
        return json_reply(await _told(action(body)))


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
