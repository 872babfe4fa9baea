"""Temperatures: the optimum, finite where every row is right, and what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.ensemble import Member
from orchestrator.ensemble.calibrate import RANGE, fit_temperature
from orchestrator.ensemble.combine import pool
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.weights import likelihood_weights
from orchestrator.measure.metrics import log_softmax
from tests.ensemble.toys import MEMBERS, outputs

TABLE, TARGETS = outputs(rows=2000)


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_no_other_temperature_is_likelier(member: Member) -> None:
    logits = TABLE[member].astype(np.float64)
    best = fit_temperature(logits, TARGETS)

    def loss(temperature: float) -> float:
        likelihood = log_softmax(logits / temperature)[np.arange(len(TARGETS)), TARGETS].mean()
        return float(np.log(temperature) ** 2 / len(TARGETS) - likelihood)

    grid = np.geomspace(*RANGE, 300)
    assert loss(best) <= min(loss(temperature) for temperature in grid) + 1e-9


def test_scaled_logits_get_the_scale_as_temperature() -> None:
    logits = TABLE[MEMBERS[3]]
    base = fit_temperature(logits, TARGETS)
    assert fit_temperature(logits * 3, TARGETS) == pytest.approx(base * 3, rel=0.01)


def test_it_stays_finite_where_every_row_is_right_or_wrong() -> None:
    right = np.eye(4)[TARGETS]
    assert RANGE[0] < fit_temperature(right, TARGETS) < 1
    assert 1 < fit_temperature(-right * 5, TARGETS) < RANGE[1] + 1e-6


def test_a_shy_better_member_is_not_outvoted_once_calibrated() -> None:
    """The case it is for: label smoothing made the best member unsure, another one is loud."""
    worse, better = TABLE[MEMBERS[0]] * 3, TABLE[MEMBERS[3]] / 4

    def accuracy(members: list[Output]) -> float:
        mixed = pool([log_softmax(member) for member in members], None, "classification")
        return float((mixed.argmax(1) == TARGETS).mean())

    scaled = [member / fit_temperature(member, TARGETS) for member in (worse, better)]
    assert accuracy(scaled) > accuracy([worse, better]) + 0.05
    assert likelihood_weights([log_softmax(member) for member in scaled], TARGETS)[1] > 0.8
