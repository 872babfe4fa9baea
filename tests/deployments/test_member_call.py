"""Retries, hedges and breakers over calls that behave badly."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from deployments.breaker import Breaker
from deployments.hedge import Hedge
from deployments.member_call import LATE, MemberCall
from orchestrator.config.serving import BreakerSettings, MemberOptions
from orchestrator.ensemble import quorum
from orchestrator.errors import MemberFailedError, OverloadedError
from tests.deployments.remotes import run

ROWS = np.zeros((3, 2), np.float32)
SOUND = np.ones((3, 4), np.float32)
Step = Callable[[], Awaitable[Any]]


def says(value: Any) -> Step:
    async def step() -> Any:
        return value

    return step


def raises(error: Exception) -> Step:
    async def step() -> Any:
        raise error

    return step


def takes(seconds: float, value: Any = SOUND) -> Step:
    async def step() -> Any:
        await asyncio.sleep(seconds)
        return value

    return step


class Scripted:
    """A member whose calls go one after the other as written, the last one for ever; counts what it sees."""

    def __init__(self, *steps: Step) -> None:
        self.steps = list(steps)
        self.calls = 0
        self.cancelled = 0

    async def __call__(self, _: np.ndarray) -> np.ndarray:
        step = self.steps[min(self.calls, len(self.steps) - 1)]
        self.calls += 1
        try:
            output: np.ndarray = await step()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return output


def member(scripted: Scripted, replicas: int = 1, **options: Any) -> MemberCall:
    return MemberCall(
        scripted,
        lambda output, rows: quorum.problem(output, rows, 4, None),
        MemberOptions(**options),
        replicas=replicas,
        clock=lambda: 0.0,
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (raises(MemberFailedError("out of memory")), "out of memory"),
        (raises(KeyError("secret/path")), "the call failed: KeyError"),
        (says(np.full((3, 4), np.nan, np.float32)), "not finite"),
        (says(np.full((3, 4), np.inf, np.float32)), "not finite"),
        (says(np.ones((3, 5), np.float32)), "output shape"),
        (says(np.ones((2, 4), np.float32)), "output shape"),
        (says(np.ones((3, 4), np.int64)), "output of int64"),
        (says(None), "no output"),
        (says("text"), "AttributeError"),
    ],
)
def test_what_is_no_answer_is_asked_again_once_and_then_refused(bad: Step, reason: str) -> None:
    mended = Scripted(bad, says(SOUND))
    np.testing.assert_array_equal(run(member(mended)(ROWS)), SOUND)
    assert mended.calls == 2
    broken = Scripted(bad)
    with pytest.raises(MemberFailedError, match=reason) as caught:
        run(member(broken)(ROWS))
    assert broken.calls == 2
    assert "secret" not in str(caught.value)


def test_an_overloaded_member_is_not_asked_again() -> None:
    scripted = Scripted(raises(OverloadedError("full")))
    with pytest.raises(OverloadedError):
        run(member(scripted)(ROWS))
    assert scripted.calls == 1


def test_a_call_has_its_own_time_limit() -> None:
    scripted = Scripted(takes(30), says(SOUND))
    np.testing.assert_array_equal(run(member(scripted, timeout_s=0.02)(ROWS)), SOUND)
    with pytest.raises(MemberFailedError, match=LATE):
        run(member(Scripted(takes(30)), timeout_s=0.02, retries=0)(ROWS))


def test_a_breaker_that_opens_ends_the_retries_and_a_try_that_works_closes_it() -> None:
    scripted = Scripted(*[raises(MemberFailedError("broken"))] * 3, says(SOUND))
    one = member(scripted, retries=10, breaker=BreakerSettings(failures=3))
    with pytest.raises(MemberFailedError):
        run(one(ROWS))
    assert (scripted.calls, one.state) == (3, "open")
    run(one.attempt(ROWS, 1.0))
    assert (scripted.calls, one.state) == (4, "closed")


@pytest.mark.parametrize("bad", [takes(30), raises(MemberFailedError("broken"))])
def test_a_try_that_fails_opens_it_again_and_raises_nothing(bad: Step) -> None:
    one = member(Scripted(bad), retries=0, breaker=BreakerSettings(failures=1))
    one._breaker = Breaker("open", since_s=-10.0, pauses=1)
    assert one.to_try()
    run(one.attempt(ROWS, 0.02))
    assert (one.state, one.to_try()) == ("open", False)


def test_without_a_breaker_it_is_always_closed() -> None:
    one = member(Scripted(raises(MemberFailedError("broken"))), breaker=None)
    for _ in range(50):
        with pytest.raises(MemberFailedError):
            run(one(ROWS))
    assert (one.state, one.to_try()) == ("closed", False)


def hedged(*steps: Step, replicas: int = 2) -> tuple[Scripted, MemberCall]:
    scripted = Scripted(*steps)
    one = member(scripted, replicas, retries=0)
    if replicas > 1:
        one._hedge = Hedge(latencies_s=(0.01,) * 50, calls=50, tail_s=0.02)
    return scripted, one


def test_a_slow_call_is_overtaken_by_a_second_one_and_cancelled() -> None:
    scripted, one = hedged(takes(30), says(SOUND))
    np.testing.assert_array_equal(run(one(ROWS)), SOUND)
    assert (scripted.calls, scripted.cancelled) == (2, 1)


def test_the_slow_call_may_still_win() -> None:
    scripted, one = hedged(takes(0.06), takes(30))
    np.testing.assert_array_equal(run(one(ROWS)), SOUND)
    assert (scripted.calls, scripted.cancelled) == (2, 1)


@pytest.mark.parametrize("order", [[takes(0.05, None), takes(0.06)], [takes(0.08), takes(0, None)]])
def test_of_two_calls_the_sound_one_counts_whichever_is_first(order: list[Step]) -> None:
    scripted, one = hedged(*order)
    np.testing.assert_array_equal(run(one(ROWS)), SOUND)
    assert scripted.calls == 2


def test_fast_calls_single_replicas_and_an_empty_budget_are_not_hedged() -> None:
    scripted, one = hedged(says(SOUND))
    run(one(ROWS))
    assert scripted.calls == 1
    scripted, one = hedged(takes(0.05), replicas=1)
    run(one(ROWS))
    assert scripted.calls == 1
    scripted, one = hedged(takes(0.05))
    one._hedge = Hedge(latencies_s=(0.01,) * 50, calls=50, tail_s=0.02, tokens=0.5)
    run(one(ROWS))
    assert scripted.calls == 1


def test_a_cancelled_caller_cancels_both_calls() -> None:
    scripted, one = hedged(takes(30), takes(30))

    async def test() -> None:
        before = asyncio.all_tasks()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one(ROWS), 0.1)
        assert asyncio.all_tasks() == before

    run(test())
    assert (scripted.calls, scripted.cancelled) == (2, 2)
