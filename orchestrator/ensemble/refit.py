"""Ensembles of every kind fitted without some rows, by the library itself.

For kinds that cross-fitting has no arithmetic of its own for: slower, so for few candidates.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Combined, Member, Node, Parallel, Stacking, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.tree import distinct, replay


def has_own_arithmetic(node: Node) -> bool:
    """Whether cross-fitting has a short way: a member, or a plain mean or mix of members."""
    if isinstance(node, Member):
        return True
    plain = isinstance(node, Parallel) and node.rule == "mean"
    mixed = isinstance(node, WeightedMix) and (node.rule, node.method) == ("mean", "likelihood")
    if not isinstance(node, Parallel | WeightedMix) or not (plain or mixed) or node.calibration is not None:
        return False
    return all(isinstance(member, Member) for member in node.members)


def choices_of(fitted: Node) -> dict[str, Any]:
    """What of a fitted node takes a search: its strength, and the kind of its calibration without numbers."""
    chosen: dict[str, Any] = {}
    if isinstance(fitted, Stacking | WeightedMix) and fitted.strength is not None:
        chosen["strength"] = fitted.strength
    if isinstance(fitted, Combined) and fitted.calibration is not None:
        chosen["calibration"] = type(fitted.calibration)()
    return chosen


class Refits:
    """Fits on given rows, each made once."""

    def __init__(
        self,
        outputs: Mapping[Member, Output],
        targets: npt.NDArray[Any],
        metric: Metric,
        task: Task,
        allowed: Collection[str],
    ) -> None:
        """Keep what members said [N, K] of every row, and the truth."""
        self._outputs = {identity(member): found for member, found in outputs.items()}
        self._targets, self._metric, self._task, self._allowed = targets, metric, task, allowed
        self._fitted: dict[tuple[Node, int], Node] = {}

    def fit(self, tree: Node, rows: slice | npt.NDArray[np.bool_] = slice(None)) -> Node:
        """The tree fitted on some rows, by default on all."""
        outputs = self._said(tree, rows)
        return fit(tree, outputs, self._targets[rows], self._metric, self._task, allowed=self._allowed)

    def answer(self, tree: Node, fold: int, others: npt.NDArray[np.bool_], rows: slice) -> Output:
        """Probabilities or values [n, K] for some rows of the tree as fitted on a fold's `others` [N]."""
        if (tree, fold) not in self._fitted:
            self._fitted[tree, fold] = self.fit(tree, others)
        fitted = self._fitted[tree, fold]
        found = replay(fitted, self._said(fitted, rows), self._task)
        return found.outputs if found.probs is None else found.probs

    def _said(self, tree: Node, rows: slice | npt.NDArray[np.bool_]) -> dict[Member, Output]:
        return {leaf: self._outputs[identity(leaf)][rows] for leaf in distinct(tree)}
