"""Members of one process that are computed together, over plain functions."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.group import Group
from deployments.pool import Pool
from deployments.worker import HangingError
from orchestrator.config.ensemble import Member
from orchestrator.errors import MemberFailedError
from orchestrator.runtime.joint import Joint

A, B = (Member(name=name, digest=digit * 64) for name, digit in (("a", "1"), ("b", "2")))


class Computed:
    """What two members give; rows of nines break the second."""

    def __init__(self) -> None:
        self.calls: list[list[float]] = []
        self.go_on = threading.Event()

    def of(self, member: Member) -> Callable[[np.ndarray], np.ndarray]:
        def call(rows: np.ndarray) -> np.ndarray:
            assert self.go_on.wait(10)
            if member is A:
                self.calls.append(rows[:, 0].tolist())
            elif (rows == 9).any():
                raise ValueError("nines")
            return rows * 2

        return call


async def with_group(computed: Computed, test: Callable[[Group], Any], hang_s: float = math.inf) -> Any:
    alone: dict[Member, Any] = {member: computed.of(member) for member in (A, B)}
    joint = Joint((A, B), None, (), alone, None)
    group = Group(Pool("test", lambda: (joint,)), 0, hang_s=hang_s, max_rows=8, max_queued_rows=100)
    try:
        return await test(group)
    finally:
        computed.go_on.set()
        await group.close()


def rows(value: float) -> np.ndarray:
    return np.full((1, 2), value, np.float32)


def test_one_computation_for_all_members_of_a_request() -> None:
    computed = Computed()
    computed.go_on.set()

    async def test(group: Group) -> list[np.ndarray]:
        return list(await asyncio.gather(group.ask(A, rows(1)), group.ask(B, rows(1))))

    found = asyncio.run(with_group(computed, test))
    assert computed.calls == [[1.0]]
    assert [one[0, 0] for one in found] == [2.0, 2.0]


def test_rows_that_break_a_member_do_not_take_it_from_other_requests() -> None:
    computed = Computed()

    async def test(group: Group) -> list[Any]:
        first = asyncio.ensure_future(group.ask(B, rows(0)))
        await asyncio.sleep(0.01)  # the worker is busy: the next two are one batch
        others = [asyncio.ensure_future(group.ask(B, rows(value))) for value in (9, 1)]
        await asyncio.sleep(0.01)
        computed.go_on.set()
        return list(await asyncio.gather(first, *others, return_exceptions=True))

    _, broken, sound = asyncio.run(with_group(computed, test))
    assert isinstance(broken, MemberFailedError)
    assert sound[0, 0] == 2.0


@pytest.mark.parametrize("members", [(A,), (A, B)])
def test_what_nobody_waits_for_any_more_is_not_computed(members: tuple[Member, ...]) -> None:
    computed = Computed()

    async def test(group: Group) -> None:
        first = asyncio.ensure_future(group.ask(A, rows(0)))
        await asyncio.sleep(0.01)
        given_up = [asyncio.ensure_future(group.ask(member, rows(1))) for member in members]
        last = asyncio.ensure_future(group.ask(A, rows(2)))
        await asyncio.sleep(0.01)
        for task in given_up:
            task.cancel()
        await asyncio.sleep(0.01)
        computed.go_on.set()
        await asyncio.gather(first, last)

    asyncio.run(with_group(computed, test))
    assert computed.calls == [[0.0], [2.0]]


def test_a_caller_that_gives_up_leaves_the_others_their_answer() -> None:
    computed = Computed()

    async def test(group: Group) -> np.ndarray:
        one, other = (asyncio.ensure_future(group.ask(member, rows(1))) for member in (A, B))
        await asyncio.sleep(0.01)
        one.cancel()
        await asyncio.sleep(0.01)
        computed.go_on.set()
        return await other

    assert asyncio.run(with_group(computed, test))[0, 0] == 2.0


class Hangs(Computed):
    """The first member hangs until it is told to go on; the second never does."""

    def of(self, member: Member) -> Callable[[np.ndarray], np.ndarray]:
        return super().of(member) if member is A else lambda rows: rows * 2


def test_a_call_that_hangs_is_a_failure_of_its_member_until_it_returns() -> None:
    computed = Hangs()

    async def test(group: Group) -> list[Any]:
        found = []
        for value in (1, 2):
            asked = (group.ask(A, rows(value)), group.ask(B, rows(value)))
            found.append(await asyncio.gather(*asked, return_exceptions=True))
        assert group._pool.calls_that_hang == 1
        computed.go_on.set()
        while group._pool.calls_that_hang:
            await asyncio.sleep(0.01)
        found.append(await asyncio.gather(group.ask(A, rows(3)), group.ask(B, rows(3))))
        return found

    first, second, third = asyncio.run(with_group(computed, test, hang_s=0.05))
    for hanging, sound in (first, second):
        assert isinstance(hanging, HangingError)
        assert sound[0, 0] > 0
    assert [one[0, 0] for one in third] == [6.0, 6.0]
    # The second request did not call it; the first call's answer, which came too late, is nobody's.
    assert computed.calls == [[1.0], [3.0]]


def test_a_copy_whose_call_hangs_is_loaded_anew_where_there_are_others() -> None:
    computed, loaded = Hangs(), 0

    def load() -> tuple[Joint]:
        nonlocal loaded
        loaded += 1
        second: dict[Member, Any] = {B: lambda rows: rows * 2}
        sound: dict[Member, Any] = {A: lambda rows: rows * 2, **second}
        hangs: dict[Member, Any] = {A: computed.of(A), **second}
        # The copy that is lent first hangs; what is loaded later does not.
        return (Joint((A, B), None, (), hangs if loaded == 2 else sound, None),)

    async def test() -> list[Any]:
        group = Group(Pool("test", load, 2), 0, hang_s=0.05, max_rows=1, max_queued_rows=100)
        hanging = await asyncio.gather(group.ask(A, rows(1)), return_exceptions=True)
        later = await asyncio.gather(*(group.ask(A, rows(value)) for value in (2, 3, 4)))
        assert group._pool.calls_that_hang == 1
        computed.go_on.set()
        await group.close()
        return [*hanging, *later]

    try:
        first, *others = asyncio.run(test())
    finally:
        computed.go_on.set()
    assert isinstance(first, HangingError)
    assert [one[0, 0] for one in others] == [4.0, 6.0, 8.0]
    assert loaded == 3


class Broken(Computed):
    """The second member fails whatever it is asked."""

    def of(self, member: Member) -> Callable[[np.ndarray], np.ndarray]:
        def fail(_rows: np.ndarray) -> np.ndarray:
            raise ValueError("broken")

        return super().of(member) if member is A else fail


def test_a_member_that_always_fails_makes_no_batch_be_computed_anew() -> None:
    computed = Broken()
    computed.go_on.set()

    async def test(group: Group) -> list[int]:
        calls = []
        for first in (10, 20, 30):
            before = len(computed.calls)
            asked = [group.ask(member, rows(first + value)) for value in range(4) for member in (A, B)]
            found: list[Any] = list(await asyncio.gather(*asked, return_exceptions=True))
            assert [one[0, 0] for one in found[::2]] == [2 * (first + value) for value in range(4)]
            assert all(isinstance(one, MemberFailedError) for one in found[1::2])
            calls.append(len(computed.calls) - before)
        return calls

    # Of four requests at once the batcher takes all: computed once, or once more for each alone.
    assert asyncio.run(with_group(computed, test)) == [5, 1, 1]


def test_a_member_that_answered_since_is_given_another_chance() -> None:
    computed = Computed()
    computed.go_on.set()

    async def test(group: Group) -> list[Any]:
        for _ in range(5):  # nothing but nines
            with pytest.raises(MemberFailedError):
                await group.ask(B, rows(9))
        await group.ask(B, rows(1))
        return list(
            await asyncio.gather(group.ask(B, rows(9)), group.ask(B, rows(2)), return_exceptions=True)
        )

    broken, sound = asyncio.run(with_group(computed, test))
    assert isinstance(broken, MemberFailedError)
    assert sound[0, 0] == 4.0
