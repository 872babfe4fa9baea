"""Member failure as a contract, over members that fail, hang, lie and answer nonsense: the real policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.contract import Contract
from deployments.exchange import Question
from deployments.protocol.model import describe
from orchestrator.config.calibration import PredictionSets, Reject
from orchestrator.config.ensemble import Cascade, Spec
from orchestrator.config.serving import BreakerSettings, MemberOptions, ServingSettings
from orchestrator.ensemble.tree import predict
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    OrchestratorError,
    QuorumError,
)
from tests.deployments.models import CASCADE, FEATURES, MIX, A, B, spec
from tests.deployments.remotes import IN_PROCESS, INPUTS, Remote, run
from tests.deployments.ten import (
    LEAVES,
    OUTPUTS,
    TEN,
    TREE,
    contract,
    oracle,
    question,
    spec_of,
    table,
)
from tests.ensemble.likely import CLASSES


def broken(_: np.ndarray) -> np.ndarray:
    raise MemberFailedError("out of memory")


def bug(_: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError


FAULTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "error": broken,
    "bug": bug,
    "nan": lambda found: np.full_like(found, np.nan),
    "infinite": lambda found: found * np.inf,
    "shape": lambda found: found[:, :-1],
    "rows": lambda found: np.concatenate([found, found]),
    "dtype": lambda found: found.astype(np.int64),
    "range": lambda found: found * 1e3,
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_detectable_fault_is_a_degraded_answer_that_says_so(fault: Callable[[Any], Any]) -> None:
    calls = table()
    calls[LEAVES[2]].fault = fault
    found = run(contract(calls=calls).answer(question(4, 5, 6)))
    assert found.degraded
    assert (found.members, found.missing) == (("m0", "m1", "m3"), ("m2",))
    np.testing.assert_allclose(found.outputs["probabilities"], oracle(found.members, [4, 5, 6]), atol=1e-6)
    assert TREE.expected is not None
    assert TREE.expected.complete is not None
    value = next(one.value for one in TREE.expected.sets if one.without == (2,))
    assert found.facts() == {
        "weight_epoch": 0,
        "degraded": True,
        "members_used": "m0,m1,m3",
        "members_missing": "m2",
        "expected_accuracy": value,
    }
    assert value < TREE.expected.complete.value


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_below_the_quorum_and_without_one_it_is_an_error(fault: Callable[[Any], Any]) -> None:
    calls = table()
    for member in LEAVES[:3]:
        calls[member].fault = fault
    with pytest.raises(QuorumError, match="m0"):
        run(contract(calls=calls).answer(question(0)))
    all_must = TREE.model_copy(update={"quorum": None})
    calls = table()
    calls[LEAVES[0]].fault = fault
    with pytest.raises(QuorumError, match="m0"):
        run(contract(all_must, calls).answer(question(0)))


def test_without_faults_nothing_is_degraded() -> None:
    found = run(contract().answer(question(1, 2)))
    assert (found.degraded, found.missing, found.ejected) == (False, (), ())
    assert TREE.expected is not None
    assert TREE.expected.complete is not None
    assert found.expected == ("accuracy", TREE.expected.complete.value)


def test_a_member_that_hangs_costs_a_few_requests_their_time_and_then_none() -> None:
    calls, time = table(), [0.0]
    calls[LEAVES[1]].hangs = True
    members = {"m1": MemberOptions(breaker=BreakerSettings(failures=3, pause_s=1))}
    one = contract(calls=calls, now=lambda: time[0], members=members, deadline_s=0.25)

    async def took() -> float:
        now = asyncio.get_running_loop().time
        before = now()
        found = await one.answer(question(3, timeout_s=0.25))
        assert found.missing == ("m1",)
        return now() - before

    async def test() -> None:
        before = asyncio.all_tasks()
        slow = [await took() for _ in range(3)]
        assert min(slow) > 0.19
        assert max([await took() for _ in range(3)]) < 0.1
        assert one.health()["members"]["m1"] == {"breaker": "open", "ejected": False}
        # After the pause one call tries it; nobody waits for that.
        time[0] = 1.0
        assert calls[LEAVES[1]].calls == 3
        assert max([await took() for _ in range(3)]) < 0.1
        assert calls[LEAVES[1]].calls == 4
        await asyncio.sleep(0.25)
        assert one.health()["members"]["m1"]["breaker"] == "open"
        calls[LEAVES[1]].hangs = False
        time[0] = 3.0
        await took()
        await asyncio.sleep(0.01)
        assert not (await one.answer(question(3))).degraded
        assert asyncio.all_tasks() == before

    run(test())


def test_of_many_requests_in_one_turn_of_the_loop_one_tries_whether_a_member_works_again() -> None:
    calls, time = table(), [0.0]
    calls[LEAVES[1]].fault = broken
    members = {"m1": MemberOptions(breaker=BreakerSettings(failures=1, pause_s=1), retries=0)}
    one = contract(calls=calls, now=lambda: time[0], members=members)

    async def test() -> None:
        await one.answer(question(0))
        assert calls[LEAVES[1]].calls == 1
        time[0] = 2.0
        await asyncio.gather(*(one.answer(question(row)) for row in range(10)))
        await asyncio.sleep(0)
        assert calls[LEAVES[1]].calls == 2
        await one.close()

    run(test())


def test_a_member_that_the_tree_cannot_do_without_is_asked_whatever_its_breaker_says() -> None:
    calls = table()
    tree = TREE.model_copy(update={"quorum": None})
    calls[LEAVES[0]].fault = broken
    one = contract(tree, calls)
    for _ in range(10):
        with pytest.raises(QuorumError):
            run(one.answer(question(0)))
    assert one.health()["members"]["m0"]["breaker"] == "open"
    calls[LEAVES[0]].fault = None
    assert not run(one.answer(question(0))).degraded
    assert one.health()["members"]["m0"]["breaker"] == "closed"


def test_of_many_open_breakers_only_so_many_count_as_the_quorum_does_without() -> None:
    calls = table()
    one = contract(calls=calls)
    for member in LEAVES[:3]:
        calls[member].fault = broken
    for _ in range(10):
        with pytest.raises(QuorumError):
            run(one.answer(question(0)))
    for member in LEAVES[:3]:
        calls[member].fault = None
    assert run(one.answer(question(0))).members == ("m2", "m3")


def test_past_the_deadline_it_is_an_error_and_the_breaker_learns_who_was_late() -> None:
    calls = table()
    calls[LEAVES[3]].hangs = True
    one = contract(TREE.model_copy(update={"quorum": None}), calls, deadline_s=0.02)
    for _ in range(5):
        with pytest.raises(DeadlineError):
            run(one.answer(question(0, timeout_s=0.02)))
    states = {name: found["breaker"] for name, found in one.health()["members"].items()}
    assert states == {"m0": "closed", "m1": "closed", "m2": "closed", "m3": "open"}


def test_a_client_in_a_hurry_opens_no_breaker_and_does_not_try_one() -> None:
    calls, time = table(), [0.0]
    calls[LEAVES[1]].hangs = True
    members = {"m1": MemberOptions(breaker=BreakerSettings(failures=1, pause_s=1))}
    one = contract(calls=calls, now=lambda: time[0], members=members, deadline_s=0.4)

    async def asked(timeout_s: float) -> tuple[str, int]:
        assert (await one.answer(question(3, timeout_s=timeout_s))).missing == ("m1",)
        await asyncio.sleep(0)
        return one.health()["members"]["m1"]["breaker"], calls[LEAVES[1]].calls

    async def test() -> None:
        assert [await asked(0.05) for _ in range(2)] == [("closed", 1), ("closed", 2)]
        assert await asked(0.2) == ("open", 3)
        time[0] = 2.0
        assert await asked(0.05) == ("open", 3)
        assert await asked(0.2) == ("half-open", 4)
        await one.close()

    run(test())


def test_answers_by_their_name_in_the_protocol() -> None:
    remotes = {A: Remote(A), B: Remote(B)}
    found = run(Contract(spec(CASCADE), remotes, ServingSettings()).answer(Question(INPUTS, 5)))
    assert found.members == ("a", "b")
    assert (found.weight_epoch, found.degraded) == (3, False)
    assert list(found.outputs) == ["probabilities", "label"]
    assert found.outputs["probabilities"].dtype == np.float32
    np.testing.assert_array_equal(found.outputs["label"], found.outputs["probabilities"].argmax(axis=1))
    sure = Cascade(stages=(A, B), thresholds=(0.0,))
    assert run(Contract(spec(sure), remotes, ServingSettings()).answer(Question(INPUTS, 5))).members == ("a",)
    values = run(Contract(spec(MIX, FEATURES), remotes, ServingSettings()).answer(Question(INPUTS, 5)))
    assert list(values.outputs) == ["values"]
    expected = predict(MIX, IN_PROCESS, INPUTS, "regression")
    np.testing.assert_array_equal(values.outputs["values"], expected.outputs)


def test_explanation_is_worked_out_when_it_is_asked_for() -> None:
    sets = PredictionSets(method="lac", threshold=0.8)
    tree = TREE.model_copy(update={"prediction_sets": sets})
    names = ("member_probs", "member_weights", "exit_stage", "disagreement")
    found = run(contract(tree).answer(question(1, 2, outputs=(*names, "prediction_set")))).outputs
    shapes = [(2, 4, CLASSES), (2, 4), (2,), (2,)]
    assert [found[name].shape for name in names] == shapes
    weighted = (found["member_weights"][:, :, None] * found["member_probs"]).sum(axis=1)
    np.testing.assert_allclose(weighted, found["probabilities"], atol=1e-6)
    np.testing.assert_array_equal(found["prediction_set"], found["probabilities"] >= 0.2)
    assert [tensor.name for tensor in describe(spec_of(tree)).extras] == [
        "member_probs",
        "member_weights",
        "disagreement",
        "prediction_set",
    ]
    plain = run(contract().answer(question(1, outputs=("prediction_set",)))).outputs
    assert list(plain) == ["probabilities", "label"]


def test_rejected_rows_are_told_with_every_answer() -> None:
    tree = TREE.model_copy(update={"reject": Reject(by="confidence", threshold=0.5)})
    found = run(contract(tree).answer(question(1, 2, 3))).outputs
    assert list(found) == ["probabilities", "label", "rejected"]
    np.testing.assert_array_equal(found["rejected"], found["probabilities"].max(axis=1) < 0.5)
    assert [(one.name, one.datatype) for one in describe(spec_of(tree)).outputs][2] == ("rejected", "BOOL")


def test_nothing_leaks_over_thousands_of_requests_with_faults() -> None:
    """Hangs, errors, nonsense, callers that go away, hedges, tries and audits; then no task is left."""
    rng = np.random.default_rng(0)

    async def unreliable(rows: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        what = rng.random()
        if what < 0.001:
            await asyncio.sleep(30)
        if what < 0.05:
            raise MemberFailedError("broken")
        if what < 0.08:
            return np.full((len(rows), CLASSES), np.nan, np.float32)
        await asyncio.sleep(0.001 if what < 0.8 else 0.01)
        found: np.ndarray = outputs[rows[:, 0].astype(int)]
        return found

    def call(outputs: np.ndarray) -> Any:
        return lambda rows: unreliable(rows, outputs)

    members = MemberOptions(breaker=BreakerSettings(pause_s=0.05), hedge=0.2, retries=2)
    settings = ServingSettings(members={leaf.name: members for leaf in LEAVES}, replicas=2, deadline_s=0.8)
    one = Contract(
        Spec(name="ten", tree=TREE, signature=TEN),
        {member: call(found) for member, found in OUTPUTS.items()},
        settings,
        seed=0,
    )
    counts = {"right": 0, "degraded": 0, "error": 0}

    async def ask(row: int) -> None:
        try:
            async with asyncio.timeout(float(rng.choice([0.02, 10.0], p=[0.05, 0.95]))):
                found = await one.answer(question(row, timeout_s=0.8))
        except TimeoutError:
            return  # the client went away
        except OrchestratorError:
            counts["error"] += 1
            return
        assert found.degraded == (len(found.members) < 4)
        np.testing.assert_allclose(found.outputs["probabilities"], oracle(found.members, [row]), atol=1e-5)
        counts["degraded" if found.degraded else "right"] += 1

    async def test() -> None:
        before = asyncio.all_tasks()
        for start in range(0, 2_000, 200):
            await asyncio.gather(*(ask(row) for row in range(start, start + 200)))
        await one.close()
        assert asyncio.all_tasks() == before

    asyncio.run(asyncio.wait_for(test(), 60))
    assert counts["right"] > 50
    assert counts["degraded"] > 50
