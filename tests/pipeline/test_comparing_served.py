"""Which served answers are held against those in process: all, but where a vote or an exit is on the edge."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.config.ensemble import Ensemble, Parallel
from orchestrator.ensemble.tree import replay
from orchestrator.errors import DiffersError
from orchestrator.pipeline.serving import compare, decision_margins
from tests.deployments.models import MIX, PARALLEL, A, B, spec
from tests.ensemble.toys import cascade, mix

# Member a is sure of no row but the first; b always is.
ROWS = 4
OUTPUTS = {
    A: np.array([[2.0, 0.0], [1e-5, 0.0], [0.0, 1e-5], [0.0, 0.01]], np.float32),
    B: np.array([[3.0, 0.0], [3.0, 0.0], [3.0, 0.0], [0.0, 3.0]], np.float32),
}
CERTAIN_MEAN = (1 / (1 + np.exp(-3.0)) + 0.5) / 2
"""How sure b and an undecided member are together."""
VOTE = Parallel(members=(A, B), rule="vote")
ON_EDGE = [False, True, True, False]


@pytest.mark.parametrize(
    ("tree", "on_edge"),
    [
        (VOTE, ON_EDGE),
        (mix(VOTE, B, weights=(0.5, 0.5)), ON_EDGE),
        (cascade(VOTE, B, thresholds=(0.9,)), ON_EDGE),
        (cascade(PARALLEL, B, thresholds=(0.9,), criterion="agreement"), ON_EDGE),
        (cascade(PARALLEL, B, thresholds=(0.9,)), [False] * ROWS),
        (cascade(A, B, thresholds=(0.50001,)), [False, True, True, False]),
        (cascade(B, A, B, thresholds=(0.9, 0.50001)), [False] * ROWS),
        (cascade(B, A, B, thresholds=(0.99, 0.50001), combine="mean"), [False] * ROWS),
        (cascade(B, A, B, thresholds=(0.99, CERTAIN_MEAN), combine="mean"), [False, True, True, False]),
        (Parallel(members=(A, B), rule="weighted_vote", weights=(0.0, 1.0)), [False] * ROWS),
        (MIX, [False] * ROWS),
    ],
    ids=[
        "vote",
        "nested",
        "stage",
        "agreement",
        "confidence",
        "exit",
        "left before",
        "mean",
        "mean's exit",
        "no voter",
        "mix",
    ],
)
def test_only_rows_whose_votes_are_on_the_edge_are_left_out(tree: Ensemble, on_edge: list[bool]) -> None:
    found = replay(tree, OUTPUTS, "classification").probs
    assert found is not None
    margins = decision_margins(spec(tree), OUTPUTS)
    assert compare(spec(tree), found, found, margins) == sum(on_edge)
    for row in range(ROWS):
        other = found.copy()
        other[row] += 2e-5
        if on_edge[row]:
            assert compare(spec(tree), other, found, margins) == sum(on_edge)
        else:
            with pytest.raises(DiffersError, match="small: a served answer differs"):
                compare(spec(tree), other, found, margins)


@pytest.mark.parametrize(("threshold", "left_out"), [(0.9998767, ROWS), (0.99988, 0), (2.0, 0)])
def test_sure_rows_are_compared_though_all_lie_beside_the_threshold(threshold: float, left_out: int) -> None:
    tree = cascade(A, B, thresholds=(threshold,))
    sure = np.tile(np.array([9.0, 0.0], np.float32), (ROWS, 1))  # a certainty of 0.99987661
    outputs = {A: sure, B: OUTPUTS[B]}
    found = replay(tree, outputs, "classification").probs
    assert found is not None
    assert compare(spec(tree), found, found, decision_margins(spec(tree), outputs)) == left_out


def test_an_answer_that_is_no_number_differs() -> None:
    found = np.full((ROWS, 2), 0.5, np.float32)
    broken = found.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DiffersError):
        compare(spec(), broken, found, np.full(ROWS, np.inf))
