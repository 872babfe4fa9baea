"""Releases that change while requests are answered: real artifacts and the whole HTTP application, no Ray."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.exchange import Answer, Question
from deployments.http.admin import CHANGE_BYTES
from deployments.protocol.model import describe
from deployments.releases.controls import MOST_CHANGES
from orchestrator.config.encoding import NgramHashes, TextEncoding
from orchestrator.config.ensemble import Member, Spec
from orchestrator.config.model import TextNgrams
from orchestrator.data.encode import encode
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    QuorumError,
    RefConflictError,
    ServingError,
)
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.calling import Got, send
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
from tests.deployments.toys import IMAGES, in_process, put


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return make_store(tmp_path)


def spoil(store: Store, member: Member) -> None:
    (weights,) = (store.root / "artifacts" / member.digest).glob("*.safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")


def test_no_reply_mixes_two_epochs_while_releases_change_under_load(store: Store) -> None:
    rows = IMAGES[:1]

    async def test(running: Running) -> None:
        replies: list[dict[str, Any]] = []
        over = asyncio.Event()

        async def load() -> None:
            while not over.is_set():
                replies.append(await running.infer(rows))

        clients = [asyncio.create_task(load()) for _ in range(4)]
        digests = [releases.live(store, NAME).value]
        for weights in ((0.9, 0.1), (0.2, 0.8)):
            got = await running.admin("weights", {"weights": weights})
            assert got.status == 200, got.body
            digests.append(got.json()["release"])
            await asyncio.sleep(0.05)
        got = await running.admin("promote", {"release": candidate(store)})
        digests.append(got.json()["release"])
        await asyncio.sleep(0.05)
        assert (await running.admin("rollback")).json() == {"release": digests[2], "weight_epoch": 2}
        await asyncio.sleep(0.05)
        over.set()
        await asyncio.gather(*clients)  # no request failed
        truth = {
            releases.read(store, digest).spec.weight_epoch: oracle(store, digest, rows) for digest in digests
        }
        epochs = [reply["parameters"]["weight_epoch"] for reply in replies]
        assert set(epochs) == {0, 1, 2, 3}
        assert epochs[-1] == 2
        versions: dict[int, set[str]] = {}
        for epoch, reply in zip(epochs, replies, strict=True):
            np.testing.assert_allclose(probabilities(reply), truth[epoch], atol=1e-5)
            versions.setdefault(epoch, set()).add(reply["model_version"])
        assert all(len(found) == 1 for found in versions.values())
        metadata = (await send(running.app, "GET", "/v2/models/mix")).json()
        assert set(metadata["versions"]) == versions[2]

    serving(store, test)


def test_a_release_that_cannot_run_changes_nothing(store: Store) -> None:
    digest = candidate(store)
    member = releases.read(store, digest).spec.tree
    assert isinstance(member, Member)
    spoil(store, member)

    async def test(running: Running) -> None:
        before = await running.infer(IMAGES[:2])
        got = await running.admin("promote", {"release": digest})
        assert got.status == 409
        assert "is damaged" in got.json()["error"]
        assert str(store.root) not in got.json()["error"]
        assert len(releases.history(store, NAME)) == 1
        # Moved past the server, as by a command without it: it serves on, and says why.
        releases.promote(store, NAME, digest)

        async def refused() -> bool:
            return "cannot run" in (await running.state())["problem"]

        await until(refused)
        assert await running.infer(IMAGES[:2]) == before
        assert (await running.admin("rollback")).status == 200
        await running.follower.follow()
        assert (await running.state())["problem"] == ""
        assert await running.infer(IMAGES[:2]) == before

    serving(store, test)


class Late(Running):
    """What follows releases in another process: the front does not know at once."""

    def _renew(self, spec: Spec) -> None:
        pass


def test_rows_that_an_earlier_release_encoded_are_refused(tmp_path: Path) -> None:
    """The two give rows of one shape for the same text, but other numbers."""
    store = Store(tmp_path / "store")
    encodings = [
        TextEncoding(segments=(NgramHashes(name="grams", length=6, size=64, lowercase=lowercase),))
        for lowercase in (True, False)
    ]
    specs = [
        Spec(name="mix", tree=put(store, "grams", TextNgrams(), signature(one), 1), signature=signature(one))
        for one in encodings
    ]
    store.set_ref(NAME, store.put_spec(specs[0]))
    text = "Book A Flight"

    async def ask(running: Running) -> Got:
        return await send(running.app, "POST", "/predict", text.encode(), {"Content-Type": "text/plain"})

    def truth(place: int) -> list[float]:
        probs = in_process(store, specs[place], encode(encodings[place], [text])).probs
        assert probs is not None
        found: list[float] = probs[0].tolist()
        return found

    async def test() -> None:
        running = Late(store)
        try:
            (row,) = (await ask(running)).json()["predictions"]
            assert row["probabilities"] == pytest.approx(truth(0), abs=1e-5)
            promoted = await running.admin("promote", {"release": releases.put(store, NAME, specs[1])})
            assert promoted.status == 200
            got = await ask(running)
            assert got.status == 503
            assert "another release took over: mix. ask again" in got.json()["error"]
            running.front.renew(describe(running.follower.spec))
            (row,) = (await ask(running)).json()["predictions"]
            assert row["probabilities"] == pytest.approx(truth(1), abs=1e-5)
            assert truth(0) != pytest.approx(truth(1), abs=1e-5)
        finally:
            await running.follower.close()

    asyncio.run(test())


def test_a_defect_while_loading_changes_nothing_and_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        def defect(_spec: Spec) -> Any:
            raise RuntimeError("/secret/path")

        before = await running.infer(IMAGES[:1])
        with monkeypatch.context() as patch:
            patch.setattr(running.follower, "_open", defect)
            got = await running.admin("promote", {"release": digest})
            assert (got.status, "secret" in got.json()["error"]) == (409, False)
            releases.promote(store, NAME, digest)
            with pytest.raises(ServingError, match="secret"):
                await running.follower.follow()
            await running.follower.follow()  # not tried again at once
            assert await running.infer(IMAGES[:1]) == before
        assert (await running.admin("promote", {"release": digest})).status == 200
        state = await running.state()
        assert (state["live"], state["problem"]) == (digest, "")

    serving(store, test)


@pytest.mark.parametrize(
    "error", [QuorumError("no sound answer"), MemberFailedError("gone"), DeadlineError("no answer in time")]
)
def test_a_release_that_does_not_answer_is_refused_and_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch, error: OrchestratorError
) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        opened, closed = running.follower._open, list[str]()

        def sick(one: Spec) -> Any:
            engine = opened(one)
            close = engine.close

            async def fail(_question: Question) -> Answer:
                raise error

            async def noted() -> None:
                closed.append(one.tree.kind)
                await close()

            monkeypatch.setattr(engine, "predict", fail)
            monkeypatch.setattr(engine, "close", noted)
            return engine

        monkeypatch.setattr(running.follower, "_open", sick)
        got = await running.admin("promote", {"release": digest})
        assert (got.status, "does not answer" in got.json()["error"]) == (409, True), got.body
        assert closed == ["member"]
        assert (await running.state())["staged"] is None
        assert len(releases.history(store, NAME)) == 1

    serving(store, test)


def test_what_was_staged_for_a_change_that_failed_is_closed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise RefConflictError("another one was promoted", NAME)

        for what, change in (("promote", "promote"), ("canary", "set_canary")):
            with monkeypatch.context() as patch:
                patch.setattr(releases, change, refuse)
                assert (await running.admin(what, {"release": digest})).status == 409
            assert (await running.state())["staged"] is None

    serving(store, test)


def test_a_change_whose_client_goes_away_is_made_all_the_same(store: Store) -> None:
    digest = candidate(store)

    async def test(running: Running) -> None:
        opened, asked, go_on = running.follower._open, threading.Event(), threading.Event()
        request: ContextVar[str] = ContextVar("request", default="none")
        request.set("the client's")

        def slow(spec: Spec) -> Any:
            assert request.get() == "none"  # Serve cancels what runs in a request's context
            asked.set()
            go_on.wait(20)
            return opened(spec)

        running.follower._open = slow
        client = asyncio.create_task(running.admin("promote", {"release": digest}))
        await asyncio.to_thread(asked.wait, 20)
        client.cancel()
        await asyncio.wait([client])
        assert client.cancelled()
        go_on.set()

        async def followed() -> bool:
            state = await running.state()
            return (state["live"], state["staged"]) == (digest, None)

        await until(followed)

    serving(store, test)


def test_what_is_committed_is_no_failure_when_a_replica_does_not_follow(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(running: Running) -> None:
        first = releases.live(store, NAME).value

        async def died() -> None:
            raise MemberFailedError("a replica could not be reached", "/secret/path")

        assert (await running.admin("weights", {"weights": (0.9, 0.1)})).status == 200
        monkeypatch.setattr(running.follower, "follow", died)
        got = await running.admin("rollback", {})
        assert got.json() == {
            "release": first,
            "weight_epoch": 0,
            "following": False,
            "problem": "a replica could not be reached",
        }
        assert (got.status, releases.live(store, NAME).value) == (200, first)

    serving(store, test)


def test_a_start_takes_the_live_release_or_the_one_before_it(store: Store) -> None:
    first = releases.first(store, NAME)
    digest = candidate(store)
    releases.promote(store, NAME, digest)

    async def serves_it(running: Running) -> None:
        assert running.follower.spec == releases.read(store, digest).spec

    serving(store, serves_it)
    assert releases.first(store, NAME).weight_epoch == 1
    member = releases.read(store, digest).spec.tree
    assert isinstance(member, Member)
    spoil(store, member)

    async def serves_the_one_before(running: Running) -> None:
        assert running.follower.spec == first
        assert "cannot run" in (await running.state())["problem"]
        await running.infer(IMAGES[:1])

    serving(store, serves_the_one_before)


def test_one_of_two_promotions_wins(store: Store) -> None:
    async def test(running: Running) -> None:
        bodies = [{"weights": (0.9, 0.1)}, {"weights": (0.1, 0.9)}]
        got = await asyncio.gather(*(running.admin("weights", body) for body in bodies))
        assert sorted(one.status for one in got) == [200, 409]
        (won,) = [one.json()["release"] for one in got if one.status == 200]
        assert releases.live(store, NAME).value == won
        assert (await running.state())["live"] == won
        assert len(releases.history(store, NAME)) == 2

    serving(store, test)


@pytest.mark.parametrize(
    ("what", "body", "status", "says"),
    [
        ("weights", {"weights": [0.5, 0.6]}, 400, "sum to 1"),
        ("weights", {"weights": [0.5]}, 400, "as many weights"),
        ("weights", {"thresholds": [0.5]}, 400, "no thresholds"),
        ("weights", {}, 400, "give either"),
        ("promote", {"release": "0" * 64}, 404, "no such release"),
        ("promote", {"spec": "no/such"}, 404, "no such ref"),
        ("rollback", {}, 404, "no release was live before"),
        ("canary", {"release": "0" * 64}, 404, "no such release"),
        ("canary", {"release": "x"}, 400, "release"),
        ("promote", {"unknown": 1}, 400, "unknown"),
    ],
)
def test_refusals_say_why(store: Store, what: str, body: Any, status: int, says: str) -> None:
    async def test(running: Running) -> None:
        got = await running.admin(what, body)
        assert (got.status, says in got.json()["error"]) == (status, True), got.body
        assert len(releases.history(store, NAME)) == 1

    serving(store, test)


def test_no_body_whatever_is_a_defect(store: Store) -> None:
    random = np.random.default_rng(0)
    known = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 50_000,
        b'{"labels":{}}',
        b'{"labels":{"a":[[[1]]]}}',
        b"\xff",
    ]
    known += [b'{"weights":[NaN,1]}', b'{"weights":[1e999,0]}', b'{"release":1}', b'{"release":"../../x"}']
    known += [b'{"spec":"../x"}', b'{"labels":{"0":NaN}}', b'{"labels":{"0":[]}}', b'{"share":-1}']
    known += [random.bytes(size) for size in range(20)]

    async def test(running: Running) -> None:
        await running.infer(IMAGES[:1], "0")
        base = "/admin/models/mix/"
        paths = [base + what for what in ("promote", "rollback", "weights", "canary")]
        for path in (*paths, "/v2/models/mix/feedback", "/admin/models/none/promote"):
            for body in known:
                got = await send(running.app, "POST", path, body)
                assert got.status in (200, 400, 404), (path, body[:40], got.body)
                assert got.status == 200 or set(got.json()) == {"error"}
        too_long = await send(running.app, "POST", paths[0], b" " * (CHANGE_BYTES + 1))
        assert too_long.status == 413
        assert len(releases.history(store, NAME)) == 1

    serving(store, test, feedback={"every_s": 3600})


def test_so_many_changes_are_in_work_at_once(store: Store) -> None:
    async def test(running: Running) -> None:
        async def never() -> Any:
            await asyncio.Event().wait()

        async def ignored(_message: Any) -> None: ...

        path = "/admin/models/mix/promote"
        scope = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        slow = [asyncio.create_task(running.app(scope, never, ignored)) for _ in range(MOST_CHANGES)]
        await asyncio.sleep(0)
        refused = await running.admin("rollback", {})
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert (await running.admin("canary", method="DELETE")).status == 503
        assert (await running.admin("", method="GET")).status == 200
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
        assert (await running.admin("rollback", {})).status == 404

    serving(store, test)


def test_a_release_is_the_same_model_for_clients(store: Store) -> None:
    releases.first(store, NAME)
    spec = store.spec(NAME)
    store.set_ref("toys/renamed", store.put_spec(spec.model_copy(update={"name": "renamed"})))

    async def test(running: Running) -> None:
        got = await running.admin("promote", {"spec": "toys/renamed"})
        assert got.status == 400
        assert "must keep its name" in got.json()["error"]

    serving(store, test)


def test_a_promotion_by_the_store_alone_is_followed(store: Store) -> None:
    async def test(running: Running) -> None:
        await running.infer(IMAGES[:1])
        digest = candidate(store)
        position = releases.live(store, NAME)
        releases.promote(store, NAME, digest, expect=position.sequence)
        with pytest.raises(RefConflictError):
            releases.promote(store, NAME, position.value, expect=position.sequence)

        async def followed() -> bool:
            return bool((await running.state())["live"] == digest)

        await until(followed)

    serving(store, test)
