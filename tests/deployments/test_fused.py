"""Ensembles whose members run in the process that asks them: the same answers as anywhere else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from deployments import fused as module
from deployments import worker
from deployments.exchange import Answer, Question
from deployments.fused import Fused
from deployments.placement import Here, Mixed
from deployments.pool import Pool
from deployments.worker import HangingError, Watch
from orchestrator.config.ensemble import Cascade, Parallel, Spec
from orchestrator.config.serving import AppSettings, ServingSettings
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import DeadlineError, MemberFailedError, OverloadedError, QuorumError
from orchestrator.runtime import execute, joint
from orchestrator.store.store import Store
from tests.deployments.toys import in_process, open_store, rows_of

NAMES = ("alone", "average", "boosted", "chained", "cascade", "mix", "table", "nested", "cascades", "quorum")
TIME_S = 20.0


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Spec]]:
    store, specs = open_store(tmp_path_factory.mktemp("fused"))
    found = {spec.name: spec for spec in specs}
    average, cascade, mix = (found[name].tree for name in ("average", "cascade", "mix"))
    small, other, cnn = distinct(average)
    backwards = Cascade(stages=(other, cnn), thresholds=(0.2,), combine="mean")
    more = {
        "nested": Parallel(members=(small, cascade, mix)),
        "cascades": Parallel(members=(cascade, backwards), rule="median"),
        "quorum": Parallel(members=(small, other, cnn), quorum=2),
    }
    for name, tree in more.items():
        found[name] = found["mix"].model_copy(update={"name": name, "tree": tree})
    return store, found


def opened(store: Store, spec: Spec, *, compile_too: bool = False, instances: int = 1) -> Fused | Mixed:
    serving = ServingSettings(placement="fused", compile=compile_too, instances=instances)
    return Here(AppSettings(store=str(store.root), specs=(spec,), serving=serving), {}).open(spec)


def ask(engine: Fused | Mixed, *parts: np.ndarray, timeout_s: float = TIME_S) -> list[Answer]:
    async def test() -> list[Answer]:
        await engine.ready()
        return await asyncio.gather(*(engine.predict(Question(part, timeout_s)) for part in parts))

    return asyncio.run(test())


def same(answer: Answer, store: Store, spec: Spec, rows: np.ndarray) -> None:
    expected = in_process(store, spec, rows)
    if expected.probs is None:
        np.testing.assert_allclose(answer.outputs["values"], expected.outputs, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(answer.outputs["probabilities"], expected.probs, atol=1e-5)
        np.testing.assert_array_equal(answer.outputs["label"], expected.probs.argmax(axis=1))
    assert answer.members == tuple(one.name for one, mask in expected.members.items() if mask.any())
    assert not answer.degraded


@pytest.mark.parametrize("name", NAMES)
def test_each_of_many_requests_gets_its_own_answer(served: tuple[Store, dict[str, Spec]], name: str) -> None:
    store, specs = served
    spec = specs[name]
    rows = rows_of(spec)
    parts = [rows[start:end] for start, end in ((0, 1), (1, 2), (2, 9), (9, 10), (10, 24))]
    engine = opened(store, spec)
    assert isinstance(engine, Mixed if name == "quorum" else Fused)
    for answer, part in zip(ask(engine, *parts), parts, strict=True):
        same(answer, store, spec, part)


@pytest.mark.parametrize(("name", "walks"), [("mix", 0), ("cascade", 1)])
def test_requests_that_wait_share_one_computation(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch, name: str, walks: int
) -> None:
    store, specs = served
    walked: list[int] = []
    asked: list[int] = []
    walk, answers = module.walk, joint._tried  # type: ignore[attr-defined]

    def counted(tree: object, rows: int, task: object) -> object:
        walked.append(rows)
        return walk(tree, rows, task)  # type: ignore[arg-type]

    def tried(executable: execute.Executable, inputs: np.ndarray) -> object:
        asked.append(len(inputs))
        return answers(executable, inputs)

    monkeypatch.setattr(module, "walk", counted)
    monkeypatch.setattr(joint, "_tried", tried)
    rows = rows_of(specs[name])
    ask(opened(store, specs[name]), *(rows[i : i + 1] for i in range(20)))
    assert walked == [20] * walks
    assert asked[0] == 20
    assert len(asked) == len(distinct(specs[name].tree))  # not compiled: each is called once


def test_requests_for_stages_that_a_tree_has_not_share_one_computation_too(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    asked: list[int] = []
    answers = joint._tried

    def tried(executable: execute.Executable, inputs: np.ndarray) -> object:
        asked.append(len(inputs))
        return answers(executable, inputs)

    monkeypatch.setattr(joint, "_tried", tried)
    engine, rows = opened(store, specs["mix"]), rows_of(specs["mix"])
    told: list[Answer] = []

    async def test() -> list[Answer]:
        questions = [Question(rows[i : i + 1], TIME_S, told=told.append) for i in range(20)]
        return await asyncio.gather(*map(engine.predict, questions))

    assert len(asyncio.run(test())) == 20
    assert asked == [20] * len(distinct(specs["mix"].tree))
    assert not told


def test_a_model_that_fails_fails_its_own_request_alone(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    engine = opened(store, specs["mix"])
    rows = rows_of(specs["mix"]).copy()
    rows[3] = 255
    run = execute.Executable.__call__

    def failing(self: execute.Executable, inputs: np.ndarray) -> np.ndarray:
        if (inputs == 255).all(axis=(1, 2, 3)).any():
            raise RuntimeError("no such kernel")
        return run(self, inputs)

    monkeypatch.setattr(execute.Executable, "__call__", failing)

    async def test() -> list[Answer | BaseException]:
        asked = [engine.predict(Question(rows[i : i + 1], TIME_S)) for i in range(6)]
        return await asyncio.gather(*asked, return_exceptions=True)

    found = asyncio.run(test())
    assert isinstance(found[3], QuorumError)
    assert "no such kernel" in str(found[3])
    for i in (0, 1, 2, 4, 5):
        answer = found[i]
        assert isinstance(answer, Answer)
        same(answer, store, specs["mix"], rows[i : i + 1])


@pytest.mark.parametrize("name", ["mix", "quorum"])
def test_so_many_copies_compute_at_once(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store, specs = served
    spec = specs[name]
    rows, together = rows_of(spec), threading.Barrier(2, timeout=10)
    engine = opened(store, spec, instances=2)
    for group, *_ in engine._pool.loaded():
        member = group.members[0]

        def both(inputs: np.ndarray, run: Any = group._alone[member]) -> np.ndarray:
            together.wait()
            found: np.ndarray = run(inputs)
            return found

        monkeypatch.setitem(group._alone, member, both)
    for answer, part in zip(ask(engine, rows[:1], rows[1:2]), (rows[:1], rows[1:2]), strict=True):
        same(answer, store, spec, part)


def test_after_a_call_that_hangs_the_copy_that_is_loaded_answers(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec, go_on = specs["mix"], threading.Event()
    rows = rows_of(spec)[:1]
    engine = opened(store, spec, instances=2)
    assert isinstance(engine, Fused)
    engine._hang_s = 0.5
    last = engine._pool.loaded()[-1][0]  # the one that is lent first
    monkeypatch.setitem(last._alone, last.members[0], lambda _: go_on.wait(20))
    monkeypatch.setattr(module, "opened_groups", None)  # what cannot be loaded anew is not needed

    async def test() -> list[Answer]:
        hangs = asyncio.ensure_future(engine.predict(Question(rows, TIME_S)))
        await asyncio.sleep(0.02)
        found = [await engine.predict(Question(rows, TIME_S))]
        with pytest.raises(HangingError):
            await hangs
        return [*found, await engine.predict(Question(rows, TIME_S))]

    try:
        for answer in asyncio.run(test()):
            same(answer, store, spec, rows)
    finally:
        go_on.set()


def test_a_copy_is_lent_in_turn() -> None:
    """Who computes without a pause does not take it from those that wait."""
    order: list[str] = []

    async def borrow(pool: Pool[int], name: str, times: int) -> None:
        for _ in range(times):
            async with pool.lent() as copy:
                order.append(name)
                await copy.run(lambda _: None, Watch(), 5.0)

    async def test() -> None:
        pool = Pool("test", lambda: 1)
        await asyncio.gather(borrow(pool, "busy", 5), borrow(pool, "other", 1))
        pool.close()

    asyncio.run(test())
    assert order.index("other") == 1


def test_a_member_that_fails_is_done_without_where_the_quorum_allows(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec = specs["quorum"]
    engine = opened(store, spec)
    assert isinstance(engine, Mixed)
    broken = distinct(spec.tree)[1]
    monkeypatch.setitem(engine._pool.loaded()[0][0]._alone, broken, lambda _: np.full((1, 10), np.nan))
    (answer,) = ask(engine, rows_of(spec)[:1])
    assert answer.degraded
    assert answer.members == ("mlp0", "cnn")
    assert np.isfinite(answer.outputs["probabilities"]).all()


def test_no_time_and_no_room(served: tuple[Store, dict[str, Spec]]) -> None:
    store, specs = served
    rows = rows_of(specs["mix"])[:1]
    engine = opened(store, specs["mix"])
    with pytest.raises(DeadlineError):
        ask(engine, rows, timeout_s=1e-6)
    assert isinstance(engine, Fused)
    engine._batcher._max_queued = 3

    async def test() -> list[Answer | BaseException]:
        asked = [engine.predict(Question(rows, TIME_S)) for _ in range(6)]
        return await asyncio.gather(*asked, return_exceptions=True)

    refused = [one for one in asyncio.run(test()) if isinstance(one, OverloadedError)]
    assert len(refused) == 3


def test_after_a_call_that_hangs_the_members_are_loaded_anew(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec, go_on = specs["mix"], threading.Event()
    rows = rows_of(spec)[:1]
    engine = opened(store, spec)
    assert isinstance(engine, Fused)
    engine._hang_s = 0.1
    member = distinct(spec.tree)[1]
    monkeypatch.setitem(engine._pool.loaded()[0][0]._alone, member, lambda _: go_on.wait(20))

    async def test() -> Answer:
        with pytest.raises(HangingError, match="a call hangs"):
            await engine.predict(Question(rows, TIME_S))
        assert engine._pool.calls_that_hang == 1
        engine.check_health()
        monkeypatch.setattr(worker, "STUCK_S", -1.0)
        with pytest.raises(MemberFailedError, match="still running"):
            engine.check_health()
        engine._hang_s = TIME_S
        return await engine.predict(Question(rows, TIME_S))

    try:
        same(asyncio.run(test()), store, spec, rows)
    finally:
        go_on.set()


def test_what_waits_in_stages_behind_a_call_that_hangs_has_the_members_loaded_anew(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec, go_on = specs["cascade"], threading.Event()
    rows = rows_of(spec)
    engine = opened(store, spec)
    assert isinstance(engine, Fused)
    engine._hang_s = 0.2
    first = engine._pool.loaded()[0][0]
    monkeypatch.setitem(first._alone, first.members[0], lambda _: go_on.wait(20))

    async def test() -> Answer:
        hangs = asyncio.ensure_future(engine.predict(Question(rows, TIME_S)))
        await asyncio.sleep(0.02)
        behind = asyncio.ensure_future(engine.predict(Question(rows, TIME_S, told=lambda _: None)))
        with pytest.raises(HangingError):
            await hangs
        engine._hang_s = TIME_S
        return await behind

    try:
        same(asyncio.run(test()), store, spec, rows)
    finally:
        go_on.set()


def test_stages_that_nobody_waits_for_any_more_are_not_computed(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec, go_on = specs["cascade"], threading.Event()
    rows = rows_of(spec)
    engine = opened(store, spec)
    assert isinstance(engine, Fused)
    asked: list[str] = []
    for group in engine._pool.loaded()[0]:
        for member, run in group._alone.items():

            def slow(inputs: np.ndarray, name: str = member.name, run: Any = run) -> np.ndarray:
                asked.append(name)
                go_on.wait(20)
                found: np.ndarray = run(inputs)
                return found

            monkeypatch.setitem(group._alone, member, slow)

    async def test() -> Answer:
        with pytest.raises(DeadlineError):
            await engine.predict(Question(rows, 0.1, told=lambda _: None))
        assert len(asked) == 1
        after = asyncio.ensure_future(engine.predict(Question(rows, TIME_S)))
        await asyncio.sleep(0.02)
        go_on.set()
        return await after

    same(asyncio.run(test()), store, spec, rows)
    assert len(asked) == 1 + len(distinct(spec.tree))
    assert engine._pool.calls_that_hang == 0


def test_a_quorum_answers_without_a_member_that_hangs(
    served: tuple[Store, dict[str, Spec]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, specs = served
    spec, go_on = specs["quorum"], threading.Event()
    engine = opened(store, spec)
    assert isinstance(engine, Mixed)
    engine._groups[0]._hang_s = 0.1
    hanging = distinct(spec.tree)[0]
    monkeypatch.setitem(engine._pool.loaded()[0][0]._alone, hanging, lambda _: go_on.wait(20))
    try:
        (answer,) = ask(engine, rows_of(spec)[:1])
    finally:
        go_on.set()
    assert answer.degraded
    assert answer.missing == (hanging.name,)


@pytest.mark.slow
def test_compiled_answers_are_the_eager_ones(
    served: tuple[Store, dict[str, Spec]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, specs = served
    spec = specs["cascade"]
    rows = rows_of(spec)
    engine = opened(store, spec, compile_too=True)
    assert isinstance(engine, Fused)
    assert [len(group._joined) for group in engine._pool.loaded()[0]] == [1, 2]
    for answer, part in zip(ask(engine, rows[:1], rows[1:]), (rows[:1], rows[1:]), strict=True):
        same(answer, store, spec, part)
    assert engine.fallbacks == ()
    assert not [one for one in caplog.records if one.name == joint.__name__]
    # A compiled form that answers otherwise is not used: looked at again at every start.
    monkeypatch.setattr(joint, "FP32_TOLERANCE", -1.0)
    again = opened(store, spec, compile_too=True)
    # Each reason stands once in `fallbacks`, and both may be the same.
    assert all(group.fallback in again.fallbacks for group in again._pool.loaded()[0])
    assert "mlp1, cnn run eagerly: the compiled graph answers otherwise" in caplog.text
    same(ask(again, rows[:1])[0], store, spec, rows[:1])
