"""The arrays of an answer: those that every answer has, and explanation for those who ask for it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from orchestrator.config.ensemble import Spec
from orchestrator.ensemble.attribution import disagreement, member_answers, member_weights
from orchestrator.ensemble.tree import Prediction

EXPLANATIONS = ("member_probs", "member_weights", "exit_stage", "disagreement")
"""Outputs that are worked out only when they are asked for."""


def outputs_of(prediction: Prediction, spec: Spec, wanted: Collection[str] = ()) -> dict[str, np.ndarray]:
    """A prediction of N rows as the protocol's outputs.

    Always `probabilities` [N, K] and `label` [N], or `values` [N, K] of a regression. Of M distinct members
    on request:

    - `member_probs` [N, M, K]: what each said (of a regression values); zeros in rows that it was not
      asked for, or did not answer;
    - `member_weights` [N, M]: what that counted;
    - `exit_stage` [N]: where the row left the cascade, 0 if the root is none;
    - `disagreement` [N]: share of the members, by weight, that say another class than the answer; of a
      regression their deviation.

    Args:
        prediction: the ensemble's.
        spec: what made it.
        wanted: names; those unknown are passed over.
    """
    found: dict[str, np.ndarray]
    if prediction.probs is None:
        found = {"values": prediction.outputs}
    else:
        labels = prediction.probs.argmax(axis=1).astype(np.int64)
        found = {"probabilities": prediction.probs, "label": labels}
    if not set(EXPLANATIONS).isdisjoint(wanted):
        task = spec.signature.task
        answers, weights = member_answers(prediction, task), member_weights(spec.tree, prediction, task)
        found |= {
            "member_probs": answers,
            "member_weights": weights,
            "exit_stage": prediction.stages,
            "disagreement": disagreement(answers, weights, prediction),
        }
    return found
