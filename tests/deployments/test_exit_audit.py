"""Early exits that are audited while a cascade serves."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np

from deployments.contract import Contract
from deployments.exchange import Answer, Question
from orchestrator.config.ensemble import Cascade, Member
from orchestrator.config.measure import Metric
from orchestrator.config.serving import ServingSettings
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import distinct
from tests.deployments.models import CASCADE, A, B, spec
from tests.deployments.remotes import INPUTS, Remote, run
from tests.deployments.ten import (
    FITTED,
    LABELS,
    LEAVES,
    OUTPUTS,
    TREE,
    TRUTH,
    WRONG,
    Table,
    contract,
    question,
    table,
)


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
    # Nor where all rows leave early: the last stage is not even asked in the background.
    last = Remote(B)
    lax = CASCADE.model_copy(update={"thresholds": (0.0,)})
    unpromised = Contract(spec(lax), {A: Remote(A), B: last}, ServingSettings(audit=1.0))

    async def test() -> None:
        await unpromised.answer(Question(INPUTS, 5))
        await asyncio.sleep(0.05)

    run(test())
    assert last.rows == []
