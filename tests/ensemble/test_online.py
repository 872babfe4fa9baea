"""Weights from delayed labels: the stated bounds hold, late, missing and wrong labels do no harm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.online import MISSING, Online, begin, regret_bound, update
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from tests.ensemble.toys import MEMBERS, outputs, values

EQUAL = (0.25,) * 4


def stream(rows: int, changes: int, seed: int = 0) -> tuple[list[Floats], Any, Any]:
    """Four members of which one is good, another one after each change: scores, labels, and which is good."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=rows)
    good = (np.arange(rows) * (changes + 1) // rows) % 4
    scores = []
    for member in range(4):
        skill = np.where(good == member, 4.0, 0.0)
        scores.append(log_softmax(rng.normal(size=(rows, 3)) + skill[:, None] * np.eye(3)[labels]))
    return scores, labels, good


def losses(weights: Floats, scores: list[Floats], labels: Any) -> Floats:
    """Half the Brier score [N] of mixes with weights [N, 4] or [4]."""
    mean = np.einsum("nm,mnk->nk", np.broadcast_to(weights, (len(labels), 4)), np.exp(np.stack(scores)))
    return np.asarray(np.square(mean - np.eye(3)[labels]).sum(axis=1) / 2)


def followed(state: Online, scores: list[Floats], labels: Any) -> tuple[Floats, Online]:
    """The weights [N, 4] that each row was answered with, when its label comes right after."""
    used = []
    for row in range(len(labels)):
        used.append(state.weights)
        state = update(state, [found[row : row + 1] for found in scores], labels[row : row + 1])
    return np.array(used), state


@pytest.mark.parametrize("changes", [0, 1, 3])
def test_the_regret_bound_holds_while_the_best_member_changes(changes: int) -> None:
    scores, labels, good = stream(1200, changes)
    floor, moved = 0.05, changes * 0.95
    rate = math.sqrt(2 * (1 + moved) * math.log(4 / floor) / 1200)
    start = begin(EQUAL, rate=rate, floor=floor)
    used, _ = followed(start, scores, labels)
    best = (1 - floor) * np.eye(4)[good] + floor / 4
    regret = losses(used, scores, labels).sum() - losses(best, scores, labels).sum()
    assert regret <= regret_bound(start, 1200, moved)
    # And it is of use: it has most of what the best sequence has over equal weights.
    equal = losses(np.array(EQUAL), scores, labels).sum() - losses(best, scores, labels).sum()
    assert regret < 0.5 * equal


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 2.0), st.floats(0.01, 0.9))
def test_the_bound_and_the_floor_hold_for_any_labels(seed: int, rate: float, floor: float) -> None:
    rng = np.random.default_rng(seed)
    scores = [log_softmax(5 * rng.normal(size=(60, 3))) for _ in range(4)]
    # The worst labels: where the weights at that moment have the least.
    state, used, labels = begin(EQUAL, rate=rate, floor=floor), [], []
    for row in range(60):
        mean = np.array(state.weights) @ np.exp(np.stack([found[row] for found in scores]))
        label = int(mean.argmin()) if row % 3 else int(rng.integers(3))
        used.append(state.weights)
        labels.append(label)
        state = update(state, [found[row : row + 1] for found in scores], np.array([label]))
        assert min(state.weights) >= floor / 4 * (1 - 1e-12)
        assert sum(state.weights) == pytest.approx(1)
    truth = np.array(labels)
    mine = losses(np.array(used), scores, truth).sum()
    start = begin(EQUAL, rate=rate, floor=floor)
    for member in range(4):
        fixed = (1 - floor) * np.eye(4)[member] + floor / 4
        assert mine <= losses(fixed, scores, truth).sum() + regret_bound(start, 60) + 1e-9
    # Each single answer, whatever was learned before it.
    rows = np.arange(60)
    answered = np.log(np.einsum("nm,mnk->nk", np.array(used), np.exp(np.stack(scores))))[rows, truth]
    alike = pool(scores, None, "classification")[rows, truth]
    assert (answered >= alike - math.log(1 / floor) - 1e-9).all()
    best = np.max([found[rows, truth] for found in scores], axis=0)
    assert (answered >= best - math.log(4 / floor) - 1e-9).all()


def test_a_stable_stream_leads_to_weights_of_least_squared_error() -> None:
    table, labels = outputs(rows=4000, classes=3)
    scores = [log_softmax(table[member]) for member in MEMBERS]
    state = update(begin(EQUAL, rate=0.05, floor=0.01), scores, labels)
    learned = losses(np.array(state.weights), scores, labels).mean()
    assert learned < losses(np.array(EQUAL), scores, labels).mean()
    assert learned < min(losses(np.eye(4)[member], scores, labels).mean() for member in range(4)) + 0.002


