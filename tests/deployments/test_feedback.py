"""Labels of answers move the weights of a served mix."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.http import admin
from deployments.releases import learner
from deployments.releases.controls import Controls
from orchestrator.config.ensemble import Member, WeightedMix
from orchestrator.config.release import FeedbackSettings, Labels
from orchestrator.ensemble import online
from orchestrator.ensemble.tree import distinct
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.calling import Got, send
from tests.deployments.released import (
    NAME,
    Running,
    candidate,
    make_store,
    oracle,
    probabilities,
    serving,
    until,
)
from tests.deployments.toys import IMAGES, in_process


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def test_labels_move_the_weights_towards_the_better_member_but_not_below_the_floor(store: Store) -> None:
    feedback = FeedbackSettings(rate=1.0, floor=0.1, every_s=0, min_rows=20)
    first = releases.first(store, NAME).tree
    assert isinstance(first, WeightedMix)
    (good, _) = distinct(first)
    truth = oracle_labels(store, good)

    async def test(running: Running) -> None:
        assert (await running.state())["feedback"]["weights"] == [0.5, 0.5]
        for number in range(40):
            await running.infer(IMAGES, f"{number}")
            got = await feed(running, {f"{number}": truth})
            assert got.json()["accepted"] == len(IMAGES)
            assert got.json()["unknown"] == []
        tree = running.follower.spec.tree
        assert isinstance(tree, WeightedMix)
        assert tree.weights == pytest.approx((0.95, 0.05), abs=1e-6)
        assert running.follower.spec.weight_epoch >= 1  # of the last batches that moved them
        live = releases.live(store, NAME).value
        (record,) = store.records(live)
        assert (record["kind"], record["weights"]) == ("feedback", list(tree.weights or ()))
        assert record["from"] == releases.before(store, NAME)
        reply = await running.infer(IMAGES)
        np.testing.assert_allclose(probabilities(reply), oracle(store, live, IMAGES), atol=1e-5)
        # A label counts once, and must be one.
        assert (await feed(running, {"0": truth, "never": 1})).json()["unknown"] == ["0", "never"]
        await running.infer(IMAGES[:1], "new")
        assert (await feed(running, {"new": 10})).status == 400
        assert (await feed(running, {"new": [1, 2]})).status == 400
        assert (await feed(running, {"new": 1.5})).status == 400
        assert (await feed(running, {"new": 1})).json()["accepted"] == 1

    serving(store, test, feedback=feedback.plain())


def test_labels_wait_for_the_next_weight_epoch_and_the_newest_answers_are_kept(store: Store) -> None:
    async def test(running: Running) -> None:
        for number in range(5):
            await running.infer(IMAGES[:1], f"{number}")
        got = await feed(running, {f"{number}": 3 for number in range(5)})
        assert got.json() | {"weights": 0} == {
            "accepted": 3,
            "unknown": ["0", "1"],
            "weights": 0,
            "rows": 3,
            "kept_answers": 0,
        }
        assert running.follower.spec.weight_epoch == 1
        await running.infer(IMAGES[:1], "5")
        assert (await feed(running, {"5": 3})).json()["accepted"] == 1
        assert running.follower.spec.weight_epoch == 1

    serving(store, test, feedback={"answers": 3, "every_s": 3600})


def test_answers_of_many_rows_are_kept_up_to_a_number_of_bytes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    row_bytes = 2 * 10 * 4  # members, classes, float32
    monkeypatch.setattr(learner, "MOST_BYTES", 5 * row_bytes)

    async def test(running: Running) -> None:
        for key, rows in (("a", 2), ("b", 2), ("b", 2), ("c", 1), ("d", 2)):
            await running.infer(IMAGES[:rows], key)
        assert (await feed(running, {"a": [1, 1]})).json()["unknown"] == ["a"]
        assert (await feed(running, {"b": [1, 1], "c": 1})).json()["accepted"] == 3
        await running.infer(IMAGES[:3], "e")
        assert (await running.state())["feedback"]["kept_answers"] == 2

    serving(store, test, feedback={"every_s": 3600})


def test_labels_are_learned_beside_the_event_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = list[threading.Thread]()
    update = online.update

    def watched(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return update(*given)

    monkeypatch.setattr(learner, "update", watched)

    async def test(running: Running) -> None:
        await running.infer(IMAGES[:1], "0")
        both = await asyncio.gather(*(feed(running, {"0": 3}) for _ in range(2)))
        assert sorted(one.json()["accepted"] for one in both) == [0, 1]
        assert threads != []
        assert threading.main_thread() not in threads

    serving(store, test, feedback={"every_s": 3600})


def test_a_weight_epoch_is_made_where_whoever_sent_the_labels_goes_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def test(running: Running) -> None:
        stage = running.follower.stage

        async def slow(digest: str) -> None:
            begun.set()
            await goes_on.wait()
            await stage(digest)

        monkeypatch.setattr(running.follower, "stage", slow)
        await running.infer(IMAGES[:1], "0")
        asking = asyncio.create_task(running.follower.learn(Labels(labels={"0": 3})))
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        goes_on.set()

        async def committed() -> bool:
            return running.follower.spec.weight_epoch == 1

        await until(committed)

    serving(store, test, feedback={"every_s": 0})


def test_what_is_learned_does_not_undo_a_promotion(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(running: Running) -> None:
        monkeypatch.setattr(running.follower, "_look", lambda: None)  # it does not see the promotion yet
        await running.infer(IMAGES[:1], "0")
        other = candidate(store)
        releases.promote(store, NAME, other)
        assert (await feed(running, {"0": 3})).json()["accepted"] == 1
        assert releases.live(store, NAME).value == other
        assert running.follower.spec == releases.read(store, other).spec

    serving(store, test, feedback={"every_s": 0})


def test_labels_count_where_the_answers_are_while_a_replica_is_replaced(store: Store) -> None:
    async def tell(_method: str, _body: Labels) -> list[Any]:
        old = {"accepted": 5, "unknown": ["new", "no"], "rows": 90}
        return [{"accepted": 1, "unknown": ["old", "no"], "rows": 1}, old]

    found = asyncio.run(Controls(store, NAME, tell).learn(Labels(labels={"old": 1, "new": 2, "no": 3})))
    assert found == {"accepted": 6, "unknown": ["no"], "rows": 90}


def test_without_the_setting_nothing_is_learned(store: Store) -> None:
    async def test(running: Running) -> None:
        await running.infer(IMAGES[:1], "0")
        got = await feed(running, {"0": 1})
        assert got.status == 400
        assert "no weights are learned" in got.json()["error"]

    serving(store, test)


def test_labels_are_let_in_as_requests_are_and_read_beside_the_event_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    parsed = admin._parsed

    def watched(form: Any, data: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return parsed(form, data)

    monkeypatch.setattr(admin, "_parsed", watched)

    async def feed_bytes(running: Running, size: int) -> Got:
        body = json.dumps({"labels": {"0": 3}}).encode().ljust(size)
        return await send(running.app, "POST", "/v2/models/mix/feedback", body)

    async def test(running: Running) -> None:
        await running.infer(IMAGES[:1], "0")
        with running.front.gate:
            refused = await feed_bytes(running, 100)
            assert (refused.status, "too many requests" in refused.json()["error"]) == (503, True)
            assert (await running.admin("rollback", {})).status == 404  # let in: there is nothing before
        refused = await feed_bytes(running, 400_001)
        assert (refused.status, "too many bytes" in refused.json()["error"]) == (503, True)
        threads.clear()
        assert (await feed_bytes(running, 400_000)).json()["accepted"] == 1
        assert (await feed_bytes(running, 100)).json()["unknown"] == ["0"]
        assert threads[0].startswith("bodies")
        assert threads[1] == threading.main_thread().name

    limits = {"max_requests": 1, "max_bodies_bytes": 400_000}
    serving(store, test, feedback={"every_s": 3600}, **limits)


def oracle_labels(store: Store, member: Member) -> list[int]:
    """What one member says."""
    spec = store.spec(NAME).model_copy(update={"tree": member})
    found = in_process(store, spec, IMAGES).probs
    assert found is not None
    return [int(label) for label in found.argmax(axis=1)]


async def feed(running: Running, labels: dict[str, Any]) -> Got:
    body = json.dumps({"labels": labels}).encode()
    return await send(running.app, "POST", "/v2/models/mix/feedback", body)
