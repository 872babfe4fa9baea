"""Breakers and hedges as state machines: no clock, no sleep."""

from __future__ import annotations

import pytest

from deployments.breaker import Breaker, failed, succeeded, to_try, trying
from deployments.hedge import BURST, LEAST, Hedge, answered, spent
from orchestrator.config.serving import BreakerSettings

SETTINGS = BreakerSettings(failures=3, rate=0.5, window=10, pause_s=1, longest_pause_s=5)


def after(outcomes: str, settings: BreakerSettings = SETTINGS) -> Breaker:
    """`.` is an answer, `x` a failure."""
    breaker = Breaker()
    for outcome in outcomes:
        breaker = succeeded(breaker, settings) if outcome == "." else failed(breaker, settings, 0.0)
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("", "closed"),
        ("xx", "closed"),
        ("xx.xx", "closed"),
        ("xxx", "open"),
        ("...xxx", "open"),
        ("x.x.x.x.x", "closed"),  # half of nine: the window is not full
        ("x.x.x.x.x.", "closed"),  # only a failure opens it
        (".x.x.x.x.x", "open"),
        ("..........x..x..x..x..x..x", "closed"),
    ],
)
def test_failures_in_a_row_or_too_many_of_a_window_open_it(outcomes: str, state: str) -> None:
    assert after(outcomes).state == state


def test_pauses_double_up_to_the_longest_and_an_answer_ends_them() -> None:
    breaker, now, pauses = after("xxx"), 0.0, []
    for _ in range(5):
        pause = next(tenths / 10 for tenths in range(1, 100) if to_try(breaker, SETTINGS, now + tenths / 10))
        pauses.append(pause)
        now += pause
        assert trying(breaker).state == "half-open"
        breaker = failed(trying(breaker), SETTINGS, now)
        assert breaker.state == "open"
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    assert succeeded(trying(breaker), SETTINGS) == Breaker()


def test_calls_that_were_under_way_when_it_opened_do_not_make_the_pause_longer() -> None:
    breaker = after("xxx")
    assert failed(breaker, SETTINGS, 0.9) == breaker
    assert to_try(breaker, SETTINGS, 1.0)
    assert not to_try(trying(breaker), SETTINGS, 9.0)
    assert succeeded(breaker, SETTINGS).state == "closed"


def test_many_failed_tries_do_not_overflow() -> None:
    breaker = Breaker("open", since_s=0.0, pauses=5_000)
    assert to_try(breaker, SETTINGS, 5.0)


def test_the_tail_is_that_of_the_last_calls_and_unknown_at_first() -> None:
    hedge = Hedge()
    for _ in range(LEAST - 1):
        hedge = answered(hedge, 0.01, 0.05)
    assert hedge.tail_s is None
    for number in range(1, 401):
        hedge = answered(hedge, number / 1000, 0.05)
    assert hedge.tail_s == pytest.approx(0.39, abs=0.02)


def test_second_calls_are_a_share_of_all_but_for_a_burst() -> None:
    hedge, second = Hedge(), 0
    for _ in range(2_000):
        hedge = answered(hedge, 0.01, 0.05)
        left = spent(hedge)
        if left is not None:
            hedge, second = left, second + 1
    assert second == pytest.approx(0.05 * 2_000 + BURST, abs=1)
    assert spent(Hedge(tokens=0.99)) is None
