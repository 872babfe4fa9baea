"""Trees of every kind, rule and method over three or four made-up members, for the conformance tests.

A new kind, rule or method adds its line to `TREES`, and to `REGRESSION` if it takes values. `LABELS` are
those for several labels a row.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from orchestrator.config.ensemble import (
    TASK_METHODS,
    TASK_RULES,
    Boosting,
    Chain,
    Combined,
    Ensemble,
    Later,
    Member,
    Method,
    Node,
    Parallel,
    Rule,
    Stacking,
    WeightedMix,
    children,
    leaves,
    with_children,
)
from orchestrator.config.model import Mlp
from orchestrator.ensemble.quorum import answers_without
from tests.ensemble.toys import A, B, C, D, cascade, mix, outputs, parallel, values

TABLE, TARGETS = outputs(rows=80, classes=3)
VALUES, TRUTH = values(rows=80)

MEMBERS = (A, B, C)
WEIGHTS = (0.2, 0.3, 0.5)
CLASS_WEIGHTS = ((0.1, 0.7, 0.2), (0.6, 0.1, 0.3), (0.3, 0.2, 0.5))
GATE = ((0.3, 0.2, -0.5, 1.0), (-0.1, 0.4, 0.3, 0.5), (0.2, -0.3, 0.1, 2.0))


def stack(outputs: int) -> Stacking:
    """Alike for all classes, as a test renames them; values stay between those of the members."""
    blocks = [share * np.eye(outputs) for share in (0.4, -0.05, 0.3)] + [np.zeros((1, outputs))]
    return Stacking(policy="stacking", members=MEMBERS, coefficients=tuple(map(tuple, np.vstack(blocks))))


BOOSTING = Boosting(policy="boosting", base="a", rounds=3, members=MEMBERS, factors=(0.5, 0.2, 0.3))
"""Factors of sum 1, so that values stay between those of the members."""
SEER = Member(name="e", digest="e" * 64, sees=(A, B))
CHAIN = Chain(policy="chain", members=(A, B, SEER), later=(Later(model=Mlp()),))
TABLE[SEER], VALUES[SEER] = TABLE[D], VALUES[D]
RULES: dict[str, Ensemble] = {
    rule: Parallel(members=MEMBERS, rule=rule, weights=WEIGHTS if rule == "weighted_vote" else None)
    for rule in get_args(Rule)
}
METHODS: dict[str, Ensemble] = {
    method: WeightedMix(
        members=MEMBERS,
        method=method,
        weights=WEIGHTS,
        class_weights=CLASS_WEIGHTS if method == "per_class" else None,
        gate=GATE if method == "gate" else None,
    )
    for method in get_args(Method)
}
TREES: dict[str, Ensemble] = {
    **RULES,
    **METHODS,
    "log_mix": WeightedMix(members=MEMBERS, rule="logits", weights=WEIGHTS),
    "by_metric": WeightedMix(members=MEMBERS, method="greedy", objective="metric", bags=3, weights=WEIGHTS),
    "cascade": cascade(A, B, C, thresholds=(0.6, 0.8)),
    "cascade_by_margin": cascade(A, B, C, thresholds=(0.3, 0.5), criterion="margin"),
    "cascade_by_entropy": cascade(A, B, C, thresholds=(0.2, 0.4), criterion="entropy"),
    "cascade_by_agreement": cascade(
        parallel(A, B), mix(A, B, C, weights=(0.2, 0.3, 0.5)), D, thresholds=(1.0, 0.7), criterion="agreement"
    ),
    "cascade_of_means": cascade(A, B, C, thresholds=(0.6, 0.8), combine="mean"),
    "stacking": stack(3),
    "boosting": BOOSTING,
    "chain": CHAIN,
    "cascade_to_chain": cascade(A, CHAIN, thresholds=(0.6,)),
    "mix_of_boosting": mix(BOOSTING, D, weights=(0.6, 0.4)),
    "cascade_to_mix": cascade(A, mix(A, D, weights=(0.3, 0.7)), thresholds=(0.7,)),
    "mix_of_cascades": mix(
        cascade(A, C, thresholds=(0.7,)), cascade(B, D, thresholds=(0.6,)), weights=(0.4, 0.6)
    ),
    "deep": parallel(
        cascade(A, parallel(B, mix(C, D, weights=(0.5, 0.5))), thresholds=(0.8,)),
        mix(A, D, weights=(1.0, 0.0)),
    ),
}
REGRESSION: dict[str, Ensemble] = {
    **{rule: RULES[rule] for rule in TASK_RULES["regression"]},
    **METHODS,
    "per_class": METHODS["per_class"].model_copy(
        update={"class_weights": ((0.1, 0.7), (0.6, 0.1), (0.3, 0.2))}
    ),
    "gate": METHODS["gate"].model_copy(update={"gate": tuple(row[:3] for row in GATE)}),
    "stacking": stack(2),
    "boosting": BOOSTING,
    "chain": CHAIN,
}
LABELS: dict[str, Ensemble] = {
    **{rule: RULES[rule] for rule in TASK_RULES["multilabel"]},
    **{method: METHODS[method] for method in TASK_METHODS["multilabel"]},
    **{
        name: tree
        for name, tree in TREES.items()
        if name.startswith(("cascade", "mix_of_c", "deep", "by_m", "log_mix"))
    },
}
del LABELS["cascade_to_chain"]


def every(trees: dict[str, Ensemble]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tree", trees.values(), ids=trees.keys())


def unfitted(node: Node) -> Node:
    """The tree without what was fitted."""
    fitted = ("weights", "class_weights", "gate", "thresholds", "coefficients")
    cleared = node.model_copy(update={name: None for name in fitted if hasattr(node, name)})
    return with_children(cleared, list(map(unfitted, children(node)))) if node.below else node


def lenient(node: Node) -> Node:
    """The tree in which one member is enough for every node."""
    if not isinstance(node, Combined):
        return node
    return with_children(node, [lenient(child) for child in children(node)]).model_copy(update={"quorum": 1})


def dispensable(tree: Node) -> list[Member]:
    """Members without which the lenient tree answers: all but those that others are nothing without."""
    return [member for member in leaves(tree) if answers_without(lenient(tree), [member])]
