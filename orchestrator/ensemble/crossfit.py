"""Candidates judged on rows that nothing of them was fitted on.

The validation rows are cut into folds. Temperatures, mix weights and thresholds are fitted on all folds but
one and applied to that one; together the folds give an answer to every row (cross-fitting; Stone 1974,
"Cross-validatory choice and assessment of statistical predictions").

All arithmetic is float32 over arrays of whole folds. A candidate's tree has no weights or thresholds yet, and
its cascades let a given share of rows leave at each stage.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import (
    Cascade,
    Member,
    Node,
    Parallel,
    WeightedMix,
    children,
    with_children,
)
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import fit_temperature, left_out_steps
from orchestrator.ensemble.certainty import certainty
from orchestrator.ensemble.chances import TINY, chances_of, in_logs, of_truth, surest
from orchestrator.ensemble.combine import deviations
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.refit import Refits, choices_of, has_own_arithmetic
from orchestrator.ensemble.thresholds import ALL_LEAVE, NONE_LEAVES
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.ensemble.weights import likelihood_weights, squared_error_weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.intervals import Interval, percentile_interval, resamples
from orchestrator.measure.metrics import Statistic, larger_is_better, statistic
from orchestrator.measure.tasks import class_rules

Probs = npt.NDArray[np.float32]
"""[N, K] probabilities, or values of a regression."""
FOLDS = 5
BOOTSTRAPS = 400
"""Resamples of an interval."""


@dataclass(frozen=True)
class Candidate:
    """An ensemble, or one model, before it is fitted."""

    tree: Node
    """A member, any ensemble of members but a cascade, or a cascade of such."""
    shares: tuple[float, ...] = ()
    """Of a cascade: which share of the rows that reach a stage leaves there, for each stage but the last."""


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate and what it is worth on rows that it was not fitted on."""

    candidate: Candidate
    gain: float
    """The metric, negated where smaller is better."""
    inside: tuple[float, ...]
    """The gain on each fold alone."""
    outside: tuple[float, ...]
    """The gain on all rows but that fold's."""
    reach: tuple[float, ...]
    """By stage: the share of rows that get there; (1,) of everything but a cascade."""


@dataclass(frozen=True)
class Measured:
    """A candidate's figures on rows that it was not fitted on, with 95 % intervals."""

    value: float
    """The metric's own."""
    ci: Interval
    drop: float
    """How much worse than the reference; below 0 when better."""
    drop_ci: Interval