def test_batches_cut_in_any_way_lead_to_the_same_weights() -> None:
    scores, labels, _ = stream(120, 1)
    whole = update(begin(EQUAL), scores, labels)
    state = begin(EQUAL)
    for rows in np.split(np.arange(120), [1, 30, 31, 99]):
        state = update(state, [found[rows] for found in scores], labels[rows])
    assert state.weights == whole.weights
    assert (state.epoch, state.rows) == (5, 120)
    assert (whole.epoch, whole.rows) == (1, 120)


def test_missing_labels_count_as_rows_that_never_came() -> None:
    scores, labels, _ = stream(200, 1)
    known = np.random.default_rng(0).random(200) < 0.4
    some = update(begin(EQUAL), scores, np.where(known, labels, MISSING))
    assert some == update(begin(EQUAL), [found[known] for found in scores], labels[known])
    state = begin(EQUAL)
    assert update(state, scores, np.full(200, MISSING)) == state


def test_labels_that_come_late_and_out_of_order_still_find_the_best_member() -> None:
    scores, labels, _ = stream(900, 0)
    in_order = update(begin(EQUAL), scores, labels)
    rng = np.random.default_rng(1)
    late = np.argsort(np.arange(900) + rng.integers(0, 300, size=900))
    state = begin(EQUAL)
    for rows in np.array_split(late, 20):
        state = update(state, [found[rows] for found in scores], labels[rows])
    assert state.epoch == 20
    assert state.weights[0] == max(state.weights) > 0.8
    np.testing.assert_allclose(state.weights, in_order.weights, atol=0.05)


def test_the_state_is_plain_data_and_goes_on_after_a_round_trip() -> None:
    scores, labels, _ = stream(60, 1)
    half = update(begin((0.0, 0.0, 0.5, 0.5)), [found[:30] for found in scores], labels[:30])
    assert min(half.weights) >= half.floor / 4 * (1 - 1e-12)
    again = Online.model_validate_json(half.model_dump_json())
    assert again == half
    rest = ([found[30:] for found in scores], labels[30:])
    assert update(again, *rest) == update(half, *rest)


def test_the_order_of_members_does_not_matter() -> None:
    scores, labels, _ = stream(100, 1)
    turned = update(begin(EQUAL), scores[::-1], labels).weights
    np.testing.assert_allclose(turned[::-1], update(begin(EQUAL), scores, labels).weights, atol=1e-12)


def test_a_regression_is_learned_and_one_wild_value_does_not_ruin_it() -> None:
    table, truth = values(rows=800)
    scores = [table[member].astype(np.float64) for member in MEMBERS]
    scale = truth.std(axis=0).tolist()
    start = begin(EQUAL, scale=scale)
    state = update(start, scores, truth)
    assert state.weights[3] == max(state.weights)
    assert state.weights[3] > 0.4
    wild = update(state, [found[:1] for found in scores], np.array([[1e9, -1e9]]))
    assert np.abs(np.array(wild.weights) - state.weights).max() < 0.2
    holes = truth.copy()
    holes[::2, 0] = np.nan
    assert update(start, scores, holes) == update(start, [found[1::2] for found in scores], truth[1::2])
    column = update(begin(EQUAL, scale=scale[:1]), [found[:, :1] for found in scores], truth[:, 0])
    assert column == update(begin(EQUAL, scale=scale[:1]), [found[:, :1] for found in scores], truth[:, :1])


def test_what_does_not_fit_is_refused() -> None:
    scores, labels, _ = stream(10, 0)
    with pytest.raises(EnsembleError, match=r"give one array \[N, K\] for each of 4 members"):
        update(begin(EQUAL), scores[:3], labels)
    with pytest.raises(EnsembleError, match=r"label out of range: 3\. labels are 0 to 2"):
        update(begin(EQUAL), scores, labels + (labels == 2))
    with pytest.raises(EnsembleError, match="label out of range: -5"):
        update(begin(EQUAL), scores, np.where(np.arange(10) == 3, -5, labels))
    scores[1][4] = np.nan
    with pytest.raises(EnsembleError, match="not finite"):
        update(begin(EQUAL), scores, labels)
    assert update(begin(EQUAL), scores, np.where(np.arange(10) == 4, MISSING, labels)).rows == 9
