"""Snapshots across Serve's replicas: who this process is, and what the ones behind it counted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.observe.meter import Snapshot

GATHER_S = 2.0
"""Longest wait for a deployment's figures; those who ask others first have to give them less."""

logger = logging.getLogger(__name__)


def this_replica() -> str:
    """Name of this process's replica."""
    try:
        context = serve.get_replica_context()
    except RayServeException:
        return "none"
    return f"{context.deployment}#{context.replica_id.unique_id}"


async def gather(handles: Iterable[Any], within_s: float = GATHER_S) -> list[Snapshot]:
    """The snapshots of all replicas of deployments with a method `snapshots`, each process once; what stands
    for a handle in this process is left out, and so is a deployment of which one replica does not tell."""
    told = [_told(handle, within_s) for handle in handles if isinstance(handle, DeploymentHandle)]
    found = await asyncio.gather(*told)
    return list({one.replica: one for snapshots in found for one in snapshots}.values())


async def _told(handle: DeploymentHandle[Any], within_s: float) -> list[Snapshot]:
    try:
        told = await handle.broadcast("snapshots").results_async(timeout_s=within_s, return_exceptions=True)
    except (RayError, RayServeException, TimeoutError) as error:
        logger.warning("%s told no figures: %s", handle.deployment_name, error)
        return []
    return [one for snapshots in told if not isinstance(snapshots, BaseException) for one in snapshots]
