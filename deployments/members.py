"""Binds members as deployments: with the application, or as applications of their own beside it."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import Application
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.member import Member
from orchestrator.config import ensemble as tree
from orchestrator.config.serving import AppSettings, MemberOptions, ServingSettings
from orchestrator.errors import ServingError, last_line

START_TRIES = 3
"""A replica that cannot start is tried so often before the application counts as failed."""
START_S = 240.0
"""Longest time until a member that is added runs."""
ADDED = "-member-"
"""Stands in the name of an application between that of the one that it serves, and whose it is."""

logger = logging.getLogger(__name__)


class Members:
    """Binds each artifact once for the same execution, batch and threads, whoever shares it."""

    def __init__(self, settings: AppSettings) -> None:
        self._settings = settings
        self._bound: dict[Sequence[object], Application] = {}

    def bind(self, member: tree.Member, spec: tree.Spec) -> Application:
        key = (member.digest, member.execution, spec.batch, spec.threads)
        if key not in self._bound:
            self._bound[key] = self._bind(member, spec)
        return self._bound[key]

    def _bind(self, member: tree.Member, spec: tree.Spec) -> Application:
        serving = self._settings.serving
        options = serving.options(member.name)
        readable = re.sub(r"[^A-Za-z0-9_.]+", "_", member.name)
        bound: Application = serve.deployment(
            name=f"member-{readable}-{member.digest[:8]}-{member.execution}-{spec.batch}x{spec.threads}",
            **_replicas(options, serving),
            max_ongoing_requests=options.max_ongoing_requests,
            max_constructor_retry_count=START_TRIES,
            ray_actor_options={"num_cpus": options.cpus, "num_gpus": options.gpus},
        )(Member).bind(
            self._settings.store,
            member,
            batch=spec.batch,
            threads=spec.threads,
            max_queued_rows=options.max_queued_rows,
            allow=self._settings.allow,
        )
        return bound


def _replicas(options: MemberOptions, serving: ServingSettings) -> dict[str, Any]:
    if options.autoscaling is not None:
        return {"autoscaling_config": options.autoscaling.plain()}
    return {"num_replicas": options.replicas or serving.replicas}


class Added:
    """Members that releases bring after the start: each an application of its own, without a route, for as
    long as a release that is loaded here needs it. Nothing that serves is touched.

    Called in threads, since Serve's own calls block.

    Args:
        settings: of the application.
        beside: the application's name; those of members begin with it.
        owner: the ensemble's deployment. What it adds is its own, for no other knows how long it needs it.
    """

    def __init__(self, settings: AppSettings, beside: str, owner: str) -> None:
        self._settings, self._prefix = settings, f"{beside}{ADDED}{owner}"
        self._needed = Counter[str]()
        self._turn = threading.RLock()  # what is being deleted cannot be needed

    def need(self, member: tree.Member, spec: tree.Spec) -> DeploymentHandle[Any]:
        """A running deployment of the member; to be given back by `free`.

        Raises:
            ServingError: it does not start.
        """
        name = self._name(member)
        with self._turn:
            self._needed[name] += 1
            try:
                if name not in serve.status().applications:
                    bound = Members(self._settings).bind(member, spec)
                    serve.run_many(
                        [serve.RunTarget(bound, name=name, route_prefix=None)],
                        wait_for_applications_running=False,
                    )
                self._wait(name)
                return serve.get_app_handle(name)
            except (RayError, RayServeException, RuntimeError) as error:
                self.free([member])
                what = f"member {member.name} could not be added"
                raise ServingError(what, last_line(error)) from error
            except ServingError:
                self.free([member])
                raise

    def free(self, members: Sequence[tree.Member]) -> None:
        """These are needed once less."""
        with self._turn:
            for member in members:
                name = self._name(member)
                self._needed[name] -= 1
                if not self._needed[name]:
                    try:
                        serve.delete(name)
                    except (RayError, RayServeException, RuntimeError, TimeoutError) as error:
                        logger.warning("%s could not be removed: %s", name, last_line(error))

    def _name(self, member: tree.Member) -> str:
        return f"{self._prefix}-{member.digest[:12]}-{member.execution}"

    @staticmethod
    def _wait(name: str) -> None:
        deadline = time.monotonic() + START_S
        while (status := serve.status().applications[name]).status != "RUNNING":
            if status.status in ("DEPLOY_FAILED", "UNHEALTHY") or time.monotonic() > deadline:
                raise ServingError("an added member does not start", status.status)
            time.sleep(0.2)
