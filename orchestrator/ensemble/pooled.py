"""Ensembles whose members all answer every row: with all of them, and without some."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import singledispatch

import numpy as np

from orchestrator.config.calibration import Survivors, TemperatureScaling, VectorScaling
from orchestrator.config.ensemble import Combined, Node, PooledNode
from orchestrator.config.signature import Task
from orchestrator.ensemble import quorum
from orchestrator.ensemble.calibrate import COARSE, calibrated, fit_temperature
from orchestrator.ensemble.certainty import agreement_of
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.missing import MOST, Missing, by_trend, fit_trend, sets_of
from orchestrator.ensemble.node import (
    Ground,
    Steps,
    answer,
    answer_uncalibrated,
    at_once,
    fit_survivors,
    together,
)
from orchestrator.ensemble.weights import Weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import class_rules, rules


@singledispatch
def pooled(node: PooledNode, scores: Sequence[Floats], weights: Weights | None, task: Task) -> Floats:
    """Scores [N, K] of members that answered made into one; every kind registers its own.

    Args:
        node: Decides how.
        scores: One array [N, K] a member that answered, in their order.
        weights: Of these members; None: they count alike, or the node's rule has no weights.
        task: What the scores are.
    """
    raise EnsembleError(f"no rule for {type(node).__name__} ({task}, {len(scores)} members, {weights})")


@singledispatch
def fit_weights(
    node: PooledNode,  # noqa: ARG001
    scores: Sequence[Floats],  # noqa: ARG001
    ground: Ground,  # noqa: ARG001
) -> Weights | None:
    """Weights of members with these scores [N, K] on the ground's rows, by the node's rule; or none."""
    return None


@answer_uncalibrated.register
def _answer(node: PooledNode, rows: Rows, task: Task) -> Steps:
    if (missing := node.unfitted()) is not None:
        raise EnsembleError(missing, None, "fit the ensemble first")
    parts = yield from together(
        [answer(member, rows, task) for member in node.members],
        lambda lost: quorum.check(node.members, node.quorum, lost),
    )
    found, weights = list(parts.values()), given_weights(node)
    if len(parts) == len(node.members):
        scores = pooled(node, found, weights, task)
    else:
        scores = _without(node, parts, task)
    shares = weights or (1 / len(node.members),) * len(node.members)
    # What it says is what its own calibration makes of that; only this kind may change the class.
    kind = node.calibration
    said = calibrated(kind, scores, task) if isinstance(kind, VectorScaling) else scores
    return at_once(scores, agreement_of(found, said, [shares[place] for place in parts], task))


def _without(node: PooledNode, parts: Mapping[int, Floats], task: Task) -> Floats:
    """The answer of the members that are left, with weights and temperature for exactly these."""
    missing = tuple(position for position in range(len(node.members)) if position not in parts)
    known = shares_without(node, missing)
    scores = pooled(node, list(parts.values()), known.weights, task)
    return scores if known.temperature == 1.0 else rules(task).normalized(scores / known.temperature)


def shares_without(node: PooledNode, missing: Missing) -> Survivors:
    """Weights and temperature of the members that are left without those at these positions."""
    known = next((found for found in node.survivors if found.without == missing), None)
    if known is not None:
        return known
    log_temperature = by_trend(node.trend, missing) if node.trend else 0.0
    weights = renormalized(given_weights(node), missing)
    return Survivors(without=missing, weights=weights, temperature=math.exp(log_temperature))


def given_weights(node: PooledNode) -> Weights | None:
    """Weights that a node has; some kinds have none."""
    weights: Weights | None = getattr(node, "weights", None)
    return weights


def renormalized(weights: Weights | None, missing: Missing) -> Weights | None:
    """Weights of the members that are left; alike when all weight was on the missing ones."""
    if weights is None:
        return None
    left = np.delete(np.asarray(weights), missing)
    shares = left / left.sum() if left.sum() > 0 else np.full(len(left), 1 / len(left))
    return tuple(shares.tolist())


@fit_survivors.register
def _fit_survivors(fitted: PooledNode, given: PooledNode, ground: Ground) -> Node:
    """For each set of missing members that the quorum allows: weights, refitted unless they were given, and
    a temperature, if the node is calibrated. Of more than `MOST` members: weights renormalized, and the
    rule of `missing` for the logarithm of the temperature."""
    if fitted.quorum is None or fitted.survivors or fitted.trend:
        return fitted
    count, least = len(fitted.members), fitted.quorum
    scores = [ground.scores(member) for member in fitted.members]

    def survivors(missing: Missing, refit: bool) -> Survivors:
        left = [member for position, member in enumerate(scores) if position not in missing]
        weights = fit_weights(fitted, left, ground) if refit else renormalized(given_weights(fitted), missing)
        temperature = temperature_before(fitted, pooled(fitted, left, weights, ground.task), ground)
        return Survivors(without=missing, weights=weights, temperature=temperature)

    if count <= MOST:
        allowed = [found for found in sets_of(count) if quorum.tolerates(fitted.members, least, found)]
        refit = given_weights(given) is None
        return fitted.model_copy(update={"survivors": tuple(survivors(found, refit) for found in allowed)})
    if fitted.calibration is None:
        return fitted

    def change(missing: Missing) -> float | None:
        allowed = quorum.tolerates(fitted.members, least, missing)
        return math.log(survivors(missing, refit=False).temperature) if allowed else None

    return fitted.model_copy(update={"trend": fit_trend(count, count - least, change)})


def temperature_before(node: Combined, scores: Floats, ground: Ground) -> float:
    """The temperature that members' scores need before the node's calibration; 1 if it has none."""
    scaling = node.calibration
    if scaling is None:
        return 1.0
    kind = class_rules(ground.task)
    labels = kind.classes(ground.targets)
    if isinstance(scaling, TemperatureScaling) and scaling.temperature is not None:
        # One temperature after another is their product.
        return fit_temperature(kind.as_classes(scores / scaling.temperature), labels, steps=COARSE)
    return fit_temperature(
        kind.as_classes(scores), labels, lambda divided: calibrated(scaling, log_softmax(divided)), COARSE
    )
