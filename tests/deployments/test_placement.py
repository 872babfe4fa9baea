from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments import placement
from deployments.observe import families
from deployments.observe.meter import numbers
from deployments.placement import Here, Mixed, choose, decide, places
from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Parallel
from orchestrator.config.serving import AppSettings, Autoscaling, MemberOptions, ServingSettings
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import StoreError
from orchestrator.models.build import example_inputs
from tests.deployments.toys import open_store

GIB = 2**30
FITS: dict[str, Any] = {"weights_bytes": 1, "memory_bytes": GIB}


@pytest.mark.parametrize(
    ("call_ms", "hop_ms", "cores", "expected"),
    [
        ([0.3, 0.3, 0.3], 1.5, 8, "fused"),
        ([20.0, 20.0, 20.0], 1.5, 8, "distributed"),
        ([20.0, 20.0, 20.0], 1.5, 2, "fused"),
        ([30.0, 1.0], 1.5, 8, "fused"),
        ([5.0], 0.0, 8, "fused"),
    ],
)
def test_distributed_only_where_hops_cost_less_than_waiting_for_each_other(
    call_ms: list[float], hop_ms: float, cores: int, expected: str
) -> None:
    found = choose(call_ms, hop_ms=hop_ms, cores=cores, **FITS)
    assert found.placement == expected
    assert f"{sum(call_ms):.2f} ms" in found.reason


def test_members_that_do_not_fit_one_machine_are_apart() -> None:
    found = choose([1.0, 1.0], hop_ms=9.0, cores=1, weights_bytes=GIB, memory_bytes=GIB)
    assert (found.placement, found.reason[:11]) == ("distributed", "the weights")
    assert choose([1.0], hop_ms=9.0, cores=1, weights_bytes=GIB, memory_bytes=None).placement == "fused"


def test_a_decision_is_measured_once_and_kept_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = open_store(tmp_path)
    settings = AppSettings(store=str(store.root), specs=specs, serving=ServingSettings(placement="auto"))
    monkeypatch.setattr(placement, "_hop_ms", lambda _: 50.0)
    found = decide(specs[0], settings, store)
    assert found.placement == "fused"
    (record,) = store.records(fingerprint(specs[0].plain()))
    assert (record["placement"], record["reason"]) == ("fused", found.reason)
    monkeypatch.setattr(placement, "_hop_ms", lambda _: pytest.fail("measured again"))
    assert decide(specs[0], settings, store) == found
    assert set(places(specs[0], settings, store).values()) == {"fused"}


def test_a_store_that_is_only_read_is_served_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, specs = open_store(tmp_path)
    settings = AppSettings(store=str(store.root), specs=specs, serving=ServingSettings(placement="auto"))

    def refused(*_: object) -> None:
        raise StoreError("the store is only read", "gs://bucket")

    monkeypatch.setattr(placement, "_hop_ms", lambda _: 50.0)
    monkeypatch.setattr(store, "add_record", refused)
    assert decide(specs[0], settings, store).placement == "fused"


def test_members_with_replicas_of_their_own_are_apart(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    for options in (MemberOptions(gpus=0.5), MemberOptions(autoscaling=Autoscaling(min_replicas=0))):
        serving = ServingSettings(placement="auto", members={"cnn": options})
        settings = AppSettings(store=str(store.root), specs=specs, serving=serving)
        assert decide(specs[0], settings, store).placement == "distributed"


def test_a_members_own_placement_comes_first(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    members = {"cnn": MemberOptions(placement="distributed")}
    serving = ServingSettings(placement="fused", members=members)
    settings = AppSettings(store=str(store.root), specs=specs, serving=serving)
    found = places(specs[2], settings, store)
    assert [found[member] for member in distinct(specs[2].tree)] == ["fused", "fused", "distributed"]
    assert np.unique(list(places(specs[3], settings, store).values())).tolist() == ["fused"]


def test_rows_that_wait_for_members_with_a_quorum_are_told(tmp_path: Path) -> None:
    store, specs = open_store(tmp_path)
    members = tuple(distinct(specs[0].tree))
    spec = specs[0].model_copy(update={"tree": Parallel(members=members, quorum=1)})
    settings = AppSettings(store=str(store.root), specs=(spec,), serving=ServingSettings(compile=False))

    async def test() -> None:
        mixed = Here(settings, {}).open(spec)
        assert isinstance(mixed, Mixed)
        group = mixed._groups[0]
        async with mixed._pool.lent():  # all are in work: who asks now waits
            row = example_inputs(spec.signature, 1)
            asked = []
            for place in range(2):
                asked.append(asyncio.create_task(group.ask(members[0], row + place)))
                await asyncio.sleep(0.05)
            found = numbers(await mixed.snapshots(), families.QUEUED_ROWS)
        await asyncio.gather(*asked)
        await mixed.close()
        assert found == {(spec.name,): 1}  # the other one is a batch already

    asyncio.run(test())
