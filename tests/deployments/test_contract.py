"""Member failure as a contract, over members that fail, hang, lie and answer nonsense: the real policies."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from deployments.contract import Contract
from deployments.exchange import Answer, Question
from deployments.protocol.model import describe
from orchestrator.config.calibration import PredictionSets, Reject
from orchestrator.config.ensemble import Cascade, Member, Node, Spec, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.serving import BreakerSettings, GuardSettings, MemberOptions, ServingSettings
from orchestrator.config.signature import Signature
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct, predict, replay
from orchestrator.errors import (
    DeadlineError,
    MemberFailedError,
    NotFoundError,
    OrchestratorError,
    QuorumError,
)
from tests.deployments.models import CASCADE, FEATURES, MIX, A, B, spec
from tests.deployments.remotes import IN_PROCESS, INPUTS, Remote, run
from tests.ensemble.likely import ABILITY, CLASSES, likely

Outputs = Mapping[Member, np.ndarray]

TEN = Signature(
    task="classification",
    input_shape=(1,),
    input_dtype="float32",
    outputs=CLASSES,
    classes=tuple("0123456789"),
    mean=(0.0,),
    std=(1.0,),
)
FITTED, LABELS = likely(2_000, 0)
UNSEEN, TRUTH = likely(4_000, 1)
_FOUND = fit(WeightedMix(members=tuple(FITTED), quorum=2), FITTED, LABELS, Metric(), "classification")
assert isinstance(_FOUND, WeightedMix)
TREE: WeightedMix = _FOUND
LEAVES = distinct(TREE)
"""Of the fitted tree: with records."""
OUTPUTS: Outputs = dict(zip(LEAVES, UNSEEN.values(), strict=True))


class Table:
    """A member that looks its outputs up: an input is the number of its row."""

    def __init__(self, outputs: np.ndarray) -> None:
        self.outputs = outputs
        self.calls = 0
        self.fault: Callable[[np.ndarray], np.ndarray] | None = None
        self.hangs = False

    async def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.hangs:
            await asyncio.sleep(30)
        found: np.ndarray = self.outputs[rows[:, 0].astype(int)]
        return found if self.fault is None else self.fault(found)


def table(outputs: Outputs = OUTPUTS) -> dict[Member, Table]:
    return {member: Table(found) for member, found in outputs.items()}


def spec_of(tree: Node) -> Spec:
    return Spec(name="ten", tree=tree, signature=TEN)


def contract(
    tree: Node = TREE,
    calls: Mapping[Member, Any] | None = None,
    now: Callable[[], float] = lambda: 0.0,
    **serving: Any,
) -> Contract:
    settings = ServingSettings(**serving)
    return Contract(Spec(name="ten", tree=tree, signature=TEN), calls or table(), settings, clock=now, seed=0)


def question(*rows: int, timeout_s: float = 5.0, outputs: tuple[str, ...] = ()) -> Question:
    return Question(np.array(rows, np.float32)[:, None], timeout_s, frozenset(outputs))


def oracle(names: tuple[str, ...], rows: list[int], tree: Node = TREE) -> np.ndarray:
    """Probabilities of the members of these names."""
    left = {member: found[rows] for member, found in OUTPUTS.items() if member.name in names}
    probs = replay(tree, left, "classification").probs
    assert probs is not None
    return probs


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
    assert found.expected == ("accuracy", TREE.expected.complete.value)


def test_a_member_that_hangs_costs_a_few_requests_their_time_and_then_none() -> None:
    calls, time = table(), [0.0]
    calls[LEAVES[1]].hangs = True
    members = {"m1": MemberOptions(breaker=BreakerSettings(failures=3, pause_s=1))}
    one = contract(calls=calls, now=lambda: time[0], members=members)

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
    one = contract(TREE.model_copy(update={"quorum": None}), calls)
    for _ in range(5):
        with pytest.raises(DeadlineError):
            run(one.answer(question(0, timeout_s=0.02)))
    states = {name: found["breaker"] for name, found in one.health()["members"].items()}
    assert states == {"m0": "closed", "m1": "closed", "m2": "closed", "m3": "open"}


WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "permuted": lambda found: np.roll(found, 1, axis=1),
    "one answer": lambda found: np.broadcast_to(OUTPUTS[LEAVES[1]][:1], found.shape).copy(),
    "noise": lambda found: np.random.default_rng(int(abs(found).sum() * 1e3)).permuted(found, axis=1),
}


async def ask_each(one: Contract, first: int, count: int) -> list[Answer]:
    return [await one.answer(question(row)) for row in range(first, first + count)]


@pytest.mark.parametrize("fault", WRONG.values(), ids=list(WRONG))
def test_a_wrong_member_is_ejected_within_two_hundred_requests_and_no_other(
    fault: Callable[[Any], Any],
) -> None:
    calls = table()
    one = contract(calls=calls)
    assert not any(found.ejected for found in run(ask_each(one, 0, 200)))
    calls[LEAVES[1]].fault = fault
    after = run(ask_each(one, 200, 200))
    delay = next(number for number, found in enumerate(after, start=1) if found.ejected)
    assert delay < 60
    last = after[-1]
    assert (last.degraded, last.ejected, last.missing) == (True, ("m1",), ("m1",))
    np.testing.assert_allclose(last.outputs["probabilities"], oracle(last.members, [399]), atol=1e-6)


def test_stale_weights_are_ejected_within_two_hundred_requests() -> None:
    """A member whose accuracy fell from 0.78 to 0.55."""
    stale, _ = likely(4_000, 1, ability=tuple(0.62 * found for found in ABILITY))
    worse = dict(zip(LEAVES, stale.values(), strict=True))
    delays = []
    for number in range(5):
        one = contract(calls=table({**OUTPUTS, LEAVES[1]: worse[LEAVES[1]]}))
        found = run(ask_each(one, 500 * number, 500))
        assert found[-1].ejected == ("m1",)
        delays.append(next(place for place, answer in enumerate(found, start=1) if answer.ejected))
    assert np.median(delays) < 200


def test_sound_members_are_ejected_no_more_often_than_stated() -> None:
    """One wrong ejection in 200 requests allowed, far below the default."""
    one, wrong = contract(guard=GuardSettings(every=200)), 0
    for found in run(ask_each(contract(), 0, 1_000)):
        assert not found.ejected
    for row in range(1_000):
        for name in run(one.answer(question(row))).ejected:
            one.readmit(name)
            wrong += 1
    assert wrong <= 5


def test_an_ejected_member_comes_back_when_told_or_after_a_probation_that_doubles() -> None:
    calls, time = table(), [0.0]
    one = contract(calls=calls, now=lambda: time[0], guard=GuardSettings(probation_s=10))
    calls[LEAVES[1]].fault = WRONG["permuted"]
    assert run(ask_each(one, 0, 100))[-1].ejected == ("m1",)
    with pytest.raises(NotFoundError, match="m2"):
        one.readmit("m2")
    one.readmit("m1")
    assert not run(one.answer(question(0))).degraded
    assert run(ask_each(one, 0, 100))[-1].ejected == ("m1",)
    calls[LEAVES[1]].fault = None
    for when, ejected in ((10.0, ("m1",)), (19.9, ("m1",)), (20.0, ())):
        time[0] = when
        assert run(one.answer(question(0))).ejected == ejected


def test_a_wrong_member_that_the_tree_cannot_do_without_is_only_named() -> None:
    calls = table()
    calls[LEAVES[1]].fault = WRONG["permuted"]
    tree = TREE.model_copy(
        update={"members": tuple(m.model_copy(update={"required": m.name == "m1"}) for m in LEAVES)}
    )
    renamed = dict(zip(distinct(tree), calls.values(), strict=True))
    found = run(ask_each(contract(tree, renamed), 0, 100))[-1]
    assert (found.degraded, found.ejected, found.members) == (False, ("m1",), ("m0", "m1", "m2", "m3"))


def cascade(max_loss: float = 0.02) -> Cascade:
    """The worst member first, then the mix; 2,000 calibration rows grant the promise."""
    rough = Cascade(
        stages=(LEAVES[0], TREE.model_copy(update={"expected": None})),
        guarantee={"max_loss": max_loss, "confidence": 0.9},
    )
    fitted = fit(
        rough,
        dict(zip(LEAVES, FITTED.values(), strict=True)),
        LABELS,
        Metric(),
        "classification",
        calibration=({m: found[:2_000] for m, found in OUTPUTS.items()}, TRUTH[:2_000]),
    )
    assert isinstance(fitted, Cascade)
    assert fitted.certificate is not None
    assert fitted.certificate.granted
    return fitted


def served(tree: Cascade, calls: dict[Member, Table], **serving: Any) -> Contract:
    return contract(tree, dict(zip(distinct(tree), calls.values(), strict=True)), guard=None, **serving)


async def in_tens(one: Contract, calls: int) -> list[Answer]:
    found = []
    for number in range(calls):
        first = 2_000 + 10 * (number % 200)
        found.append(await one.answer(question(*range(first, first + 10), outputs=("exit_stage",))))
        await asyncio.sleep(0)
    await asyncio.sleep(0.05)
    return found


def test_early_exits_that_keep_their_promise_stay() -> None:
    one = served(cascade(), table(), audit=0.5)
    found = run(in_tens(one, 200))
    assert all(answer.early_exit for answer in found)
    early = np.mean([answer.outputs["exit_stage"] == 0 for answer in found])
    assert 0.2 < early < 1
    health = one.health()
    assert health["early_exit"]
    assert health["audited_rows"] > 500
    assert 0 < health["audited_loss"] < 0.02


def test_early_exits_that_lose_more_than_promised_switch_themselves_off_and_say_so() -> None:
    calls = table()
    # The first stage has become worse, and is as sure of itself as before.
    calls[LEAVES[0]].fault = WRONG["permuted"]
    one = served(cascade(), calls, audit=0.2)
    found = run(in_tens(one, 200))
    switched = next(number for number, answer in enumerate(found) if not answer.early_exit)
    assert switched < 100
    assert all(not answer.early_exit for answer in found[switched:])
    assert (found[-1].outputs["exit_stage"] == 1).all()
    assert found[-1].facts()["early_exit"] is False
    assert not one.health()["early_exit"]


def test_without_a_promise_or_a_share_nothing_is_audited() -> None:
    calls = table()
    one = served(cascade(), calls, audit=0)
    run(in_tens(one, 20))
    assert one.health()["audited_rows"] == 0
    asked = run_calls(CASCADE)
    assert asked == 1


def run_calls(tree: Cascade) -> int:
    """How often the last stage is asked for rows that all leave early."""
    last = Remote(B)
    lax = tree.model_copy(update={"thresholds": (0.0,)})
    one = Contract(spec(lax), {A: Remote(A), B: last}, ServingSettings(audit=1.0))
    run(one.answer(Question(INPUTS, 5)))
    return len(last.rows) + 1


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
    settings = ServingSettings(members={leaf.name: members for leaf in LEAVES}, replicas=2)
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
