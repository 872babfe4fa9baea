"""A candidate release beside the live one: who answers a request, and whether the two agree."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np

from deployments.exchange import Answer, Question
from deployments.releases.running import Running
from orchestrator.config.release import Canary
from orchestrator.ensemble.betting import NOTHING, grown, log_capital
from orchestrator.errors import (
    CorruptArtifactError,
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    OverloadedError,
    QuorumError,
    RefConflictError,
)
from orchestrator.store import releases
from orchestrator.store.store import Store

EVERY = 10_000.0
"""Compared requests between wrong ends of a candidate that agrees enough, on average at least."""
TOLERANCE = 1e-3
"""Largest difference of two values that agree, absolute or as a share."""

OTHERWISE = "it encodes what clients send otherwise than the live release, so that they cannot be compared"

logger = logging.getLogger(__name__)


def drawn(request_id: str, share: float) -> bool:
    """Whether a request is one of this share; the same id always is, or never. Without an id, by chance."""
    if not request_id:
        return random.random() < share
    digest = hashlib.sha256(request_id.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


async def tried(candidate: Running, question: Question) -> Answer:
    """The candidate's answer in half of the time: the rest is for the live release, should there be none.

    Raises:
        DeadlineError: it takes longer.
        OrchestratorError: the candidate's.
    """
    half_s = question.timeout_s / 2
    try:
        async with asyncio.timeout(half_s):
            return await candidate.ask(replace(question, timeout_s=half_s))
    except TimeoutError as error:
        raise DeadlineError("no answer of the candidate in", f"{half_s:g} s") from error


async def newest(store: Store, name: str) -> tuple[releases.Position, Canary | None, str]:
    """The newest canary of the name; where its settings cannot be read none, and why.

    That must keep no promotion back.
    """
    try:
        return *await asyncio.to_thread(releases.canary, store, name), ""
    except CorruptArtifactError as error:
        return releases.Position(0), None, f"the canary is not tried: {error}"


async def say_stopped(store: Store, name: str, settings: Canary, why: str, *, expect: int) -> None:
    """Say in the store that a canary, its entry `expect`, is over; where another is set by now, nothing."""
    logger.warning("%s: the canary is off: %s", name, why)
    stopped = settings.model_copy(update={"stopped": why})
    try:
        await asyncio.to_thread(releases.set_canary, store, name, stopped, expect=expect)
    except RefConflictError:
        pass  # another process was first, or another canary was set meanwhile
    except OrchestratorError as error:
        logger.error("%s: %s", name, error)


def is_fault(error: OrchestratorError, question: Question, fair_s: float) -> bool:
    """Whether a candidate's failure is its own: not of a client in a hurry, nor of too much work."""
    # A tree with a quorum has no members left when the time is over, but no deadline of its own.
    slow = isinstance(error, DeadlineError | QuorumError | MemberFailedError)
    hurried = slow and question.timeout_s < fair_s
    return not hurried and not isinstance(error, OverloadedError)


def agreement(live: Answer, candidate: Answer) -> float:
    """Share of the rows on which two answers agree: the same label or labels, or values within
    `TOLERANCE`."""
    for name in ("label", "labels"):
        if name in live.outputs:
            same = live.outputs[name] == candidate.outputs[name]
            return float(same.reshape(len(same), -1).all(axis=1).mean())
    mine, theirs = live.outputs["values"], candidate.outputs["values"]
    return float(np.isclose(mine, theirs, rtol=TOLERANCE, atol=TOLERANCE).all(axis=1).mean())


class Trial:
    """The comparison so far; a bet against "at most 1 - `min_agreement` of the rows differ" (`betting`).

    Args:
        settings: of the canary.
        entry: the number of its entry in the store: while another is loaded, this one still may be ended.
    """

    def __init__(self, settings: Canary, entry: int) -> None:
        self.settings, self.entry = settings, entry
        self._evidence = NOTHING
        self._compared = 0
        self._agreed = 0.0
        self._failed = 0

    def saw(self, share: float) -> None:
        """Count a request of whose rows this share agrees."""
        self._compared += 1
        self._agreed += share
        self._evidence = grown(self._evidence, (1 - share) / (1 - self.settings.min_agreement))

    def failed(self) -> None:
        """Count a request that the candidate did not answer."""
        self._failed += 1
        self.saw(0.0)

    @property
    def verdict(self) -> str:
        """Why it must end; empty while it need not."""
        if log_capital(self._evidence) < math.log(EVERY):
            return ""
        failed = f", {self._failed} failed" if self._failed else ""
        rate = self._agreed / self._compared
        return (
            f"agreement {rate:.3f} in {self._compared} requests{failed}; "
            f"{self.settings.min_agreement:g} is asked for"
        )

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        rate = self._agreed / self._compared if self._compared else None
        found = self.settings.plain()
        return {**found, "compared": self._compared, "failed": self._failed, "agreement": rate}
