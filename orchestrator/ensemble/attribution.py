"""What each member said in each row, and what that counted: explanation as arrays."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import (
    Boosting,
    Cascade,
    Member,
    Node,
    PooledNode,
    WeightedMix,
    children,
    leaves,
    walk_nodes,
)
from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import Floats, Rows, scores_of
from orchestrator.ensemble.contributions import first_stages, shares_of
from orchestrator.ensemble.gate import gate_shares
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.pooled import shares_without
from orchestrator.ensemble.quorum import answers_without
from orchestrator.ensemble.tree import Prediction, replay
from orchestrator.measure.tasks import class_rules, rules


def member_answers(tree: Node, prediction: Prediction, task: Task) -> npt.NDArray[np.float32]:
    """[N, M, K] each distinct member's probabilities, or values; zeros in rows that it did not answer. Of a
    boosting's later stages, which alone say nothing, those of the sum up to them."""
    sums, found = _sums(tree, prediction, task), []
    for member, mask in prediction.members.items():
        scores = sums.get(identity(member))
        if scores is None:
            said = prediction.said.get(member, np.zeros_like(prediction.outputs))
            scores = scores_of(said, task, member.temperature)
        chances = rules(task).probabilities(scores)
        found.append(np.where(mask[:, None], scores if chances is None else chances, 0.0))
    return np.stack(found, axis=1).astype(np.float32)


def member_weights(tree: Node, prediction: Prediction, task: Task) -> npt.NDArray[np.float32]:
    """[N, M] how much each distinct member counted in the answer to each row; a row's sum is 1.

    Through nested ensembles weights multiply. Of a cascade those stages count that the row's answer was made
    of, and of a boosting those that were summed. Class weights are those of the row's top class. Where a
    node's rule has no weights (votes, a median, a stack's meta-learner, a sum), its members count alike.
    """
    answered = np.stack(list(prediction.members.values()), axis=1)
    if answered.any(axis=0).sum() == 1:  # perhaps below the quorum, where the best alone is the whole answer
        return answered.astype(np.float32)
    weights = _weights(tree, _Said.of(prediction, task))
    keys = [identity(member) for member in prediction.members]
    found = np.zeros((len(prediction.outputs), len(keys)))
    for member, shares in weights.items():
        found[:, keys.index(member)] += shares
    return found.astype(np.float32)


def used(tree: Node, prediction: Prediction) -> list[Member]:
    """The distinct members whose answers to some row were made use of: not of who answered in vain, in an
    ensemble that lacks others or a boosting's stage behind a missing one."""
    answered = [member for member, rows in prediction.members.items() if rows.any()]
    missing = prediction.missing
    if not missing or not answers_without(tree, missing):  # complete, or the best alone
        return answered
    counted = _counted(tree, missing)
    return [member for member in answered if member in missing or identity(member) in counted]


def disagreement(
    answers: npt.NDArray[np.float32],
    weights: npt.NDArray[np.float32],
    prediction: Prediction,
    task: Task,
) -> npt.NDArray[np.float32]:
    """[N] share of the members, by weight, whose class, or whose labels, are not the answer's; of a
    regression their weighted standard deviation about the answer, the mean over targets.

    Args:
        answers: `member_answers`.
        weights: `member_weights`.
        prediction: The ensemble's.
        task: Which answers these are.
    """
    if prediction.probs is not None:
        kind = class_rules(task)
        said, own = kind.chosen(answers), kind.chosen(prediction.probs)
        differs = (said != own[:, None]).reshape(*answers.shape[:2], -1).any(axis=2)
        return np.asarray((weights * differs).sum(axis=1), np.float32)
    squared = np.square(answers - prediction.outputs[:, None, :])
    return np.asarray(np.sqrt((weights[:, :, None] * squared).sum(axis=1)).mean(axis=1), np.float32)


Weights = dict[tuple[str, str], Floats]
"""For each member's identity its weight [n] in each row."""


@dataclass(frozen=True, eq=False)
class _Said:
    """What members said to n rows, and who is missing."""

    outputs: Mapping[Member, Output]
    missing: Collection[Member]
    rows: int
    task: Task

    @classmethod
    def of(cls, prediction: Prediction, task: Task) -> _Said:
        return cls(prediction.said, prediction.missing, len(prediction.outputs), task)

    def cut(self, rows: Rows) -> _Said:
        outputs = {member: output[rows] for member, output in self.outputs.items()}
        return replace(self, outputs=outputs, rows=len(rows))

    def alive(self, node: Node) -> list[int]:
        """Positions of the children whose answers count."""
        return _alive(node, self.missing)


