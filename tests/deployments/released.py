"""A served name whose releases can be changed: real artifacts and the whole HTTP application, no Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np

from deployments.exchange import Served
from deployments.front import Front
from deployments.http.admin import Admin
from deployments.http.app import HttpApp
from deployments.placement import Here
from deployments.protocol.model import describe
from deployments.releases.controls import Controls
from deployments.releases.follower import Follower
from orchestrator.config.ensemble import Spec, WeightedMix
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.calling import Got, send
from tests.deployments.toys import DIGITS, SMALL_MLP, in_process, put

NAME = "toys/mix"


def make_store(folder: Path) -> Store:
    """A store with a mix of two models, under a ref."""
    opened = Store(folder / "store")
    members = tuple(put(opened, f"mlp{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
    spec = Spec(name="mix", tree=WeightedMix(members=members, weights=(0.5, 0.5)), signature=DIGITS)
    opened.set_ref(NAME, opened.put_spec(spec))
    return opened


class Running:
    """A served name in this process, asked as clients ask."""

    def __init__(self, store: Store, **serving: Any) -> None:
        settings = ServingSettings.model_validate({"placement": "fused", "compile": False, **serving})
        releases.first(store, NAME)
        app = AppSettings(store=str(store.root), refs=(NAME,), serving=settings)
        self.follower: Follower = Here(app, {}, NAME).follow(self._renew)

        async def tell(method: str, *args: Any) -> list[Any]:
            return [await getattr(self.follower, method)(*args)]

        async def ready() -> None:
            await self.follower.ready()

        self.front = Front([Served(describe(self.follower.spec), self.follower.predict, ready)], settings)
        self.routes = Admin({"mix": Controls(store, NAME, tell)}, self.front).routes()
        self.app = HttpApp(self.front, (), self.routes)

    def _renew(self, spec: Spec) -> None:
        self.front.renew(describe(spec))

    async def admin(self, what: str, body: Any = None, method: str = "POST") -> Got:
        path = "/admin/models/mix" + (f"/{what}" if what else "")
        return await send(self.app, method, path, b"" if body is None else json.dumps(body).encode())

    async def infer(self, rows: np.ndarray, request_id: str = "") -> dict[str, Any]:
        tensor = {"name": "input", "shape": rows.shape, "datatype": "UINT8", "data": rows.ravel().tolist()}
        body = {"inputs": [tensor]} | ({"id": request_id} if request_id else {})
        got = await send(self.app, "POST", "/v2/models/mix/infer", json.dumps(body).encode())
        assert got.status == 200, got.body
        found: dict[str, Any] = got.json()
        return found

    async def state(self) -> dict[str, Any]:
        (replica,) = (await self.admin("", method="GET")).json()["replicas"]
        return dict(replica)


def serving(store: Store, test: Callable[[Running], Awaitable[None]], **settings: Any) -> None:
    """Run a test against a running server, which is closed afterwards."""

    async def whole() -> None:
        running = Running(store, **settings)
        try:
            await test(running)
        finally:
            await running.follower.close()

    asyncio.run(whole())


def probabilities(reply: dict[str, Any]) -> np.ndarray:
    (found,) = [one["data"] for one in reply["outputs"] if one["name"] == "probabilities"]
    return np.reshape(found, (-1, 10))


def oracle(store: Store, digest: str, rows: np.ndarray) -> np.ndarray:
    found = in_process(store, releases.read(store, digest).spec, rows).probs
    assert found is not None
    return found


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.01)


def candidate(store: Store) -> str:
    """A release of one other model: it answers otherwise."""
    releases.first(store, NAME)
    other = put(store, "other", SMALL_MLP, DIGITS, 7)
    return releases.put(store, NAME, store.spec(NAME).model_copy(update={"tree": other}))
