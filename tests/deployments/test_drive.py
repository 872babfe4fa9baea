from __future__ import annotations

import asyncio
import pickle
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve.exceptions import BackPressureError

from deployments.drive import drive, everyone, fetch, settle
from orchestrator.config.ensemble import Cascade, Parallel
from orchestrator.ensemble.tree import predict
from orchestrator.errors import DeadlineError, MemberFailedError, OverloadedError, QuorumError
from tests.deployments.models import CASCADE, MIX, PARALLEL, A, B, spec
from tests.deployments.remotes import IN_PROCESS, INPUTS, Remote, Response, fail, run


@pytest.mark.parametrize(
    "tree",
    [
        PARALLEL,
        CASCADE,
        MIX,
        Parallel(members=(CASCADE, MIX, B)),
        Cascade(stages=(MIX, A), thresholds=(0.9,)),
    ],
    ids=["parallel", "cascade", "mix", "nested", "nested cascade"],
)
def test_driven_answers_are_the_in_process_ones(tree: Any) -> None:
    driven = run(drive(spec(tree), {A: Remote(A), B: Remote(B)}, INPUTS, 5))
    expected = predict(tree, IN_PROCESS, INPUTS, "classification")
    np.testing.assert_array_equal(driven.outputs, expected.outputs)
    np.testing.assert_array_equal(driven.stages, expected.stages)
    for member, rows in expected.members.items():
        np.testing.assert_array_equal(driven.members[member], rows)


def test_members_of_a_parallel_ensemble_are_asked_at_the_same_time() -> None:
    async def test() -> float:
        start = asyncio.get_running_loop().time()
        await drive(spec(), {A: Remote(A, 0.2), B: Remote(B, 0.2)}, INPUTS, 5)
        return asyncio.get_running_loop().time() - start

    assert run(test()) < 0.35


def test_a_later_stage_gets_only_the_unsure_rows() -> None:
    first, second = Remote(A), Remote(B)
    prediction = run(drive(spec(CASCADE), {A: first, B: second}, INPUTS, 5))
    unsure = int((prediction.stages == 1).sum())
    assert 0 < unsure < 6
    assert (first.rows, second.rows) == ([6], [unsure])


def test_past_the_deadline_everything_is_cancelled() -> None:
    slow = {A: Remote(A, 30), B: Remote(B, 30)}
    with pytest.raises(DeadlineError, match=r"in time: 0\.05 s"):
        run(drive(spec(), slow, INPUTS, 0.05))
    assert [remote.cancelled for remote in slow.values()] == [1, 1]


def test_a_failing_member_is_named_and_the_others_are_cancelled() -> None:
    remotes = {A: Remote(A, 30), B: Remote(B, error=MemberFailedError("out of memory"))}
    with pytest.raises(QuorumError, match=r"b \(out of memory\)"):
        run(drive(spec(), remotes, INPUTS, 5))
    assert remotes[A].cancelled == 1


def test_with_a_quorum_the_others_are_waited_for_and_the_answer_is_degraded() -> None:
    tree = Parallel(members=(A, B), quorum=1)
    remotes = {A: Remote(A, 0.05), B: Remote(B, error=MemberFailedError("out of memory"))}
    prediction = run(drive(spec(tree), remotes, INPUTS, 5))
    assert remotes[A].cancelled == 0
    assert prediction.missing == {B: "out of memory"}
    assert prediction.degraded.all()
    expected = predict(tree, {A: IN_PROCESS[A]}, INPUTS, "classification")
    np.testing.assert_array_equal(prediction.outputs, expected.outputs)


@pytest.mark.parametrize(
    ("tree", "asked"),
    [
        (Parallel(members=(A, B), quorum=1), [1, 1]),
        (Cascade(stages=(B, A), thresholds=(0.8,), quorum=1), [1, 1]),
        (Cascade(stages=(A, B), thresholds=(2.0,), quorum=1), [1, 1]),
        (Parallel(members=(Cascade(stages=(B, A), thresholds=(0.8,)), A), quorum=1), [1, 1]),
    ],
    ids=["parallel", "first stage", "last stage", "nested"],
)
def test_a_member_that_hangs_is_missing_where_a_quorum_does_without_it(tree: Any, asked: list[int]) -> None:
    remotes = {A: Remote(A), B: Remote(B, 30)}
    prediction = run(drive(spec(tree), remotes, INPUTS, 1.0))
    assert prediction.missing == {B: "no answer in time"}
    assert remotes[B].cancelled == 1
    assert [len(remotes[member].rows) for member in (A, B)] == asked
    expected = predict(tree, {A: IN_PROCESS[A]}, INPUTS, "classification")
    np.testing.assert_array_equal(prediction.outputs, expected.outputs)


