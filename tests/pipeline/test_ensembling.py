"""What a run says about an ensemble that it fitted."""

from __future__ import annotations

from orchestrator.config.ensemble import Boosting, Parallel, Stacking, WeightedMix
from orchestrator.pipeline.ensembling import describe
from tests.ensemble.toys import A, B, C


def test_the_line_about_members_says_how_they_are_combined() -> None:
    inner = Parallel(members=(B, C), rule="median")
    assert describe(inner) == "median of b, c"
    votes = Parallel(members=(A, B), rule="weighted_vote", weights=(0.25, 0.75))
    assert describe(votes) == "weighted_vote of 0.250 a, 0.750 b"
    mix = WeightedMix(members=(A, inner), method="greedy", weights=(0.5, 0.5))
    stack = Stacking(policy="stacking", members=(A, mix))
    assert describe(stack) == "stack of a, weighted_mix(a, parallel(b, c))"
    boosting = Boosting(policy="boosting", base="a", members=(A, B), factors=(1.0, 0.25))
    assert describe(boosting) == "sum of 1 a, 0.25 b"
    assert describe(mix) == "by greedy: 0.500 a, 0.500 parallel(b, c)"
