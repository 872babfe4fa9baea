"""The deployment of an ensemble whose members are deployments, and whose weights can change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray.serve.handle import DeploymentHandle

from deployments.composed import Composed
from deployments.releases.follower import Follower
from orchestrator.config.ensemble import Member, Spec
from orchestrator.config.serving import AppSettings
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import ServingError
from orchestrator.store.store import Store


class Followed(Follower):
    """Follows the live release of an ensemble, over the members that were deployed with it.

    Args:
        name: ref of the ensemble.
        handles: one for each deployed member.
        settings: of the application.
    """

    def __init__(
        self, name: str, handles: Mapping[Member, DeploymentHandle[Any]], settings: AppSettings
    ) -> None:
        deployed = {identity(member): handle for member, handle in handles.items()}

        def open_engine(spec: Spec) -> Composed:
            members = distinct(spec.tree)
            lacking = [member.name for member in members if identity(member) not in deployed]
            if lacking:
                raise ServingError(
                    "members are not deployed here, and new ones only by another start", ", ".join(lacking)
                )
            return Composed(spec, [deployed[identity(member)] for member in members], settings.serving)

        store = Store(settings.store, create=False)
        super().__init__(store, name, open_engine, feedback=settings.serving.feedback)
