"""What the ingress does by itself, without Ray: stand-ins for the ensembles' deployments."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from deployments import ingress
from deployments.ingress import Ingress
from deployments.observe.meter import Meter, Snapshot
from orchestrator.errors import MemberFailedError


def test_a_member_that_two_ensembles_share_is_counted_once() -> None:
    async def snapshots() -> list[Snapshot]:
        return [Meter("member#1").snapshot()]

    front: Any = object.__new__(Ingress)
    front._meter, front._behind = Meter("ingress"), {}
    front._here = {name: SimpleNamespace(snapshots=snapshots) for name in ("a", "b")}
    assert [one.replica for one in asyncio.run(front._snapshots())] == ["member#1"]


class Method:
    """A method of a deployment's handle: what it gives, or raises."""

    def __init__(self, found: Any) -> None:
        self._found = found

    async def remote(self) -> Any:
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_an_ensemble_that_is_not_ready_can_be_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed, asked = list[str](), list[str]()
    handle = SimpleNamespace(current=Method("the spec"), ready=Method(MemberFailedError("a member is gone")))
    front: Any = SimpleNamespace(_behind={"mix": handle}, _renew=renewed.append)

    async def on_all(to: Any, method: str, *args: Any, **_: float) -> list[Any]:
        asked.append(method)
        if to == "own":
            await Ingress.look(front, *args)
        return ["told"]

    monkeypatch.setattr(ingress, "fetch_all", on_all)
    monkeypatch.setattr(ingress, "_own", lambda: "own")
    tell = Ingress._tell(front, "mix")

    async def test() -> None:
        for method in ("state", "stage", "follow"):
            assert await tell(method) == ["told"]

    asyncio.run(test())
    assert (renewed, asked) == (["the spec"], ["state", "stage", "follow", "look"])
