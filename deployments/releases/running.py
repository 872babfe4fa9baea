"""A release that is loaded: what asks it, and when it may be closed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Protocol

from deployments.exchange import Answer, Question
from deployments.observe.meter import Snapshot
from deployments.protocol.model import Model, describe
from orchestrator.config.ensemble import Spec
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    QuorumError,
    ReleaseChangedError,
    ServingError,
)
from orchestrator.models.build import example_inputs


class Engine(Protocol):
    """What answers for a spec: `Fused`, `Mixed` or `Composed`."""

    async def predict(self, question: Question) -> Answer: ...

    async def ready(self) -> None: ...

    async def snapshots(self) -> list[Snapshot]: ...

    def check_health(self) -> None: ...

    async def close(self) -> None: ...


CHECK_S = 30.0
"""Longest time for the first answer of a release that is loaded."""
_CLOSING = set[asyncio.Task[None]]()
"""Of releases whose last answer was just given; the event loop itself would not keep them."""


class Running:
    """A loaded release; it answers until it is retired and its last answer is given.

    Args:
        digest: of the release.
        spec: what it serves.
        engine: answers.
    """

    def __init__(self, digest: str, spec: Spec, engine: Engine) -> None:
        self.digest, self.spec, self.engine = digest, spec, engine
        self.model: Model = describe(spec)
        self._asked = 0
        self._retired = False

    async def ask(self, question: Question) -> Answer:
        """The engine's answer, which says which version made it.

        Raises:
            MemberFailedError: it is closed.
            ReleaseChangedError: the rows were made by the encoding of another release, or another version is
                asked for.
            OrchestratorError: the engine's.
        """
        if self._retired:
            raise MemberFailedError("a release that is closed was asked", self.digest[:12])
        model = self.model
        if question.encoded_by not in ("", model.encoded_by) or question.version not in ("", model.version):
            raise ReleaseChangedError("another release took over", self.spec.name, "ask again")
        self._asked += 1
        if (told := question.told) is not None:
            question = replace(question, told=lambda stage: told(replace(stage, version=self.model.version)))
        try:
            answer = await self.engine.predict(question)
        finally:
            self._asked -= 1
            if self._retired and not self._asked:
                self._close_later()
        version = self.model.version
        return answer if answer.version == version else replace(answer, version=version)

    async def check(self) -> None:
        """It answers.

        Raises:
            ServingError: it does not; to who promotes it that is no failure of a request.
            OrchestratorError: likewise, for now.
        """
        try:
            await self.engine.ready()
            await self.engine.predict(Question(example_inputs(self.spec.signature, 1), CHECK_S))
        except (DeadlineError, MemberFailedError, QuorumError) as error:
            raise ServingError("a release does not answer", error) from error

    async def retire(self) -> None:
        """Close it, now or after its last answer; nobody may ask it any more."""
        if not self._retired:
            self._retired = True
            if not self._asked:
                await self.engine.close()

    def _close_later(self) -> None:
        """Whoever asked last does not wait for it: members that are deployments may take a minute."""
        task = asyncio.create_task(self.engine.close())
        _CLOSING.add(task)
        task.add_done_callback(_CLOSING.discard)