def test_a_member_that_hangs_without_which_there_is_no_answer_is_named() -> None:
    required = B.model_copy(update={"required": True})
    tree = Parallel(members=(A, required), quorum=1)
    with pytest.raises(QuorumError, match=r"b \(no answer in time\)"):
        run(drive(spec(tree), {A: Remote(A), required: Remote(B, 30)}, INPUTS, 0.1))


def test_time_that_a_round_leaves_is_that_of_the_rounds_after_it() -> None:
    # Half of 1.6 s would not do for the second stage.
    tree = Cascade(stages=(A, B), thresholds=(2.0,), quorum=1)
    prediction = run(drive(spec(tree), {A: Remote(A), B: Remote(B, 1.0)}, INPUTS, 2.0))
    assert prediction.missing == {}


@pytest.mark.parametrize(
    "output", [np.full((6, 2), np.nan, np.float32), np.zeros((5, 2), np.float32), np.zeros(6, np.float32)]
)
def test_an_unsound_output_is_a_failure(output: np.ndarray) -> None:
    async def poisoned(_: np.ndarray) -> np.ndarray:
        return output

    with pytest.raises(QuorumError, match=r"a \("):
        run(drive(spec(), {A: poisoned, B: Remote(B)}, INPUTS, 5))


def test_a_cancelled_caller_cancels_the_members() -> None:
    remotes = {A: Remote(A, 30), B: Remote(B, 30)}

    async def test() -> None:
        task = asyncio.create_task(drive(spec(), remotes, INPUTS, 60))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test())
    assert [remote.cancelled for remote in remotes.values()] == [1, 1]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (RayTaskError("predict", "Traceback\nboom", OverloadedError("full", 3)), OverloadedError, "full: 3"),
        (RayTaskError("predict", "Traceback\nboom", KeyError("x")), MemberFailedError, "failed: boom"),
        (ActorDiedError(), MemberFailedError, "could not be reached"),
        (BackPressureError(7, 5), MemberFailedError, "could not be reached"),
    ],
)
def test_errors_of_a_remote_call(error: Exception, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        run(fetch(Response(fail(error))))
    assert type(caught.value) is kind
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_cancelled_wait_cancels_the_remote_work() -> None:
    async def test() -> None:
        response = Response(asyncio.sleep(30))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fetch(response), 0.02)
        assert response.cancelled

    run(test())


def test_everyone_names_the_first_failure_and_gives_up_on_the_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.drive.READY_S", 0.05)
    with pytest.raises(OverloadedError):
        run(everyone([fail(OverloadedError("full")), asyncio.sleep(30)]))
    with pytest.raises(MemberFailedError, match="not ready within"):
        run(everyone([asyncio.sleep(30)]))
    run(everyone([asyncio.sleep(0), asyncio.sleep(0)]))


def test_settle_returns_results_in_order() -> None:
    async def test() -> None:
        results = await settle([asyncio.sleep(0.02, "a"), asyncio.sleep(0, "b")])
        assert results == ["a", "b"]
        cut_off, early = await settle([asyncio.sleep(30), fail(KeyError())])
        assert isinstance(cut_off, asyncio.CancelledError)
        assert isinstance(early, KeyError)
        for patient in (True, False):
            late, soon = await settle([asyncio.sleep(30, "a"), asyncio.sleep(0, "b")], 0.02, patient=patient)
            assert isinstance(late, TimeoutError)
            assert soon == "b"
        assert await settle([]) == []
        waited = await settle([asyncio.sleep(0.02, "a"), fail(KeyError())], patient=True)
        assert waited[0] == "a"
        assert isinstance(waited[1], KeyError)

    run(test())
