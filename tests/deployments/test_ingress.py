"""The ingress without Ray."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from deployments.ingress import Ingress
from deployments.observe.meter import Meter, Snapshot


def test_a_member_that_two_ensembles_share_is_counted_once() -> None:
    async def snapshots() -> list[Snapshot]:
        return [Meter("member#1").snapshot()]

    ingress: Any = object.__new__(Ingress)
    ingress._meter, ingress._behind = Meter("ingress"), {}
    ingress._here = {name: SimpleNamespace(snapshots=snapshots) for name in ("a", "b")}
    assert [one.replica for one in asyncio.run(ingress._snapshots())] == ["member#1"]
