"""Changes of a served name on all its replicas: staged everywhere, committed in the store, then followed.

The commit is one compare-and-set on the name's ref. A replica that cannot load what is promoted refuses to
stage it, and nothing changes; one that was not asked, because it just started, follows the ref by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from deployments.releases.shielded import finished
from orchestrator.config.ensemble import Spec
from orchestrator.config.release import Canary, Labels, Promote, Reweight, Rollback
from orchestrator.ensemble.epochs import reweighted
from orchestrator.errors import CorruptArtifactError, NotFoundError, OrchestratorError, OverloadedError
from orchestrator.store import releases
from orchestrator.store.store import Store

Tell = Callable[..., Awaitable[list[Any]]]
"""Calls a method of `Follower` on all replicas, by name and arguments; raises the first failure."""

logger = logging.getLogger(__name__)

MOST_CHANGES = 8
"""In work at once, of one name."""


class Controls:
    """What an administrator can do with one served name.

    Args:
        store: with the releases.
        name: the ref that is served.
        tell: reaches all replicas.
    """

    def __init__(self, store: Store, name: str, tell: Tell) -> None:
        self._store, self._name, self._tell = store, name, tell
        self._changes = set[asyncio.Task[dict[str, Any]]]()

    async def state(self) -> dict[str, Any]:
        """What the store says, and what each replica runs."""
        live = await asyncio.to_thread(releases.live, self._store, self._name)
        canary = None
        with suppress(CorruptArtifactError):  # the replicas' problem says so
            _, canary = await asyncio.to_thread(releases.canary, self._store, self._name)
        return {
            "name": self._name,
            "live": live.value,
            "canary": None if canary is None else canary.plain(),
            "replicas": await self._tell("state"),
        }

    async def promote(self, body: Promote) -> dict[str, Any]:
        """Make a release the live one.

        Raises:
            OrchestratorError: a replica cannot run it, or another was promoted meanwhile; nothing changed.
        """
        return await self._commit(lambda: resolve(self._store, self._name, body))

    async def rollback(self, body: Rollback) -> dict[str, Any]:
        """Go back to the release before, or a named one.

        Raises:
            as `promote`
        """
        if body.release is not None:
            return await self.promote(Promote(release=body.release))
        return await self._commit(lambda: releases.before(self._store, self._name))

    async def reweight(self, body: Reweight) -> dict[str, Any]:
        """A weight epoch with these weights or thresholds.

        Raises:
            as `promote`
        """
        return await self._commit(lambda: reweigh(self._store, self._name, body))

    async def try_out(self, settings: Canary) -> dict[str, Any]:
        """Start a canary, in place of an earlier one.

        Raises:
            OrchestratorError: a replica cannot run it; nothing changed.
        """

        def begin() -> None:
            releases.set_canary(self._store, self._name, settings)

        return settings.plain() | await self._made(settings.release, begin)

    async def stop_trying(self) -> dict[str, Any]:
        """End the canary.

        Raises:
            NotFoundError: there is none.
        """
        await asyncio.to_thread(end_canary, self._store, self._name)
        return {"stopped": True} | await self._followed()

    async def learn(self, body: Labels) -> dict[str, Any]:
        """Labels of recent answers.

        One replica learns; while it is replaced there are two, and labels count where the answers are kept.
        """
        told = await self._tell("learn", body)
        most = max(told, key=lambda one: one["accepted"])
        unknown = [key for key in most["unknown"] if all(key in one["unknown"] for one in told)]
        return {**most, "accepted": sum(one["accepted"] for one in told), "unknown": unknown}

    async def _commit(self, choose: Callable[[], str]) -> dict[str, Any]:
        def chosen() -> tuple[int, str, int]:
            position = releases.live(self._store, self._name).sequence
            digest = choose()
            return position, digest, releases.read(self._store, digest).spec.weight_epoch

        position, digest, epoch = await asyncio.to_thread(chosen)

        def promote() -> None:
            releases.promote(self._store, self._name, digest, expect=position)

        return {"release": digest, "weight_epoch": epoch} | await self._made(digest, promote)

    async def _made(self, digest: str, change: Callable[[], None]) -> dict[str, Any]:
        """Make a change of the store, which goes on to its end also where the client has gone: all replicas
        load the release whoever waits, and none would be told to close it."""

        async def whole() -> dict[str, Any]:
            try:
                await self._prepared(digest, change)
            except OrchestratorError as error:
                logger.warning("%s: a change was refused: %s", self._name, error)
                raise
            return await self._followed()

        if len(self._changes) >= MOST_CHANGES:
            raise OverloadedError("too many changes are in work", len(self._changes), "try again later")
        return await finished(whole(), self._changes)

    async def _prepared(self, digest: str, change: Callable[[], None]) -> None:
        """Change the store once all replicas have loaded a release; where it fails, none keeps it."""
        try:
            await self._tell("stage", digest)
            await asyncio.to_thread(change)
        except OrchestratorError:
            with suppress(OrchestratorError):
                await self._tell("unstage", digest)
            raise

    async def _followed(self) -> dict[str, Any]:
        """All replicas run what the store says now; where one does not, the reply says so.

        It is no failure of the change, which is made: who repeated a rollback would go one step too far.
        """
        try:
            await self._tell("follow")
        except OrchestratorError as error:
            logger.error("%s: changed, but not followed by all replicas: %s", self._name, error)
            return {"following": False, "problem": error.what}
        return {}


def resolve(store: Store, name: str, body: Promote) -> str:
    """The release that a promotion names; one of a spec is made if there is none.

    Raises:
        NotFoundError: no such release or spec.
    """
    if body.release is not None:
        return releases.find(store, name, body.release)
    assert body.spec is not None
    return releases.put(store, name, store.spec(body.spec))


def reweigh(store: Store, name: str, body: Reweight) -> str:
    """The release with other weights or thresholds than the live one.

    Raises:
        NotFoundError: nothing is live.
        ConfigError: the numbers do not fit it.
    """
    spec = live_spec(store, name)
    return releases.put(store, name, reweighted(spec, weights=body.weights, thresholds=body.thresholds))


def live_spec(store: Store, name: str) -> Spec:
    """What is live.

    Raises:
        NotFoundError: nothing.
    """
    live = releases.live(store, name)
    if not live.sequence:
        raise NotFoundError("the name has no release", name, "serve it once, or promote one")
    return releases.read(store, live.value).spec


def end_canary(store: Store, name: str) -> None:
    """Say in the store that the canary is over.

    Raises:
        NotFoundError: there is none.
    """
    position, settings = releases.canary(store, name)
    if settings is None or settings.stopped:
        raise NotFoundError("no canary is running", name)
    over = settings.model_copy(update={"stopped": "by hand"})
    releases.set_canary(store, name, over, expect=position.sequence)
