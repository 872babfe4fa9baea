"""A guard against members that answer plausibly but wrongly: other labels, stale weights, noise.

NaN, wrong shapes and wild values are refused in each answer (`quorum.problem`). What looks like an answer is
held against the others': a member is opposed by two others that agree on another class, as much as the less
sure of them is sure (of several labels each counts as two classes, and the mean is taken); or, for values, as
far as it lies outside of what the two span, in units of its own deviation and at most 1. A wrong member is
opposed more than before, and makes nobody else look wrong, since no other agrees with it. How much each pair
opposes a member is recorded where the tree is fitted.

In service each request is a bet against "on average opposed no more than recorded" (`betting`). An ensemble
of sound members loses one wrongly at most once in `every` requests on average, whenever one looks. That
holds for requests like the rows of the record: when inputs drift, members part too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Record
from orchestrator.config.ensemble import Member, Node, children, with_children
from orchestrator.config.signature import Task
from orchestrator.ensemble.betting import NOTHING, Evidence, grown, log_capital
from orchestrator.ensemble.combine import Floats, deviations, scores_of
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.tree import Prediction
from orchestrator.measure.intervals import wilson
from orchestrator.measure.tasks import class_rules

EVERY = 100_000.0
"""Requests between wrong ejections from one ensemble, on average at least."""
FLOOR = 0.01
"""Least that is recorded: one disagreement of members that never disagreed proves nothing."""
CERTAINTY = 0.9973
"""Of what is recorded, as an upper bound (three standard errors)."""


@dataclass(frozen=True)
class Watch:
    """What is known about an ensemble's members so far; plain data."""

    evidence: tuple[Evidence, ...]
    """For each distinct member."""
    ejected: tuple[int, ...] = ()
    """Positions of members that were ejected, in that order."""


def start(members: int) -> Watch:
    """Nothing is known about so many members."""
    return Watch((NOTHING,) * members)


def observe(watch: Watch, excess: Sequence[float | None], spare: int, every: float = EVERY) -> Watch:
    """The watch after one more request; it names a member more where one gave itself away.

    Args:
        watch: Before.
        excess: One a member, see the function of that name.
        spare: How many members the ensemble can still do without. With none, nobody is ejected.
        every: Requests between wrong ejections, on average at least.
    """
    evidence = [
        known if ratio is None else grown(known, ratio)
        for known, ratio in zip(watch.evidence, excess, strict=True)
    ]
    capital = [log_capital(known) for known in evidence]
    worst = int(np.argmax(capital))
    if spare < 1 or capital[worst] < math.log(every * len(evidence)):
        return Watch(tuple(evidence), watch.ejected)
    # What the others' bets rested on included pairs with this one: they start again.
    return Watch(start(len(evidence)).evidence, (*watch.ejected, worst))


def readmitted(watch: Watch, member: int) -> Watch:
    """The watch after the member at this position may answer again; all evidence starts again."""
    left = tuple(position for position in watch.ejected if position != member)
    return Watch(start(len(watch.evidence)).evidence, left)


def excess(prediction: Prediction, task: Task) -> list[float | None]:
    """How much each distinct member was opposed in one request, over what is recorded.

    None: it has no record, did not answer, or fewer than two others did.
    """
    return excesses([prediction], task)[0]


def excesses(predictions: Sequence[Prediction], task: Task) -> list[list[float | None]]:
    """`excess` of several requests to one tree, worked out together: one alone costs about as much."""
    joined = _joined(predictions)
    ends = np.cumsum([len(prediction.outputs) for prediction in predictions])
    members = [member.record for member in joined.members]
    opposed = _opposed(joined, task, [record.scales if record else () for record in members])
    found: list[list[float | None]] = [[] for _ in predictions]
    for record, (shares, met) in zip(members, opposed, strict=True):
        counts = np.add.reduceat(met, [0, *ends[:-1]], axis=1, dtype=np.int64)
        usual = np.asarray(record.opposed) @ counts if record else np.zeros(len(ends))
        seen = np.add.reduceat((shares * met).sum(axis=0), [0, *ends[:-1]])
        for line, one, most in zip(found, seen.tolist(), usual.tolist(), strict=True):
            line.append(one / most if most > 0 else None)
    return found


