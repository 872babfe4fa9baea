"""The deployment of an ensemble whose members are deployments, and whose release can change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from deployments.composed import Composed
from deployments.exchange import fair_s
from deployments.loopback import listen_where_ray_does
from deployments.members import Added
from deployments.releases.follower import Follower
from orchestrator.config.ensemble import Member, Spec
from orchestrator.config.serving import AppSettings
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.tree import distinct
from orchestrator.store.store import Store


class Followed(Follower):
    """Follows the live release of an ensemble, over the members that were deployed with it and those that
    later releases bring.

    Args:
        name: ref of the ensemble.
        handles: one for each deployed member.
        settings: of the application.
    """

    def __init__(
        self, name: str, handles: Mapping[Member, DeploymentHandle[Any]], settings: AppSettings
    ) -> None:
        listen_where_ray_does()
        deployed = {identity(member): handle for member, handle in handles.items()}
        context = serve.get_replica_context()
        added = Added(settings, context.app_name, context.deployment)

        def open_engine(spec: Spec) -> Composed:
            return _open(spec, deployed, added, settings)

        serving = settings.serving
        super().__init__(
            Store(settings.store, create=False),
            name,
            open_engine,
            feedback=serving.feedback,
            fair_s=fair_s(serving.deadline_s),
        )


class Extended(Composed):
    """Over members of which some are freed when it is closed."""

    def __init__(
        self,
        spec: Spec,
        handles: Mapping[Member, Any],
        settings: AppSettings,
        added: Added,
        new: Sequence[Member],
    ) -> None:
        super().__init__(spec, [handles[member] for member in distinct(spec.tree)], settings.serving)
        self._added, self._new = added, new

    async def close(self) -> None:
        """As of `Composed`."""
        await super().close()
        await asyncio.to_thread(self._added.free, self._new)


def _open(
    spec: Spec,
    deployed: Mapping[tuple[str, str], DeploymentHandle[Any]],
    added: Added,
    settings: AppSettings,
) -> Composed:
    handles: dict[Member, Any] = {}
    new: list[Member] = []
    try:
        for member in distinct(spec.tree):
            if identity(member) in deployed:
                handles[member] = deployed[identity(member)]
            else:
                handles[member] = added.need(member, spec)
                new.append(member)
    except BaseException:
        added.free(new)
        raise
    return Extended(spec, handles, settings, added, new)
