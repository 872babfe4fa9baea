"""Items that go to another process together: each has its own answer, and nothing waits without need."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployments.bundle import MOST_BYTES, Bundler, answer_each
from deployments.exchange import Answer, Question
from deployments.ingress import _asks
from deployments.member import split
from orchestrator.errors import MemberFailedError, OrchestratorError
from tests.deployments.models import MIX, spec

WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Far:
    """Another process: doubles numbers, has no answer to negative ones, and waits for `gate`."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.asked_by: list[str] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: list[int]) -> Sequence[int | OrchestratorError]:
        self.calls.append(items)
        self.asked_by.append(WHO.get())
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [MemberFailedError("negative", item) if item < 0 else 2 * item for item in items]


def bundler(far: Far, **more: Any) -> Bundler[int, int]:
    return Bundler(far, lambda _: 1, **more)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_asks_at_the_same_time_goes_together_and_has_an_answer_of_its_own() -> None:
    async def test() -> None:
        far = Far()
        found = bundler(far)
        answers = await asyncio.gather(*map(found.ask, (1, -1, 3)), return_exceptions=True)
        assert (answers[0], answers[2]) == (2, 6)
        assert isinstance(answers[1], MemberFailedError)
        assert await found.ask(4) == 8
        assert far.calls == [[1, -1, 3], [4]]

    run(test())


def test_without_a_slot_items_wait_for_an_answer_or_for_a_while() -> None:
    async def test() -> None:
        far = Far()
        far.gate.clear()
        slow = bundler(far, slots=1, linger_s=60.0)
        tasks = [asyncio.create_task(slow.ask(1))]
        await settle()
        for number in (2, 3):
            tasks.append(asyncio.create_task(slow.ask(number)))
            await settle()
        assert far.calls == [[1]]
        far.gate.set()
        assert await asyncio.gather(*tasks) == [2, 4, 6]
        assert far.calls == [[1], [2, 3]]

        far.gate.clear()
        brief = bundler(far, slots=1, linger_s=0.001)
        tasks = [asyncio.create_task(brief.ask(4))]
        await settle()
        tasks.append(asyncio.create_task(brief.ask(5)))
        while len(far.calls) < 4:  # nothing has been answered yet
            await asyncio.sleep(0.001)
        far.gate.set()
        assert await asyncio.gather(*tasks) == [8, 10]

    run(test())


def test_a_call_is_cancelled_once_nobody_waits_for_it() -> None:
    async def test() -> None:
        far = Far()
        far.gate.clear()
        found = bundler(far)
        tasks = [asyncio.create_task(found.ask(number)) for number in (1, 2)]
        await settle()
        tasks[0].cancel()
        await settle()
        assert far.cancelled == 0
        tasks[1].cancel()
        await settle()
        assert far.cancelled == 1
        waiting = asyncio.create_task(found.ask(3))
        await asyncio.sleep(0)
        waiting.cancel()  # before it is sent
        await settle()
        assert far.calls == [[1, 2]]

    run(test())


def test_a_failed_call_fails_all_of_its_items_and_no_other() -> None:
    async def broken(items: list[int]) -> Sequence[int | OrchestratorError]:
        if len(items) > 1:
            raise MemberFailedError("a replica could not be reached")
        return items

    async def test() -> None:
        found: Bundler[int, int] = Bundler(broken, lambda _: 1)
        answers = await asyncio.gather(*map(found.ask, (1, 2)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [MemberFailedError] * 2
        assert await found.ask(3) == 3

    run(test())


def test_a_bundle_has_so_many_bytes_at_most_and_large_items_go_alone() -> None:
    async def test() -> None:
        far = Far()
        found: Bundler[int, int] = Bundler(far, lambda item: item)
        half = MOST_BYTES // 2
        sizes = (half, half, half, 4 * half, 1)
        assert await asyncio.gather(*map(found.ask, sizes)) == [2 * size for size in sizes]
        assert far.calls == [[half, half], [half], [4 * half], [1]]

    run(test())


def test_a_call_for_one_request_belongs_to_it_and_one_for_several_to_none() -> None:
    async def test() -> None:
        far = Far()
        found = bundler(far)

        async def ask(who: str, number: int) -> int:
            WHO.set(who)
            return await found.ask(number)

        await asyncio.create_task(ask("ann", 1))
        await asyncio.gather(ask("ann", 2), ask("bob", 3))
        assert far.asked_by == ["ann", "nobody"]

    run(test())


def test_a_defect_met_by_one_item_does_not_fail_the_others() -> None:
    async def ask(item: int) -> int:
        if item < 0:
            raise ValueError("no such row")
        return item

    first, second = asyncio.run(answer_each(ask, [-1, 2]))
    assert isinstance(first, MemberFailedError)
    assert second == 2


def test_a_question_with_less_time_than_others_does_not_wait_for_them() -> None:
    sent: list[list[float]] = []

    async def answered(questions: list[Question]) -> list[Answer]:
        sent.append([round(question.timeout_s) for question in questions])
        return [Answer({}, ("m",), 0, False) for _ in questions]

    async def alone(question: Question) -> Answer:
        return (await answered([question]))[0]

    def remote(call: Any) -> Any:
        return SimpleNamespace(remote=lambda asked: asyncio.ensure_future(call(asked)))

    async def test() -> None:
        handle: Any = SimpleNamespace(predict=remote(alone), predict_many=remote(answered))
        ask = _asks(spec(MIX), handle)
        rows = np.zeros((1, 3), np.float32)
        await asyncio.gather(*(ask(Question(rows, time_s)) for time_s in (10, 2, 10, 9.9, 2)))

    run(test())
    assert sorted(sent, key=len) == [[2, 2], [10, 10, 10]]


@pytest.mark.parametrize("sizes", [[3], [1, 2], [1, 1, 1]])
def test_rows_are_split_as_they_were_joined(sizes: list[int]) -> None:
    rows = np.arange(6).reshape(3, 2)
    parts = split(rows, sizes)
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate(parts), rows)