def _joined(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction of the rows of all; members that answered some have zeros in the other rows."""
    if len(predictions) == 1:
        return predictions[0]
    first = predictions[0]

    def said(prediction: Prediction, member: Member) -> Output:
        return prediction.said.get(member, np.zeros_like(prediction.outputs))

    return replace(
        first,
        outputs=np.concatenate([prediction.outputs for prediction in predictions]),
        members={
            member: np.concatenate([prediction.members[member] for prediction in predictions])
            for member in first.members
        },
        said={
            member: np.concatenate([said(prediction, member) for prediction in predictions])
            for member in first.members
        },
    )


def records(prediction: Prediction, outputs: Mapping[Member, Output], task: Task) -> dict[Member, Record]:
    """The record of each distinct member, where the tree was fitted.

    Args:
        prediction: The tree's: whom it asked for a row decides who met whom.
        outputs: Raw outputs [N, K] of every member on all rows, also those that it was not asked for: a
            cascade asks its later stages for hard rows, and an audit, or other thresholds, for easy ones.
        task: Which outputs these are.
    """
    scales = [
        tuple(deviations(outputs[member].astype(np.float64)).tolist()) if task == "regression" else ()
        for member in prediction.members
    ]
    found = {}
    for member, own, (shares, met) in zip(
        prediction.members, scales, _opposed(prediction, task, scales), strict=True
    ):
        found[member] = Record(
            outputs=outputs[member].shape[1],
            low=float(outputs[member].min()),
            high=float(outputs[member].max()),
            scales=own,
            opposed=tuple(_bound(line[mask]) for line, mask in zip(shares, met, strict=True)),
        )
    return found


def _bound(shares: Floats) -> float:
    """Upper bound of the mean of shares in 0..1; 1 where there are none."""
    return round(max(wilson(shares.sum(), len(shares), CERTAINTY)[1], FLOOR), 4) if len(shares) else 1.0


def _opposed(
    prediction: Prediction, task: Task, scales: Sequence[tuple[float, ...]]
) -> Iterator[tuple[Floats, npt.NDArray[np.bool_]]]:
    """For each member how much each pair of others opposes it [P, N], and where all three answered [P, N]."""
    shape = prediction.outputs.shape
    said = np.stack(
        [
            scores_of(prediction.said.get(member, np.zeros(shape)), task, member.temperature)
            for member in prediction.members
        ]
    )
    answered = np.stack(list(prediction.members.values()))
    rows = shape[0]
    if task != "regression":
        kind = class_rules(task)
        found = kind.as_classes(said)
        labels, sure = found.argmax(axis=2), found.max(axis=2)
    for own, scale in enumerate(scales):
        others = [number for number in range(len(said)) if number != own]
        pairs = np.array(list(combinations(others, 2)), dtype=int).reshape(-1, 2)
        one, other = pairs.T
        if task == "regression":
            least, most = np.minimum(said[one], said[other]), np.maximum(said[one], said[other])
            outside = np.maximum(np.maximum(said[own] - most, least - said[own]), 0.0) / np.array(scale)
            shares = np.minimum(outside, 1.0).mean(axis=2)
        else:
            against = (labels[one] == labels[other]) & (labels[one] != labels[own])
            shares = against * np.exp(np.minimum(sure[one], sure[other]))
            shares = kind.by_row(shares, rows).mean(axis=2)
        yield shares, answered[own] & answered[one] & answered[other]


def with_records(tree: Node, known: Mapping[tuple[str, str], Record]) -> Node:
    """The tree with these records of its members, by identity, and no others."""
    if isinstance(tree, Member):
        return tree.model_copy(update={"record": known.get(identity(tree))})
    return with_children(tree, [with_records(child, known) for child in children(tree)])