class Evidence:
    """The validation rows: what every member said, and what is true."""

    def __init__(
        self,
        outputs: dict[Member, npt.NDArray[np.floating[Any]]],
        targets: npt.NDArray[Any],
        metric: Metric,
        task: Task,
        *,
        seed: int = 0,
        folds: int = FOLDS,
        allowed: Collection[str] = (),
    ) -> None:
        """Cut the rows and calibrate the members.

        Args:
            outputs: Raw outputs [N, K] of every member.
            targets: Labels [N] or values [N, T].
            metric: What candidates are worth.
            task: Which targets these are.
            seed: Of the cut.
            folds: Number of folds.
            allowed: Import paths that the metric may come from.

        Raises:
            EnsembleError: fewer rows than two a fold.
        """
        if len(targets) < 2 * folds:
            raise EnsembleError(
                f"choosing needs at least {2 * folds} validation rows", len(targets), "use more data"
            )
        self.members = list(outputs)
        self.metric, self.task = metric, task
        self.larger = larger_is_better(metric)
        order = np.random.default_rng(seed).permutation(len(targets))
        self.targets = np.asarray(targets)[order]
        edges = np.linspace(0, len(targets), folds + 1).round().astype(int)
        # Rows of a fold stand together, so that a fold is a view of every array.
        self.folds = [slice(int(low), int(high)) for low, high in pairwise(edges)]
        self._allowed = allowed
        self._place = {identity(member): place for place, member in enumerate(self.members)}
        self._raw = [np.asarray(found)[order] for found in outputs.values()]
        said = dict(zip(self.members, self._raw, strict=True))
        self._refits = Refits(said, self.targets, metric, task, allowed)
        self.temperatures = [] if task == "regression" else list(map(self._temperature, self._raw))
        self._left_out: list[list[float]] = []
        calibrated = [self._calibrated(found, place) for place, found in enumerate(self._raw)]
        self._known = [np.stack([found[fold] for found in calibrated]) for fold in range(folds)]
        self._fitted: dict[tuple[Node, int], npt.NDArray[np.float32]] = {}
        self._answers: dict[Node, Probs] = {}
        self._sure: dict[Node, _Sure] = {}
        self._said: npt.NDArray[np.float32] | None = None

    def judge(self, candidate: Candidate) -> Judged:
        """The candidate's worth."""
        answer, reach = self.answer(candidate)
        at = self.statistic(answer)
        everything = np.ones(len(self.targets))
        inside, outside = [], []
        for fold in self.folds:
            mask = np.zeros(len(self.targets))
            mask[fold] = 1.0
            inside.append(self._gain(at(mask)))
            outside.append(self._gain(at(everything - mask)))
        return Judged(candidate, self._gain(at(everything)), tuple(inside), tuple(outside), reach)

    def answer(self, candidate: Candidate) -> tuple[Probs, tuple[float, ...]]:
        """Every row's answer [N, K] from a candidate that was fitted without it, and the reach by stage."""
        tree = candidate.tree
        if not isinstance(tree, Cascade):
            return self._out_of_fold(tree), (1.0,)
        rows = len(self.targets)
        # Of each fold, the other folds' rows that reach a stage; of all rows, those that do.
        others = np.stack([self._others(fold) for fold in range(len(self.folds))])
        here, reach = np.ones(rows, dtype=bool), []
        answer = self._stage(tree.stages[-1]).copy()
        for stage, share in zip(tree.stages, candidate.shares, strict=False):
            reach.append(float(here.mean()))
            sure = self._confidence(stage)
            for fold, part in enumerate(self.folds):
                order = sure.order[fold]
                rising = (
                    sure.rising[fold]
                    if stage is tree.stages[0]
                    else sure.values[fold][order[others[fold][order]]]
                )
                bound = threshold(rising, share)
                others[fold] &= sure.values[fold] < bound
                leaving = part.start + np.flatnonzero(here[part] & (sure.values[fold][part] >= bound))
                answer[leaving] = self._stage(stage)[leaving]
                here[leaving] = False
        return answer, (*reach, float(here.mean()))

    def intervals(self, found: Sequence[Judged], against: Judged) -> list[Measured]:
        """Intervals of candidates and of their drops against one of them: the paired bootstrap over rows.

        What was fitted in each fold stays as it is.
        """
        weights = list(resamples(len(self.targets), seed=0, count=BOOTSTRAPS))
        reference = self._resampled(against, weights)
        measured = []
        for one in found:
            gains = reference if one is against else self._resampled(one, weights)
            ends = sorted(self._value(end) for end in percentile_interval(gains))
            drop = against.gain - one.gain
            measured.append(
                Measured(
                    self._value(one.gain), (ends[0], ends[1]), drop, percentile_interval(reference - gains)
                )
            )
        return measured

    def fitted(self, candidate: Candidate) -> Node:
        """The candidate's tree with temperatures, weights and thresholds fitted on all rows."""
        tree = self._tempered(candidate.tree)
        if isinstance(tree, Cascade):
            here, stages, thresholds = np.ones(len(self.targets), dtype=bool), [], []
            for stage, share in zip(tree.stages, candidate.shares, strict=False):
                stages.append(self._refits.fit(stage))
                known = {leaf: self._outputs(leaf) for leaf in distinct(stage)}
                scores = replay(stages[-1], known, self.task).scores
                sure = certainty("confidence", scores, None, self.task)
                thresholds.append(threshold(np.sort(sure[here]), share))
                here &= sure < thresholds[-1]
            stages.append(tree.stages[-1])
            tree = tree.model_copy(update={"stages": tuple(stages), "thresholds": tuple(thresholds)})
        return self._refits.fit(tree)

    def with_choices(self, tree: Node) -> Node:
        """The tree with its strength and the kind of its calibration, but no weights, as on all rows."""
        chosen = choices_of(self._refits.fit(self._tempered(tree)))
        return tree.model_copy(update=chosen) if chosen else tree

    @property
    def size(self) -> int:
        """Numbers that a member says: rows x outputs."""
        return int(self._raw[0].size)

    def _outputs(self, member: Member) -> npt.NDArray[np.floating[Any]]:
        return self._raw[self._place[identity(member)]]

    def statistic(self, answer: Probs) -> Statistic:
        """The metric of an answer as a function of row weights."""
        outputs = answer if self.task == "regression" else in_logs(answer, self.task)
        return statistic(self.metric, outputs, self.targets, allowed=self._allowed)

    def mixed_loss(
        self, members: Sequence[Member], counts: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        """Losses [C] of mixtures whose weights are `counts` [C, M], rows not summing to 0, over their sums.

        Mean negative log-likelihood, or squared error over the targets' variance.
        """
        weights = counts / counts.sum(axis=1, keepdims=True)
        if self._said is None:
            self._said = self._of_truth()
        known = self._said[[self._place[identity(member)] for member in members]]
        mixed = (weights.astype(np.float32) @ known.reshape(len(known), -1)).astype(np.float64)
        if self.task != "regression":
            return np.asarray(-np.log(np.maximum(mixed, TINY)).mean(axis=1))
        return np.asarray(np.square(mixed).mean(axis=1))

    def _of_truth(self) -> npt.NDArray[np.float32]:
        """What a mixture's loss depends on: chance of the truth [M, N] ([M, N * K] of labels), or scaled
        error [M, N, T]."""
        whole = np.concatenate([self._known[fold][:, rows] for fold, rows in enumerate(self.folds)], axis=1)
        if self.task != "regression":
            return of_truth(whole, self.targets, self.task)
        truth = self.targets.reshape(len(self.targets), -1)
        return np.asarray((whole - truth) / deviations(truth), dtype=np.float32)

    def _gain(self, value: float) -> float:
        return value if self.larger else -value

    def _value(self, gain: float) -> float:
        return gain if self.larger else -gain

    def _resampled(self, one: Judged, weights: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
        at = self.statistic(self.answer(one.candidate)[0])
        return np.array([self._gain(at(drawn)) for drawn in weights])

    def _tempered(self, node: Node, fold: int | None = None) -> Node:
        """The node with its members' temperatures, those of all rows but a fold's."""
        if isinstance(node, Member):
            if self.task == "regression":
                return node
            place = self._place[identity(node)]
            known = self.temperatures[place] if fold is None else self._left_out[place][fold]
            return node.model_copy(update={"temperature": known})
        return with_children(node, [self._tempered(child, fold) for child in children(node)])

    def _calibrated(self, raw: npt.NDArray[Any], place: int) -> npt.NDArray[np.float32]:
        """A member's probabilities [folds, N, K], with the temperature of all rows but each fold's.

        That is the temperature of all rows and one Newton step: leaving out a fold changes it by little.
        """
        if self.task == "regression":
            return np.broadcast_to(raw.astype(np.float32), (len(self.folds), *raw.shape))
        temperature = self.temperatures[place]
        scaled = raw.astype(np.float32) / np.float32(temperature)
        kind = class_rules(self.task)
        rows, labels = kind.as_classes(scaled), kind.classes(self.targets)
        share = len(labels) // len(self.targets)
        others = [np.repeat(self._others(fold), share) for fold in range(len(self.folds))]
        steps = left_out_steps(rows, chances_of(rows, "classification"), labels, temperature, others)
        self._left_out.append([temperature * math.exp(step) for step in steps])
        return np.stack([chances_of(scaled * np.float32(math.exp(-step)), self.task) for step in steps])

    def _temperature(self, raw: npt.NDArray[Any]) -> float:
        kind = class_rules(self.task)
        return fit_temperature(kind.as_classes(raw), kind.classes(self.targets))

    def _under(self, node: Node, fold: int, rows: slice) -> Probs:
        """Answers to some rows of a node that was fitted without the fold."""
        if not has_own_arithmetic(node):
            tree = self._tempered(node, fold)
            return np.asarray(self._refits.answer(tree, fold, self._others(fold), rows), dtype=np.float32)
        known = self._known[fold]
        if isinstance(node, Member):
            one: Probs = known[self._place[identity(node)], rows]
            return one
        assert isinstance(node, Parallel | WeightedMix)
        places = [self._places_of(child) for child in node.members]
        if isinstance(node, Parallel):
            return np.asarray(sum(known[place, rows] for place in places) / np.float32(len(places)))
        weights = self._weights(node, fold)
        return np.asarray(
            sum(weight * known[place, rows] for weight, place in zip(weights, places, strict=True))
        )

    def _others(self, fold: int) -> npt.NDArray[np.bool_]:
        """Mask [N] of the rows outside of a fold."""
        mask = np.ones(len(self.targets), dtype=bool)
        mask[self.folds[fold]] = False
        return mask

    def _places_of(self, child: Node) -> int:
        assert isinstance(child, Member)
        return self._place[identity(child)]

    def _weights(self, node: WeightedMix, fold: int) -> npt.NDArray[np.float32]:
        if (node, fold) not in self._fitted:
            others = self._others(fold)
            known = self._known[fold][[self._places_of(child) for child in node.members]][:, others]
            targets = self.targets[others]
            if self.task == "regression":
                values = [member.astype(np.float64) for member in known]
                found = squared_error_weights(values, targets, self.task)
            else:
                # The likelihood looks at the probability of the truth alone: one column is enough.
                truth = np.maximum(of_truth(known, targets, self.task), TINY)
                columns = [np.log(chances.astype(np.float64))[:, None] for chances in truth]
                rows = truth.shape[1]
                prior = (node.prior or 0) * rows // len(targets)
                found = likelihood_weights(columns, np.zeros(rows, dtype=np.int64), prior)
            self._fitted[node, fold] = np.asarray(found, dtype=np.float32)
        return self._fitted[node, fold]

    def _out_of_fold(self, node: Node) -> Probs:
        """Answers [N, K] of a member, mean or mix, each row's fitted without it."""
        return np.concatenate([self._under(node, fold, rows) for fold, rows in enumerate(self.folds)])

    def _stage(self, node: Node) -> Probs:
        """The same of a cascade's stage, which many cascades share."""
        if node not in self._answers:
            self._answers[node] = self._out_of_fold(node)
        return self._answers[node]

    def _confidence(self, stage: Node) -> _Sure:
        if stage not in self._sure:
            whole = slice(0, len(self.targets))
            # Exact in float64, so that a threshold can lie between neighbours.
            values = np.stack(
                [surest(self._under(stage, fold, whole), self.task) for fold in range(len(self.folds))]
            ).astype(np.float64)
            order = values.argsort(axis=1)
            known = zip(values, order, map(self._others, range(len(self.folds))), strict=True)
            self._sure[stage] = _Sure(values, order, [one[by[others[by]]] for one, by, others in known])
        return self._sure[stage]


@dataclass(frozen=True, eq=False)
class _Sure:
    """A stage's top probabilities, of every row fitted without each of the folds."""

    values: npt.NDArray[np.float64]
    """[folds, N]"""
    order: npt.NDArray[np.intp]
    """[folds, N], rising."""
    rising: list[npt.NDArray[np.float64]]
    """By fold, the other folds' values in that order: many cascades begin with the same stage."""


def threshold(ordered: npt.NDArray[np.float64], share: float) -> float:
    """The confidence that about `share` of the rows reach, midway between two that were observed.

    Rows of one confidence cannot be told apart: they all stay. Where that leaves nobody, none leaves.

    Args:
        ordered: Confidences, rising.
        share: 0 to 1.
    """
    place = len(ordered) - round(share * len(ordered))
    if 0 < place < len(ordered) and ordered[place] == ordered[place - 1]:
        place = int(np.searchsorted(ordered, ordered[place], side="right"))
    if place >= len(ordered):
        return NONE_LEAVES
    return float((ordered[place - 1] + ordered[place]) / 2 if place > 0 else ALL_LEAVE)
