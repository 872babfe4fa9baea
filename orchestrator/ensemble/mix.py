"""All members answer every row, each with its weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.config.ensemble import Node, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.pooled import Weights, fit_weights, pooled
from orchestrator.ensemble.weights import likelihood_weights, squared_error_weights
from orchestrator.errors import EnsembleError


@pooled.register
def _pooled(_: WeightedMix, scores: Sequence[Floats], weights: Weights, task: Task) -> Floats:
    if weights is None:
        raise EnsembleError("weighted_mix has no weights", None, "fit the ensemble first")
    return pool(scores, weights, task)


@fit_weights.register
def _weights(_: WeightedMix, scores: Sequence[Floats], ground: Ground) -> Weights:
    if ground.task == "classification":
        return likelihood_weights(scores, ground.targets)
    return squared_error_weights(scores, ground.targets.astype(np.float64))


@fit_uncalibrated.register
def _fit(node: WeightedMix, ground: Ground) -> Node:
    members = fit_all(node.members, ground)
    weights = node.weights or fit_weights(node, [ground.scores(member) for member in members], ground)
    return node.model_copy(update={"members": members, "weights": weights})
