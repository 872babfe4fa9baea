"""What every kind of node has: its part of the walk, and how it is fitted.

A kind registers its two functions with `answer_uncalibrated` and `fit_uncalibrated` in a module of its own;
nothing else knows it. What holds for every kind, calibration, is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Combined, Member, Node
from orchestrator.config.measure import Metric
from orchestrator.config.signature import Task
from orchestrator.ensemble.calibrate import calibrated, fit_scaling
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.ensemble.sight import beside
from orchestrator.errors import EnsembleError, QuorumError

Output = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Ask:
    """A question to one member: its outputs for `rows` (indices into the request, rising, never empty)."""

    member: Member
    rows: Rows
    seen: npt.NDArray[np.float32] | None = None
    """[len(rows), E] what the members that it sees said of these rows; None of one that sees inputs alone."""

    def of(self, inputs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What the member gets [len(rows), ...] of the request's inputs [N, ...]."""
        mine = inputs if len(self.rows) == len(inputs) else inputs[self.rows]
        return mine if self.seen is None else beside(mine, self.seen)


@dataclass(frozen=True, eq=False)
class Answer:
    """A node's answer to the rows that it was asked for."""

    scores: Floats
    """[n, K] log-probabilities (classification) or values."""
    stages: npt.NDArray[np.int64]
    """[n] stage of a cascade that each row left at; 0 of every other kind."""
    agreement: Floats | None = None
    """[n] share of an ensemble's members, by weight, that say what it says; None where that means nothing."""


Reply = Output | QuorumError
"""What a member gave for an ask: raw outputs [n, K], or why there are none."""
Steps = Generator[tuple[Ask, ...], tuple[Reply, ...], Answer]
"""Yields asks that may be answered at the same time, receives one reply for each.

Raises QuorumError when too few members below gave a sound answer; the node above may do without this one.
"""


@singledispatch
def answer_uncalibrated(node: Node, rows: Rows, task: Task) -> Steps:
    """Steps of one node over `rows`; every kind of node registers its own."""
    raise EnsembleError(f"no walk for {type(node).__name__} ({task}, {len(rows)} rows)")


def answer(node: Node, rows: Rows, task: Task) -> Steps:
    """Steps of one node over `rows`, which end in its calibrated answer."""
    found = yield from answer_uncalibrated(node, rows, task)
    if isinstance(node, Combined) and node.calibration is not None:
        return replace(found, scores=calibrated(node.calibration, found.scores, task))
    return found


def at_once(scores: Floats, agreement: Floats | None = None) -> Answer:
    """The answer of a node without stages."""
    return Answer(scores, np.zeros(len(scores), dtype=np.int64), agreement)


def together(
    children: Sequence[Steps], check: Callable[[Mapping[int, QuorumError]], None]
) -> Generator[tuple[Ask, ...], tuple[Reply, ...], dict[int, Floats]]:
    """Run the children side by side: whatever each waits for is asked in one tuple.

    A child with several rounds (a cascade) makes the others wait only for its own later rounds.

    Args:
        children: Their steps, not yet started.
        check: Given why children have no answer, by position, raises when the others are too few. It is
            called after each round that lost one, so that a lost cause asks nothing more.

    Returns:
        Scores of the children that answered, by position.
    """
    waiting = {position: next(steps) for position, steps in enumerate(children)}
    scores: dict[int, Floats] = {}
    lost: dict[int, QuorumError] = {}
    while waiting:
        replies = iter((yield tuple(ask for asks in waiting.values() for ask in asks)))
        for position, asks in list(waiting.items()):
            mine = tuple(next(replies) for _ in asks)
            try:
                waiting[position] = children[position].send(mine)
            except StopIteration as done:
                del waiting[position]
                scores[position] = done.value.scores
            except QuorumError as error:
                del waiting[position]
                lost[position] = error
        if lost:
            check(lost)
    return dict(sorted(scores.items()))


@dataclass(frozen=True, eq=False)
class Ground:
    """What a node is fitted on."""

    outputs: Mapping[tuple[str, str], Output]
    """Raw outputs by identity: fitting a member changes the leaf, not what it answers."""
    targets: npt.NDArray[Any]
    metric: Metric
    task: Task
    allowed: Collection[str]
    scores: Callable[[Node], Floats]
    """Scores [N, K] that a fitted node gives on all rows."""
    cost: Callable[[Member], float] | None = None
    """What one row costs a member, in any unit; None where it is not known."""
    unseen: Ground | None = None
    """The calibration part: rows that nothing is fitted on. Guarantees alone look at them."""
    folded: Ground | None = None
    """The train part, each row answered by members that were trained without its fold."""


@singledispatch
def fit_uncalibrated(node: Node, ground: Ground) -> Node:
    """One node fitted but for its calibration; every kind of node registers its own."""
    raise EnsembleError(f"no fit for {type(node).__name__} ({ground.task})")


@singledispatch
def fit_survivors(fitted: Node, given: Node, ground: Ground) -> Node:  # noqa: ARG001
    """The fitted node, which was `given`, with what it does when members are missing; by default the same."""
    return fitted


def fit_node(node: Node, ground: Ground) -> Node:
    """One node fitted, and all below it."""
    fitted = fit_uncalibrated(node, ground)
    if isinstance(fitted, Combined) and fitted.calibration is not None:
        if ground.task == "regression":
            raise EnsembleError(
                "only a classification is calibrated", fitted.calibration.kind, "leave calibration out"
            )
        scores = ground.scores(fitted.model_copy(update={"calibration": None}))
        scaling = fit_scaling(fitted.calibration, scores, ground.targets, ground.task)
        fitted = fitted.model_copy(update={"calibration": scaling})
    return fit_survivors(fitted, node, ground)


def fit_all(nodes: Sequence[Node], ground: Ground) -> tuple[Node, ...]:
    """Every child fitted."""
    return tuple(fit_node(node, ground) for node in nodes)


def identity(member: Member) -> tuple[str, str]:
    """What makes two leaves the same predictor: artifact (or name, before it is known) and execution."""
    return member.digest or member.name, member.execution
