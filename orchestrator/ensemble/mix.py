"""All members answer every row, each with its weight: fixed, one for each class, or chosen by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from orchestrator.config.ensemble import MixRule, Node, WeightedMix
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.combine import Floats, pool
from orchestrator.ensemble.gate import fit_gate, gated
from orchestrator.ensemble.greedy import greedy_weights
from orchestrator.ensemble.log_pool import log_pool_weights
from orchestrator.ensemble.node import Ground, fit_all, fit_uncalibrated
from orchestrator.ensemble.objective import Objective
from orchestrator.ensemble.per_class import by_class, fit_class_weights
from orchestrator.ensemble.pooled import fit_weights, pooled
from orchestrator.ensemble.weights import Weights, shared_weights, squared_error_weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax
from orchestrator.measure.tasks import class_rules


@pooled.register
def _pooled(node: WeightedMix, scores: Sequence[Floats], weights: Weights | None, task: Task) -> Floats:
    """Class weights and a gate are for all members together: without some, the others have weights that are
    alike for all rows and classes."""
    complete = len(scores) == len(node.members)
    if complete and node.class_weights is not None:
        return by_class(np.stack(scores), np.array(node.class_weights), task)
    if complete and node.gate is not None:
        return gated(np.stack(scores), np.array(node.gate), task)
    return pool(scores, weights, task, _fixed(node.rule))


@fit_weights.register
def _weights(node: WeightedMix, scores: Sequence[Floats], ground: Ground) -> Weights:
    """Alike for all rows and classes."""
    objective = _objective(node, ground)
    rule = _fixed(node.rule)
    if node.method == "greedy":
        return greedy_weights(*objective.additive(scores, rule), node.rounds, node.bags)
    if rule == "logits":
        kind = class_rules(ground.task)
        return log_pool_weights([kind.as_classes(one) for one in scores], kind.classes(ground.targets))
    if node.method == "squared_error":
        return squared_error_weights(scores, objective.truth, ground.task)
    if node.prior is not None and ground.task == "regression":
        raise EnsembleError("the prior of a weighted mix belongs to classification; the task is", ground.task)
    return shared_weights(scores, objective.truth, ground.task, node.prior or 0)


@fit_uncalibrated.register
def _fit(node: WeightedMix, ground: Ground) -> Node:
    members = fit_all(node.members, ground)
    fitted = node.model_copy(update={"members": members})
    if fitted.unfitted() is None:
        return fitted
    scores = [ground.scores(member) for member in members]
    if node.rule == "auto":
        return _likelier(fitted, scores, ground)
    if node.method == "per_class":
        classes = fit_class_weights(scores, _objective(node, ground), node.weights, node.strength)
        more = {"weights": classes.shared, "strength": classes.strength, "class_weights": classes.fitted}
    elif node.method == "gate":
        gate = fit_gate(scores, _objective(node, ground), node.weights, node.strength)
        more = {"weights": gate.shared, "strength": gate.strength, "gate": gate.fitted}
    else:
        more = {"weights": fit_weights(node, scores, ground)}
    return fitted.model_copy(update=more)


def _likelier(node: WeightedMix, scores: Sequence[Floats], ground: Ground) -> Node:
    """The mix under the rule that makes the ground's rows likelier, each with weights of its own, unless
    these are given, and with a temperature, where a calibration follows."""
    kind = class_rules(ground.task)
    labels = kind.classes(ground.targets)

    def under(rule: MixRule) -> tuple[float, WeightedMix]:
        mix = node.model_copy(update={"rule": rule})
        if mix.weights is None:
            mix = mix.model_copy(update={"weights": fit_weights(mix, scores, ground)})
        found = kind.as_classes(pooled(mix, scores, mix.weights, ground.task))
        if node.calibration is not None:
            found = log_softmax(found / fit_temperature(found, labels))
        return -float(found[np.arange(len(labels)), labels].mean()), mix

    return min((under("mean"), under("logits")), key=lambda found: found[0])[1]


def _fixed(rule: MixRule) -> Literal["mean", "logits"]:
    if rule == "auto":
        raise EnsembleError("the rule of a weighted mix is not chosen yet", rule, "fit the ensemble first")
    return rule


def _objective(node: WeightedMix, ground: Ground) -> Objective:
    metric = ground.metric if node.objective == "metric" else None
    return Objective(ground.targets, ground.task, metric, ground.allowed)
