"""Members that answer plausibly but wrongly are ejected, and come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from deployments.contract import Contract
from deployments.exchange import Answer
from orchestrator.config.serving import GuardSettings
from orchestrator.ensemble.tree import distinct
from tests.deployments.remotes import run
from tests.deployments.ten import (
    LEAVES,
    OUTPUTS,
    TREE,
    WRONG,
    contract,
    oracle,
    question,
    table,
)
from tests.ensemble.likely import ABILITY, likely


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
        if run(one.answer(question(row))).ejected:
            assert one._watchman is not None
            for position in one._watchman.ejected:
                one._watchman.readmit(position)
                wrong += 1
    assert wrong <= 5


def test_an_ejected_member_comes_back_with_a_clean_sheet_and_after_a_probation_that_doubles() -> None:
    calls, time = table(), [0.0]
    one = contract(calls=calls, now=lambda: time[0], guard=GuardSettings(probation_s=10))
    calls[LEAVES[1]].fault = WRONG["permuted"]
    assert run(ask_each(one, 0, 100))[-1].ejected == ("m1",)
    assert one._watchman is not None
    one._watchman.readmit(next(iter(one._watchman.ejected)))
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
