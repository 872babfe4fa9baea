"""A loaded release, over an engine that answers and ends when it is told to."""

from __future__ import annotations

import asyncio

import pytest

from deployments.exchange import Answer, Question
from deployments.observe.meter import Snapshot
from deployments.releases.running import Running
from orchestrator.errors import MemberFailedError
from tests.deployments.models import spec
from tests.deployments.remotes import INPUTS, run


class Engine:
    def __init__(self) -> None:
        self.answers, self.ends = asyncio.Event(), asyncio.Event()
        self.closed = False

    async def predict(self, _question: Question) -> Answer:
        await self.answers.wait()
        return Answer({}, (), 3, False)

    async def ready(self) -> None: ...

    async def snapshots(self) -> list[Snapshot]:
        return []

    def check_health(self) -> None: ...

    async def close(self) -> None:
        await self.ends.wait()
        self.closed = True


def test_the_last_answer_of_a_retired_release_does_not_wait_for_its_end() -> None:
    async def test() -> None:
        engine = Engine()
        running = Running("0" * 64, spec(), engine)
        asked = [asyncio.create_task(running.ask(Question(INPUTS, 5))) for _ in range(2)]
        await asyncio.sleep(0)
        await running.retire()
        with pytest.raises(MemberFailedError, match="closed"):
            await running.ask(Question(INPUTS, 5))
        engine.answers.set()
        assert [answer.weight_epoch for answer in await asyncio.gather(*asked)] == [3, 3]
        assert not engine.closed
        engine.ends.set()
        await asyncio.sleep(0.01)
        assert engine.closed

    run(test())


def test_a_release_that_is_retired_while_nobody_asks_is_closed_at_once() -> None:
    async def test() -> None:
        engine = Engine()
        engine.ends.set()
        await Running("0" * 64, spec(), engine).retire()
        assert engine.closed

    run(test())
