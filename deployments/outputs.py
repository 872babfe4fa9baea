"""From a prediction to an answer: the arrays that every answer has, explanation for those who ask for it, and
what it says about itself."""

from __future__ import annotations

from collections.abc import Collection, Set
from dataclasses import dataclass, replace

import numpy as np

from deployments.exchange import Answer
from orchestrator.config.ensemble import Combined, Spec
from orchestrator.ensemble.attribution import disagreement, member_answers, member_weights, used
from orchestrator.ensemble.conformal import sets_of
from orchestrator.ensemble.reject import rejected
from orchestrator.ensemble.tree import Prediction
from orchestrator.measure.tasks import class_rules

EXPLANATIONS = ("member_probs", "member_weights", "exit_stage", "disagreement")
"""Outputs about the members, worked out only when one of them is asked for."""
PREDICTION_SET = "prediction_set"
REJECTED = "rejected"


def answer(
    prediction: Prediction,
    spec: Spec,
    wanted: Collection[str] = (),
    *,
    ejected: tuple[str, ...] = (),
    early_exit: bool = True,
) -> Answer:
    """A prediction as an answer with the outputs that are wanted; see `outputs_of` and `Answer`."""
    return Answer(
        outputs_of(prediction, spec, wanted),
        tuple(member.name for member in used(spec.tree, prediction)),
        spec.weight_epoch,
        degraded=bool(prediction.degraded.any()),
        missing=tuple(member.name for member in prediction.missing),
        ejected=ejected,
        expected=_expected(spec, prediction),
        early_exit=early_exit,
    )


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """One request's rows of a prediction that several requests share; use `shared`."""

    whole: Prediction
    common: Answer | None
    """The answer to all rows; None where they differ in who answered them."""
    rows: slice

    def __len__(self) -> int:
        length: int = self.rows.stop - self.rows.start
        return length

    def __getitem__(self, rows: slice) -> Part:
        start = self.rows.start
        return Part(self.whole, self.common, slice(start + rows.start, start + rows.stop))

    def answer(self, spec: Spec, wanted: Set[str] = frozenset()) -> Answer:
        """The answer to these rows, with the outputs that are wanted."""
        common = self.common
        if common is None or not wanted <= common.outputs.keys():
            return answer(self.whole[self.rows], spec, wanted)
        if len(self) == len(self.whole):
            return common
        return common.with_outputs({name: values[self.rows] for name, values in common.outputs.items()})


def shared(prediction: Prediction, spec: Spec, version: str) -> Part:
    """A prediction whose rows are several requests': what their answers have in common is made once."""
    common = None
    if all(mask.all() for mask in prediction.members.values()) and not prediction.degraded.any():
        common = replace(answer(prediction, spec), version=version)
    return Part(prediction, common, slice(0, len(prediction)))


def outputs_of(prediction: Prediction, spec: Spec, wanted: Collection[str] = ()) -> dict[str, np.ndarray]:
    """A prediction of N rows as the protocol's outputs.

    Always `probabilities` [N, K] and `label` [N], of several labels `labels` [N, K] (those more probable than
    not), or `values` [N, K] of a regression, and `rejected` [N] of a tree that has it fitted. Of M distinct
    members on request:

    - `member_probs` [N, M, K]: what each said (of a regression values); zeros in rows that it was not
      asked for, or did not answer;
    - `member_weights` [N, M]: what that counted;
    - `exit_stage` [N]: where the row left the cascade, 0 if the root is none;
    - `disagreement` [N]: share of the members, by weight, that say another class, or other labels, than the
      answer; of a regression their deviation;
    - `prediction_set` [N, K]: which classes are in the row's set, of a tree that has them fitted.

    Args:
        prediction: the ensemble's.
        spec: what made it.
        wanted: names; those unknown are passed over.
    """
    found: dict[str, np.ndarray]
    task = spec.signature.task
    if prediction.probs is None:
        found = {"values": prediction.outputs}
    else:
        found = {"probabilities": prediction.probs}
        found["labels" if task == "multilabel" else "label"] = class_rules(task).chosen(prediction.probs)
    if not set(EXPLANATIONS).isdisjoint(wanted):
        answers = member_answers(spec.tree, prediction, task)
        weights = member_weights(spec.tree, prediction, task)
        found |= {
            "member_probs": answers,
            "member_weights": weights,
            "exit_stage": prediction.stages,
            "disagreement": disagreement(answers, weights, prediction, task),
        }
    dropped = rejected(spec.tree, prediction)
    found |= {} if dropped is None else {REJECTED: dropped}
    if PREDICTION_SET in wanted and prediction.probs is not None:
        inside = sets_of(spec.tree, prediction.probs)
        found |= {} if inside is None else {PREDICTION_SET: inside}
    return found


def _expected(spec: Spec, prediction: Prediction) -> tuple[str, float] | None:
    """The metric and its value for the members that answered; of a custom one without its path."""
    known = spec.tree.expected if isinstance(spec.tree, Combined) else None
    if known is None or prediction.expected is None:
        return None
    return known.metric.rpartition(":")[2], prediction.expected.value
