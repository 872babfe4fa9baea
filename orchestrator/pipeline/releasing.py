"""`orchestrator release`, `weights`, `canary` and `status`: through a running server, or the store alone.

Without a server the refs are moved in the store; servers that are up follow them within a second, and the
next one begins with them. Through a server all its replicas are asked first whether they can run the release.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from deployments.releases import controls
from orchestrator.client import Client
from orchestrator.config.base import Settings
from orchestrator.config.release import Canary, Promote, Reweight, Rollback
from orchestrator.errors import NotFoundError, OrchestratorError
from orchestrator.pipeline.context import store_root
from orchestrator.store import releases
from orchestrator.store.names import is_digest
from orchestrator.store.store import Store

KEY_VARIABLE = "ORCHESTRATOR_KEY"
ADMIN_S = 300.0
"""Longest time for a change: replicas may have to load a release."""
STATUS_S = 10.0


def listed(name: str, *, store: str | None) -> list[dict[str, Any]]:
    """What was live under a name, oldest first.

    Raises:
        NotFoundError: nothing ever was.
    """
    opened = Store(store_root(store), create=False)
    entries = releases.history(opened, name)
    if not entries:
        raise NotFoundError("the name has no release", name, "serve it once, or promote one")
    return [
        {
            "entry": entry.sequence,
            "release": entry.value,
            "promoted_at": entry.created_at,
            "live": entry is entries[-1],
            **_facts(opened, entry.value),
        }
        for entry in entries
    ]


def _facts(store: Store, digest: str) -> dict[str, Any]:
    try:
        spec = releases.read(store, digest).spec
    except OrchestratorError as error:
        return {"weight_epoch": None, "kind": "", "problem": str(error)}
    return {"weight_epoch": spec.weight_epoch, "kind": spec.tree.kind, "problem": ""}


def differences(name: str, one: str, other: str | None, *, store: str | None) -> dict[str, Any]:
    """What differs between two releases: dotted keys with both values; by default to the live one."""
    opened = Store(store_root(store), create=False)
    second = releases.live(opened, name).value if other is None else releases.find(opened, name, other)
    digests = (releases.find(opened, name, one), second)
    before, after = (_flat(releases.read(opened, digest).plain()) for digest in digests)
    changed = {
        key: [before.get(key), after.get(key)]
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    }
    return {"releases": list(digests), "changed": changed}


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        parts: Mapping[Any, Any] = value
    elif isinstance(value, list):
        parts = dict(enumerate(value))
    else:
        return {place: value}
    found: dict[str, Any] = {}
    for key, part in parts.items():
        found |= _flat(part, f"{place}.{key}" if place else str(key))
    return found


def promote(name: str, body: Promote, *, store: str | None, url: str | None) -> dict[str, Any]:
    """Make a release the live one."""
    if url is not None:
        return _through(url, name, "promote", body)
    opened = Store(store_root(store), create=False)
    return _move(opened, name, lambda: controls.resolve(opened, name, body))


def rollback(name: str, body: Rollback, *, store: str | None, url: str | None) -> dict[str, Any]:
    """Go back to the release before the live one, or a named one."""
    if url is not None:
        return _through(url, name, "rollback", body)
    opened = Store(store_root(store), create=False)
    back = body.release
    return _move(
        opened,
        name,
        lambda: releases.find(opened, name, back) if back else releases.before(opened, name),
    )


def reweigh(name: str, body: Reweight, *, store: str | None, url: str | None) -> dict[str, Any]:
    """A weight epoch with other weights or thresholds."""
    if url is not None:
        return _through(url, name, "weights", body)
    opened = Store(store_root(store), create=False)
    return _move(opened, name, lambda: controls.reweigh(opened, name, body))


def try_out(
    name: str, release: str, options: Mapping[str, Any], *, store: str | None, url: str | None
) -> dict[str, Any]:
    """Start a canary of a release, or of what a ref of an ensemble names now."""
    digest = release if is_digest(release) else _resolved(name, release, store)
    settings = Canary(release=digest, **options)
    if url is not None:
        return _through(url, name, "canary", settings)
    releases.set_canary(Store(store_root(store), create=False), name, settings)
    return settings.plain()


def stop_trying(name: str, *, store: str | None, url: str | None) -> dict[str, Any]:
    """End the canary."""
    if url is not None:
        return _through(url, name, "canary", None, method="DELETE")
    controls.end_canary(Store(store_root(store), create=False), name)
    return {"stopped": True}


def status(url: str) -> dict[str, Any]:
    """What a server serves, whether it can, and with an admin key what its releases are."""
    with _client(url, STATUS_S) as client:
        found = client.send("GET", "/status")
        try:
            states = client.send("GET", "/admin/models")["models"]
        except OrchestratorError:
            states = {}
    return {
        "url": url,
        "models": [
            {
                "name": one["name"],
                "version": one["version"],
                "kind": one["kind"],
                "ready": not one["problem"],
                "problem": one["problem"],
                "answers": one["answers"],
                "degraded": one["degraded"],
                "weight_epoch": one["weight_epoch"],
                "members": [member["name"] for member in one["members"]],
                "releases": states.get(one["name"]),
            }
            for one in found["models"]
        ],
    }


def _resolved(name: str, text: str, store: str | None) -> str:
    """The release that a ref of an ensemble, or the beginning of a digest, means."""
    opened = Store(store_root(store), create=False)
    is_ref = opened.ref_entry(text) is not None
    return controls.resolve(opened, name, Promote(spec=text) if is_ref else Promote(release=text))


def _move(store: Store, name: str, choose: Callable[[], str]) -> dict[str, Any]:
    position = releases.live(store, name).sequence  # before it is read what the choice is made of
    digest = choose()
    releases.promote(store, name, digest, expect=position)
    return {"release": digest, "weight_epoch": releases.read(store, digest).spec.weight_epoch}


def _through(url: str, name: str, what: str, body: Settings | None, method: str = "POST") -> dict[str, Any]:
    """Ask a server; the model's name is the last part of the ref."""
    model = quote(name.rpartition("/")[2], safe="")
    data = b"" if body is None else json.dumps(body.plain()).encode()
    with _client(url, ADMIN_S) as client:
        found: dict[str, Any] = client.send(method, f"/admin/models/{model}/{what}", data)
    return found


def _client(url: str, deadline_s: float) -> Client:
    key = os.environ.get(KEY_VARIABLE, "").strip()  # a file often ends in a newline
    return Client(url, deadline_s=deadline_s, headers={"X-API-Key": key} if key else None)
