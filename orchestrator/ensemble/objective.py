"""What a fit makes small on the validation rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import MixRule
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.weights import errors_of
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.measure.tasks import class_rules, rules

Loss = tuple[float, ...]
"""Compared from the left, smaller is better: ties in a metric are broken by likelihood."""
LEAST = 1e-300
"""Probability in place of one that rounds to zero, so that every loss is finite."""


@dataclass(frozen=True, eq=False)
class Objective:
    """Negative log-likelihood (regression: scaled squared error), after the metric where there is one."""

    targets: npt.NDArray[Any]
    """Classes [N], labels [N, K], or values [N, T] ([N] for one)."""
    task: Task
    metric: Metric | None = None
    allowed: Collection[str] = ()
    """Import paths that the metric may come from."""

    @property
    def truth(self) -> npt.NDArray[Any]:
        """Classes [N], labels [N, K], or float64 values [N, T]."""
        if self.task != "regression":
            return self.targets
        return self.targets.astype(np.float64).reshape(len(self.targets), -1)

    def part(self, rows: Rows) -> Objective:
        """The same on some of the rows."""
        return Objective(self.targets[rows], self.task, self.metric, self.allowed)

    def of_rows(self, scores: Floats) -> Floats:
        """The loss [N] of each row without the metric."""
        if self.task != "regression":
            return class_rules(self.task).losses(scores, self.targets)
        errors = errors_of([scores], self.truth, "regression").reshape(scores.shape)
        return np.asarray(np.square(errors).mean(axis=1))

    def loss(self, scores: Floats) -> Loss:
        """The loss of scores [N, K]."""
        return (*self._of_metric(scores), float(self.of_rows(scores).mean()))

    def additive(
        self, scores: Sequence[Floats], rule: MixRule = "mean"
    ) -> tuple[Floats, Callable[[Floats], Loss]]:
        """Arrays of the members [M, ...], and the loss of a weighted mean of them under a mix's rule.

        As small as the objective allows: without a metric only the label's probability matters.
        """
        if rule == "logits":
            return np.stack(scores), lambda mean: self.loss(rules(self.task).normalized(mean))
        if self.task == "regression":
            if self.metric is None:
                return errors_of(scores, self.truth, "regression"), lambda mean: (
                    float(np.square(mean).mean()),
                )
            return np.stack(scores), self.loss
        kind, shape = class_rules(self.task), scores[0].shape
        if self.metric is None:
            likely = np.exp(np.stack([kind.likelihoods(member, self.targets) for member in scores]))
            return likely, lambda mean: (-float(np.log(np.maximum(mean, LEAST)).mean()),)
        chances = np.exp(np.stack([kind.as_classes(member) for member in scores]))
        return chances, lambda mean: self.loss(kind.from_classes(np.log(np.maximum(mean, LEAST)), shape))

    def _of_metric(self, scores: Floats) -> Loss:
        if self.metric is None:
            return ()
        value = score(self.metric, scores, self.targets, allowed=self.allowed)
        return (-value if larger_is_better(self.metric) else value,)
