"""Builds the application: every distinct member once, an ensemble deployment for each spec, one ingress.

`deployments.build:app` is the import path of `deployments/serve.yaml`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

from ray import serve
from ray.serve import Application

from deployments import placement
from deployments.composed import Composed
from deployments.ingress import Ingress
from deployments.members import START_TRIES, Members
from deployments.parallel import Parallel
from deployments.placement import Here
from deployments.releases.followed import Followed
from deployments.sequential import Sequential
from deployments.weighted_mix import WeightedMix
from orchestrator.config import ensemble as tree
from orchestrator.config.load import validate
from orchestrator.config.serving import AppSettings, Placement, ServingSettings
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import ConfigError, CorruptArtifactError, NotFoundError, StoreError
from orchestrator.store import releases
from orchestrator.store.store import Store

COMPOSED: Mapping[str, type[Composed]] = {
    "parallel": Parallel,
    "sequential": Sequential,
    "weighted_mix": WeightedMix,
}
"""The deployments with a class of their own; all others, and one model alone, are `Composed`."""

STORE_VARIABLE = "ORCHESTRATOR_STORE"
NODE_SHARE = 0.001
"""Of a node's own resource, which exists to be asked for in small parts."""
DRAIN_MARGIN_S = 5.0
LIGHT = {"num_cpus": 0}
"""Ingress and ensembles only wait: they reserve no core."""

logger = logging.getLogger(__name__)


def app(args: dict[str, Any]) -> Application:
    """The application for a Serve config file.

    Args:
        args: an `AppSettings` as plain values; without `store`, `ORCHESTRATOR_STORE` is taken.

    Raises:
        ConfigError: the arguments are not valid.
    """
    store = args.get("store") or os.environ.get(STORE_VARIABLE)
    if not store:
        raise ConfigError("no store is named", None, f"set args.store or {STORE_VARIABLE} where Ray starts")
    return build_app(validate(AppSettings, {**args, "store": store}, "the application's arguments"))


def build_app(settings: AppSettings, *, direct_on: str | None = None) -> Application:
    """Bind the deployments of all specs.

    Args:
        settings: what is served.
        direct_on: the resource of a node (`node:ADDRESS`) on which the ingress shall run and listen itself;
            Serve's proxies take the requests when not given.

    Raises:
        ConfigError: the path of the store or of the keys is relative, two specs have one name, or a spec and
            an artifact do not fit.
        NotFoundError: the store lacks a ref, a spec or an artifact.
    """
    if not (urlsplit(settings.store).scheme or PurePath(settings.store).is_absolute()):
        raise ConfigError("the store must be an absolute path or a URI to be served", settings.store)
    if settings.serving.access.keys and not PurePath(settings.serving.access.keys).is_absolute():
        raise ConfigError("the file of API keys must be an absolute path", settings.serving.access.keys)
    store = Store(settings.store, create=False)
    # A ref serves its live release, so that what was promoted survives every process.
    specs = [*settings.specs, *(_first(store, ref) for ref in settings.refs)]
    refs = ["" for _ in settings.specs] + list(settings.refs)
    names = [spec.name for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError("two served ensembles have the same name", name)
    for spec in specs:
        _check(spec, store)
    known = {member.name for spec in specs for member in tree.leaves(spec.tree)}
    for name in settings.serving.members:
        if name not in known:  # no error: other ensembles of these settings, or later releases, may have it
            logger.warning("serving.members: no served ensemble has a member '%s'", name)
    members = Members(settings)
    where = [placement.places(spec, settings, store) for spec in specs]
    places = [_place(*one, members, settings) for one in zip(specs, where, refs, strict=True)]
    here = {member for found in where for member, place in found.items() if place == "fused"}
    replicas = settings.serving.replicas if here else 1
    if settings.serving.feedback is not None and replicas > 1:
        raise ConfigError("feedback needs one replica, which knows all answers; serving.replicas", replicas)
    ingress: Application = serve.deployment(
        name="ingress",
        num_replicas=replicas,
        # More than the ingress itself lets in, so that it is the one to refuse, in JSON.
        max_ongoing_requests=2 * settings.serving.max_requests,
        max_constructor_retry_count=START_TRIES,
        graceful_shutdown_timeout_s=settings.serving.drain_s + DRAIN_MARGIN_S,
        ray_actor_options={
            **_share(settings.serving, here),
            "resources": {} if direct_on is None else {direct_on: NODE_SHARE},
        },
    )(serve.ingress()(Ingress)).bind(
        specs, places, settings.serving, refs, settings.store, direct=direct_on is not None
    )
    return ingress


def _first(store: Store, ref: str) -> tree.Spec:
    """The live release; while a member of it is damaged or gone, the newest before it that is whole.

    Raises:
        NotFoundError, CorruptArtifactError: no release is whole; tells of the live one.
    """
    spec = releases.first(store, ref)
    if releases.live(store, ref).sequence == 1:
        return spec  # there is no other, so what is wrong with it is told by who needs it
    failed: StoreError | None = None
    for digest in releases.newest_first(store, ref):
        try:
            spec = releases.read(store, digest).spec
            for member in distinct(spec.tree):
                store.check_signed(member.digest)
                store.verify(member.digest)
            return spec
        except (NotFoundError, CorruptArtifactError) as error:
            failed = failed or error
            logger.error("%s: release %s cannot be served: %s", ref, digest[: releases.SHORT], error)
    assert failed is not None
    raise failed


def _share(serving: ServingSettings, here: Collection[tree.Member]) -> dict[str, float]:
    """What Ray reserves for a process with these members."""
    asked = [serving.options(member.name) for member in here]
    cpus = serving.instances * sum(one.cpus for one in asked)
    return {"num_cpus": cpus, "num_gpus": sum(one.gpus for one in asked)}


def _check(spec: tree.Spec, store: Store) -> None:
    """Every member's artifact is there, and takes and gives what the spec says."""
    for member in distinct(spec.tree):
        found = store.manifest(member.digest).signature
        wanted = spec.signature
        rows = () if member.sees else ("input_shape", "input_dtype")  # who sees others has rows of its own
        for name in ("task", *rows, "outputs", "classes"):
            if getattr(found, name) != getattr(wanted, name):
                raise ConfigError(
                    f"{spec.name}: member {member.name} has another {name} than the ensemble",
                    f"{getattr(found, name)} instead of {getattr(wanted, name)}",
                )


def _place(
    spec: tree.Spec,
    where: Mapping[tree.Member, Placement],
    ref: str,
    members: Members,
    settings: AppSettings,
) -> Application | Here:
    """A deployment of the ensemble over its members, or what the ingress needs to hold some of them."""
    handles = {
        member: members.bind(member, spec) for member, place in where.items() if place == "distributed"
    }
    if len(handles) < len(where):
        return Here(settings, handles, ref)
    options: dict[str, Any] = {
        "name": f"{spec.tree.kind}-{spec.name}",
        "max_ongoing_requests": 2 * settings.serving.max_requests,
        "max_constructor_retry_count": START_TRIES,
        "ray_actor_options": LIGHT,
    }
    ensemble: Application
    if ref:
        ensemble = serve.deployment(**options)(Followed).bind(ref, handles, settings)
    else:
        kind = COMPOSED.get(spec.tree.kind, Composed)
        ensemble = serve.deployment(**options)(kind).bind(spec, list(handles.values()), settings.serving)
    return ensemble
