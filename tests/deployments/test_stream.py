"""Answers as they become known: each stage of a cascade as a server-sent event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from deployments.composed import Composed
from deployments.contract import Contract
from deployments.exchange import Answer, Question, Served
from deployments.fused import Fused
from deployments.http import stream
from deployments.http.app import http_app
from deployments.http.asgi import Reply, send_events
from deployments.placement import Here
from deployments.protocol.model import describe
from deployments.stream import streamed
from orchestrator.config.ensemble import Cascade, Spec
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.ensemble.node import Ask
from orchestrator.ensemble.progress import Progress
from orchestrator.ensemble.tree import Outcome, Prediction, distinct, predict
from orchestrator.errors import MemberFailedError
from orchestrator.runtime import execute
from orchestrator.store.store import Store
from tests.deployments.calling import send
from tests.deployments.toys import IMAGES, open_store

TIME_S = 20.0
Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Spec]:
    """A cascade of three models."""
    store, specs = open_store(tmp_path_factory.mktemp("stream"))
    spec = next(spec for spec in specs if spec.name == "cascade")
    assert isinstance(spec.tree, Cascade)
    assert spec.tree.thresholds is not None
    tree = Cascade(stages=tuple(distinct(spec.tree)), thresholds=(spec.tree.thresholds[0], 0.9))
    return store, spec.model_copy(update={"tree": tree})


def fused(stored: tuple[Store, Spec]) -> Fused:
    store, spec = stored
    serving = ServingSettings(placement="fused", compile=False)
    engine = Here(AppSettings(store=str(store.root), specs=(spec,), serving=serving), {}).open(spec)
    assert isinstance(engine, Fused)
    return engine


def contract(stored: tuple[Store, Spec]) -> Contract:
    store, spec = stored

    def call(digest: str) -> Any:
        run = execute.load(store, digest, "eager")

        async def ask(rows: np.ndarray) -> np.ndarray:
            return run(rows)

        return ask

    return Contract(spec, {member: call(member.digest) for member in distinct(spec.tree)}, ServingSettings())


async def collected(found: AsyncIterator[tuple[bool, Answer]]) -> list[tuple[bool, Answer]]:
    return [one async for one in found]


@pytest.mark.parametrize("placement", ["fused", "contract"])
def test_each_stage_is_what_a_cascade_that_ends_there_says(
    stored: tuple[Store, Spec], placement: str
) -> None:
    store, spec = stored
    ask = fused(stored).predict if placement == "fused" else contract(stored).answer
    found = asyncio.run(collected(streamed(ask, Question(IMAGES, TIME_S))))
    tree = spec.tree
    assert isinstance(tree, Cascade)
    assert tree.thresholds is not None
    assert [last for last, _ in found] == [False, False, True]
    members = {member: execute.load(store, member.digest, "eager") for member in distinct(tree)}
    for stages, (_, answer) in enumerate(found, start=1):
        known = tree.model_copy(
            update={"stages": tree.stages[:stages], "thresholds": tree.thresholds[: stages - 1]}
        )
        wanted = predict(known, members, IMAGES, "classification").probs
        assert wanted is not None
        np.testing.assert_allclose(answer.outputs["probabilities"], wanted, atol=1e-5)
    whole = asyncio.run(_plain(ask, Question(IMAGES, TIME_S)))
    np.testing.assert_allclose(
        found[-1][1].outputs["probabilities"], whole.outputs["probabilities"], atol=1e-5
    )


async def _plain(ask: Any, question: Question) -> Answer:
    found: Answer = await ask(question)
    return found


def test_rows_that_all_leave_early_have_no_later_stages(stored: tuple[Store, Spec]) -> None:
    store, spec = stored
    tree = spec.tree.model_copy(update={"thresholds": (0.0, 0.0)})
    early = spec.model_copy(update={"tree": tree})
    found = asyncio.run(collected(streamed(fused((store, early)).predict, Question(IMAGES, TIME_S))))
    assert [last for last, _ in found] == [True]


def test_a_stage_whose_members_are_not_all_known_is_not_told(stored: tuple[Store, Spec]) -> None:
    _, spec = stored
    first, *others = distinct(spec.tree)
    told: list[Prediction] = []
    progress = Progress(spec.tree, 4, "classification", told.append)
    sure = np.zeros((2, 10), np.float32)
    progress.after([Ask(first, np.arange(2))], [Outcome(output=sure)])
    assert not told
    progress.after([Ask(first, np.arange(2, 4))], [Outcome(output=sure)])
    assert [len(one) for one in told] == [4]
    progress.after([Ask(others[0], np.arange(2))], [Outcome(output=sure)])
    assert len(told) == 1


def test_giving_up_cancels_what_is_asked() -> None:
    cancelled: list[bool] = []

    async def ask(question: Question) -> Answer:
        assert question.told is not None
        question.told(Answer({}, ("a",), 1, False))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    async def test() -> None:
        found = streamed(ask, Question(IMAGES, TIME_S))
        assert (await anext(found))[0] is False
        await found.aclose()  # type: ignore[attr-defined]

    asyncio.run(test())
    assert cancelled == [True]


def test_a_client_that_is_gone_before_the_first_event_is_sent_ends_the_work() -> None:
    cancelled: list[bool] = []

    async def respond(told: Any) -> Reply:
        told(Answer({}, ("a",), 1, False))
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        raise AssertionError

    async def gone(_message: Any) -> None:
        raise OSError("gone")

    async def test() -> None:
        found = await stream.events(respond, lambda answer: {"members": answer.members})
        with pytest.raises(OSError, match="gone"):
            await send_events(gone, found)
        assert cancelled == [True]

    asyncio.run(test())


def events(body: bytes) -> Events:
    parts = [part.split("\n") for part in body.decode().split("\n\n") if part]
    return [(head.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for head, data in parts]


def posted(stored: tuple[Store, Spec], predict_: Any = None, accept: str = "text/event-stream") -> Any:
    _, spec = stored

    async def ready() -> None:
        pass

    async def test() -> Any:
        model = Served(describe(spec), predict_ or fused(stored).predict, ready)
        app = http_app([model], ServingSettings())
        body = json.dumps(IMAGES[:3].tolist()).encode()
        return await send(
            app, "POST", "/predict", body, {"Accept": accept, "Content-Type": "application/json"}
        )

    return asyncio.run(test())


def test_events_over_http(stored: tuple[Store, Spec]) -> None:
    got = posted(stored)
    assert got.status == 200
    assert got.headers["content-type"] == "text/event-stream"
    found = events(got.body)
    plain = json.loads(posted(stored, accept="*/*").body)
    assert [name for name, _ in found][-1] == "answer"
    assert {name for name, _ in found[:-1]} <= {"stage"}
    assert [data.pop("final") for _, data in found] == [False] * (len(found) - 1) + [True]
    assert found[-1][1]["predictions"] == plain["predictions"]
    assert len(found[0][1]["predictions"]) == 3


def test_an_error_before_the_first_event_is_a_reply_and_later_an_event(
    stored: tuple[Store, Spec],
) -> None:
    async def fails(_question: Question) -> Answer:
        raise MemberFailedError("member m is gone", "/secret/path")

    got = posted(stored, fails)
    assert got.status == 503
    assert "event" not in got.headers["content-type"]

    async def later(question: Question) -> Answer:
        first = await fused(stored).predict(replace(question, told=None))
        assert question.told is not None
        question.told(first)
        await asyncio.sleep(0.01)
        raise RuntimeError("a defect with /secret/path")

    found = events(posted(stored, later).body)
    assert [name for name, _ in found] == ["stage", "error"]
    assert found[-1][1] == {"error": "internal error; see the server's log", "status": 500}


def test_a_deployment_streams_too() -> None:
    assert callable(Composed.stream)