def _alive(node: Node, missing: Collection[Member]) -> list[int]:
    """Positions of the children that answer without these; of a boosting's stages only the first ones, up to
    one that is missing."""
    found = [place for place, child in enumerate(children(node)) if answers_without(child, missing)]
    if isinstance(node, Boosting):
        return [place for place, one in enumerate(found) if place == one]
    return found


def _counted(node: Node, missing: Collection[Member]) -> set[tuple[str, str]]:
    """Identities of the members whose answers count without these."""
    if isinstance(node, Member):
        return set(map(identity, leaves(node)))
    below = children(node)
    return set[tuple[str, str]]().union(*(_counted(below[place], missing) for place in _alive(node, missing)))


def _sums(tree: Node, prediction: Prediction, task: Task) -> dict[tuple[str, str], Floats]:
    """For each later stage of a boosting in the tree the scores [N, K] of the sum up to it."""
    said, asked = _Said.of(prediction, task), set(map(identity, prediction.said))
    found: dict[tuple[str, str], Floats] = {}
    for node in walk_nodes(tree):
        if not isinstance(node, Boosting):
            continue
        for place in said.alive(node)[1:]:
            if identity(node.members[place]) not in asked:  # a cascade whose rows all left before it
                continue
            first = first_stages(node, place + 1)
            found[identity(node.members[place])] = replay(first, said.outputs, task).scores
    return found


@singledispatch
def _weights(node: Node, said: _Said) -> Weights:
    assert isinstance(node, Member)
    return {identity(node): np.ones(said.rows)}


@_weights.register
def _of_pooled(node: PooledNode, said: _Said) -> Weights:
    found: Weights = {}
    alive = said.alive(node)
    for place, share in zip(alive, _shares(node, alive, said), strict=True):
        for member, own in _weights(node.members[place], said).items():
            found[member] = found.get(member, 0.0) + share * own
    return found


@_weights.register
def _of_cascade(node: Cascade, said: _Said) -> Weights:
    left, alive = replay(node, said.outputs, said.task).stages, said.alive(node)
    counts = np.stack([left == place if node.combine == "replace" else left >= place for place in alive])
    shares = counts / counts.sum(axis=0)
    found: Weights = {}
    for place, share in zip(alive, shares, strict=True):
        rows = np.flatnonzero(share)  # a stage was not asked for the others
        for member, own in _weights(node.stages[place], said.cut(rows)).items() if len(rows) else ():
            found.setdefault(member, np.zeros(said.rows))[rows] += share[rows] * own
    return found


@_weights.register
def _of_boosting(node: Boosting, said: _Said) -> Weights:
    leading = said.alive(node)
    found: Weights = {}
    for place in leading:
        for member, own in _weights(node.members[place], said).items():
            found[member] = found.get(member, 0.0) + own / len(leading)
    return found


def _shares(node: PooledNode, alive: list[int], said: _Said) -> Floats:
    """[len(alive), n or 1] weights of the members that answered."""
    if len(alive) < len(node.members):
        missing = tuple(place for place in range(len(node.members)) if place not in alive)
        shares = shares_without(node, missing).weights
        return np.array(shares or (1 / len(alive),) * len(alive))[:, None]
    return shares_in(node, said.outputs, said.task)


def shares_in(node: PooledNode, outputs: Mapping[Member, Output], task: Task) -> Floats:
    """[M, n or 1] what each member of a fitted node counts in each row, with all of them; class weights are
    those of the node's top class.

    Args:
        node: Whose members.
        outputs: Raw outputs [n, K] of every distinct member below.
        task: Which outputs these are.
    """
    if isinstance(node, WeightedMix) and node.gate is not None:
        stacked = np.stack([replay(child, outputs, task).scores for child in node.members])
        return gate_shares(stacked, np.array(node.gate), task)
    if isinstance(node, WeightedMix) and node.class_weights is not None and task == "classification":
        return np.array(node.class_weights)[:, replay(node, outputs, task).scores.argmax(axis=1)]
    return np.array(shares_of(node))[:, None]
