"""A release that is tried out beside the live one: who answers, and when that ends."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from deployments.exchange import Answer, Question
from deployments.releases.running import Engine
from deployments.releases.trial import agreement, drawn
from orchestrator.config.encoding import NgramHashes, TextEncoding
from orchestrator.config.ensemble import Spec
from orchestrator.config.model import TextNgrams
from orchestrator.config.release import Canary
from orchestrator.ensemble.epochs import reweighted
from orchestrator.errors import MemberFailedError, OrchestratorError, QuorumError, ReleaseChangedError
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.calling import send
from tests.deployments.raws import signature
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
from tests.deployments.toys import IMAGES, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def test_a_canary_answers_its_share_and_the_same_ids_again(store: Store) -> None:
    digest = candidate(store)
    ids = [f"request-{number}" for number in range(200)]

    async def test(running: Running) -> None:
        got = await running.admin("canary", {"release": digest, "share": 0.3, "min_agreement": 0})
        assert got.status == 200, got.body
        epochs = {}
        for request_id in ids:
            reply = await running.infer(IMAGES[:1], request_id)
            epochs[request_id] = reply["parameters"]["weight_epoch"]
            truth = oracle(store, digest, IMAGES[:1])
            assert np.allclose(probabilities(reply), truth, atol=1e-5) == (epochs[request_id] == 1)
        assert 35 < sum(epochs.values()) < 85  # 60 of 200 on average
        assert epochs == {one: int(drawn(one, 0.3)) for one in ids}
        assert (await running.admin("canary", method="DELETE")).status == 200
        assert (await running.infer(IMAGES[:1], next(one for one in ids if epochs[one])))["parameters"][
            "weight_epoch"
        ] == 0
        assert (await running.admin("canary", method="DELETE")).status == 404

    serving(store, test)


def test_outputs_that_only_the_live_release_has_are_asked_of_it(store: Store) -> None:
    digest = candidate(store)  # one model, of which there are no members to tell of
    tensor = {
        "name": "input",
        "shape": [1, *IMAGES.shape[1:]],
        "datatype": "UINT8",
        "data": IMAGES[0].ravel().tolist(),
    }
    wanted = [{"name": "probabilities"}, {"name": "member_probs"}]

    async def test(running: Running) -> None:
        body = {"release": digest, "share": 1, "min_agreement": 0}
        assert (await running.admin("canary", body)).status == 200
        assert (await running.infer(IMAGES[:1]))["parameters"]["weight_epoch"] == 1
        asked = json.dumps({"inputs": [tensor], "outputs": wanted}).encode()
        got = await send(running.app, "POST", "/v2/models/mix/infer", asked)
        assert got.status == 200, got.body
        assert got.json()["parameters"]["weight_epoch"] == 0
        assert [one["name"] for one in got.json()["outputs"]] == ["probabilities", "member_probs"]

    serving(store, test)


def test_a_shadow_that_disagrees_is_switched_off_and_never_answers(store: Store) -> None:
    digest = candidate(store)
    truth = oracle(store, releases.live(store, NAME).value, IMAGES)

    async def test(running: Running) -> None:
        body = {"release": digest, "share": 1, "shadow": True, "min_agreement": 0.9}
        assert (await running.admin("canary", body)).status == 200
        assert (await running.state())["canary"]["compared"] == 0

        async def off() -> bool:
            np.testing.assert_allclose(probabilities(await running.infer(IMAGES)), truth, atol=1e-5)
            return (await running.state())["canary"] is None

        await until(off)
        assert "0.9 is asked for" in (await running.state())["canary_stopped"]

        async def said() -> bool:
            _, settings = releases.canary(store, NAME)
            return settings is not None and "agreement" in settings.stopped

        await until(said)

    serving(store, test)


def test_a_shadow_that_agrees_stays(store: Store) -> None:
    releases.first(store, NAME)
    digest = releases.put(store, NAME, reweighted(store.spec(NAME), weights=(0.501, 0.499)))

    async def test(running: Running) -> None:
        body = {"release": digest, "share": 1, "shadow": True, "min_agreement": 0.9}
        assert (await running.admin("canary", body)).status == 200
        for _ in range(50):
            await running.infer(IMAGES)
        # Who names a version is answered by it, and compared like others.
        version = running.front.find("mix").model.version
        await running.follower.predict(Question(IMAGES, 10.0, request_id="named", version=version))
        await asyncio.gather(*running.follower._comparing)
        trial = (await running.state())["canary"]
        assert (trial["compared"], trial["agreement"], trial["failed"]) == (51, 1.0, 0)
        # Promoted, it is no canary any more, and what was loaded of it goes on.
        loaded = running.follower._candidate
        assert (await running.admin("promote", {"release": digest})).status == 200
        state = await running.state()
        assert (state["live"], state["canary"]) == (digest, None)
        assert running.follower._live is loaded
        await running.infer(IMAGES[:1])

    serving(store, test)


def test_a_canary_that_fails_costs_no_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        sick = running.follower._candidate
        assert sick is not None

        async def fail(_question: Question) -> Answer:
            raise MemberFailedError("gone")

        monkeypatch.setattr(sick.engine, "predict", fail)
        for _ in range(20):
            assert (await running.infer(IMAGES[:1]))["parameters"]["weight_epoch"] == 0
        state = await running.state()
        assert state["canary"] is None
        assert "failed" in state["canary_stopped"]

    serving(store, test)


def test_the_end_of_a_canary_is_not_that_of_the_one_that_is_loaded_meanwhile(store: Store) -> None:
    first = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": first, "share": 1})).status == 200
        second = releases.put(store, NAME, reweighted(store.spec(NAME), weights=(0.501, 0.499)))
        follower = running.follower
        old, open_engine = follower._trial, follower._open
        assert old is not None
        go_on = threading.Event()

        def slow(spec: Spec) -> Engine:
            go_on.wait(20)
            return open_engine(spec)

        follower._open = slow
        releases.set_canary(store, NAME, Canary(release=second))
        following = asyncio.create_task(follower.follow())

        async def loading() -> bool:
            return follower._canary_seen > old.entry

        await until(loading)
        while not old.verdict:
            old.saw(0.0)
        follower._judge(old)
        await asyncio.sleep(0.1)
        go_on.set()
        await following
        await asyncio.gather(*follower._comparing)
        state = await running.state()
        assert (state["canary"]["release"], state["canary_stopped"]) == (second, "")

    serving(store, test)


async def hang(_question: Question) -> Answer:
    await asyncio.sleep(60)
    raise AssertionError("unreachable")


def test_a_canary_that_hangs_costs_no_answer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        sick = running.follower._candidate
        assert sick is not None
        monkeypatch.setattr(sick.engine, "predict", hang)
        replies = await asyncio.gather(*(running.infer(IMAGES[:1]) for _ in range(20)))
        assert {reply["parameters"]["weight_epoch"] for reply in replies} == {0}
        state = await running.state()
        assert state["canary"] is None
        assert "failed" in state["canary_stopped"]

    serving(store, test, deadline_s=2)


def test_clients_in_a_hurry_do_not_switch_a_canary_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        slow = running.follower._candidate
        assert slow is not None
        monkeypatch.setattr(slow.engine, "predict", hang)
        hurried = [Question(IMAGES[:1], 0.1) for _ in range(20)]
        for answer in await running.follower.predict_many(hurried):
            assert not isinstance(answer, Answer) or answer.weight_epoch == 0
        trial = (await running.state())["canary"]
        assert (trial["compared"], trial["failed"]) == (0, 0)

    serving(store, test)


@pytest.mark.parametrize("error", [QuorumError("no sound answer"), MemberFailedError("no answer in time")])
def test_members_that_a_client_in_a_hurry_does_not_wait_for_are_no_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: OrchestratorError
) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        slow = running.follower._candidate
        assert slow is not None

        async def fail(_question: Question) -> Answer:
            raise error

        monkeypatch.setattr(slow.engine, "predict", fail)
        await running.follower.predict_many([Question(IMAGES[:1], 0.1) for _ in range(20)])
        assert (await running.state())["canary"]["failed"] == 0
        await running.follower.predict(Question(IMAGES[:1], 10.0))
        assert (await running.state())["canary"]["failed"] == 1

    serving(store, test)


def test_a_canary_that_cannot_be_read_keeps_no_promotion_back(store: Store) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        store.set_ref(f"{NAME}/canary", '{"release": "of a newer version", "ramp": 2}')
        await running.follower.follow()
        state = await running.state()
        assert (state["canary"], "canary is not tried" in state["problem"]) == (None, True)
        releases.promote(store, NAME, digest)
        await running.follower.follow()
        assert (await running.state())["live"] == digest

    serving(store, test)


def test_a_canary_encodes_as_the_live_release_does(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def grams(seed: int, *, lowercase: bool) -> Spec:
        encoding = TextEncoding(segments=(NgramHashes(name="grams", length=6, size=64, lowercase=lowercase),))
        member = put(store, f"grams{seed}", TextNgrams(), signature(encoding), seed)
        return Spec(name="mix", tree=member, signature=signature(encoding))

    store.set_ref(NAME, store.put_spec(grams(1, lowercase=True)))

    async def test(running: Running) -> None:
        other = releases.put(store, NAME, grams(2, lowercase=False))
        got = await running.admin("canary", {"release": other})
        assert (got.status, "must encode what clients send" in got.json()["error"]) == (400, True)
        alike = releases.put(store, NAME, grams(3, lowercase=True))
        assert (await running.admin("canary", {"release": alike})).status == 200
        await running.follower.follow()
        assert (await running.state())["canary"]["release"] == alike
        assert (
            await running.admin("promote", {"spec": store.put_spec(grams(4, lowercase=False))})
        ).status == 200
        await asyncio.gather(*running.follower._comparing)
        state = await running.state()
        assert (state["canary"], "encodes" in state["canary_stopped"]) == (None, True)
        _, settings = releases.canary(store, NAME)
        assert settings is not None
        assert "encodes" in settings.stopped

    serving(store, test)


def test_who_names_a_version_is_answered_by_no_other(store: Store) -> None:
    digest = candidate(store)
    data = IMAGES[:1].ravel().tolist()
    tensor = {"name": "input", "shape": IMAGES[:1].shape, "datatype": "UINT8", "data": data}

    async def test(running: Running) -> None:
        version = running.front.find("mix").model.version
        assert (await running.admin("canary", {"release": digest, "share": 1})).status == 200
        assert (await running.infer(IMAGES[:1]))["model_version"] != version
        for route, body in (("infer", {"inputs": [tensor]}), ("predict", data)):
            path = f"/v2/models/mix/versions/{version}/{route}"
            got = await send(running.app, "POST", path, json.dumps(body).encode())
            assert got.status == 200, got.body
            assert version in (got.json().get("model_version"), got.json().get("version"))
        with pytest.raises(ReleaseChangedError):
            await running.follower.predict(Question(IMAGES[:1], 10.0, version="another"))

    serving(store, test)


def test_agreement_of_values() -> None:
    def values(*rows: float) -> Answer:
        return Answer({"values": np.array(rows)[:, None]}, (), 0, False)

    assert agreement(values(1, 2, 1000, 4), values(1.0005, 2.1, 1000.5, 4)) == 0.75
