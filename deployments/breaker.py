"""A circuit breaker: a member that keeps failing is not asked for a while (Nygard 2007, Release It!).

Closed: it is asked, and failures are counted. Open: it is not asked. After a pause one call tries it
(half-open): an answer closes the breaker, a failure doubles the pause. Plain data and pure functions; the
time comes from the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.config.serving import BreakerSettings

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True)
class Breaker:
    """What a member's last calls say."""

    state: State = "closed"
    recent: tuple[bool, ...] = ()
    """Whether each of the last calls failed, at most a window of them."""
    since_s: float = 0.0
    """When it was opened, or opened again."""
    pauses: int = 0
    """How often it was opened since it last closed."""


def succeeded(breaker: Breaker, settings: BreakerSettings) -> Breaker:
    """After a sound answer, also one to a call that was made although it is open."""
    if breaker.state != "closed":
        return Breaker()
    return replace(breaker, recent=(*breaker.recent, False)[-settings.window :])


def failed(breaker: Breaker, settings: BreakerSettings, now_s: float) -> Breaker:
    """After a call that failed, or was given up as too slow."""
    if breaker.state == "open":
        return breaker  # a call from before it opened, or one that had to be made anyway
    recent = (*breaker.recent, True)[-settings.window :]
    in_a_row = len(recent) >= settings.failures and all(recent[-settings.failures :])
    too_many = len(recent) == settings.window and sum(recent) >= settings.rate * settings.window
    if breaker.state == "half-open" or in_a_row or too_many:
        return Breaker("open", since_s=now_s, pauses=breaker.pauses + 1)
    return replace(breaker, recent=recent)


def to_try(breaker: Breaker, settings: BreakerSettings, now_s: float) -> bool:
    """Whether the pause is over, so that one call may try it."""
    return breaker.state == "open" and now_s - breaker.since_s >= _pause_s(breaker, settings)


def trying(breaker: Breaker) -> Breaker:
    """While one call tries it."""
    return replace(breaker, state="half-open")


def _pause_s(breaker: Breaker, settings: BreakerSettings) -> float:
    # The exponent is bounded, since a float is.
    return min(settings.pause_s * 2.0 ** min(breaker.pauses - 1, 60), settings.longest_pause_s)
