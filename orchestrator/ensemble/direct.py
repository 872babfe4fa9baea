"""The common case of a walk in one go: every member answered every row, and no node decides who is next.

The answer is the walk's to the last bit: the same functions on the same numbers, without its bookkeeping.
What this does not know (a cascade, a chain, a member without a sound answer) is left to the walk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.config.ensemble import Member, Node, PooledNode, leaves, walk_nodes
from orchestrator.config.signature import Task
from orchestrator.ensemble import quorum
from orchestrator.ensemble.calibrate import calibrated
from orchestrator.ensemble.combine import Floats, scores_of
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.pooled import given_weights, pooled
from orchestrator.ensemble.tree import Prediction, distinct, whole_prediction
from orchestrator.ensemble.weights import Weights


def direct(tree: Node, task: Task, width: int) -> Direct | None:
    """How to answer without a walk; None where only the walk knows.

    Args:
        tree: a fitted tree.
        task: decides what scores are.
        width: outputs K of each member.
    """
    # A chain's later models are asked after the others, with what those said.
    known = all(
        isinstance(node, Member | PooledNode)
        and node.unfitted() is None
        and not (isinstance(node, Member) and node.sees)
        for node in walk_nodes(tree)
    )
    return Direct(tree, task, width) if known else None


@dataclass(frozen=True, eq=False)
class _Pool:
    """A node with what its part of an answer needs, looked up once."""

    node: PooledNode
    weights: Weights | None
    below: tuple[_Pool | int, ...]
    """A leaf by its position."""


class Direct:
    """Use `direct`."""

    def __init__(self, tree: Node, task: Task, width: int) -> None:
        self._tree, self._task, self._width = tree, task, width
        self._members = distinct(tree)
        found = leaves(tree)
        positions = {identity(member): place for place, member in enumerate(self._members)}
        self._places = [positions[identity(leaf)] for leaf in found]
        self._divisors = None if task == "regression" else _divisors(found)
        self._root = _pool_of(tree, {leaf: place for place, leaf in enumerate(found)})
        records = [(place, member.record) for place, member in enumerate(self._members)]
        self._records = [(place, record) for place, record in records if record is not None]

    def __call__(self, outputs: Output) -> Prediction | None:
        """The prediction for B rows; None where some member's answer is not sound.

        Args:
            outputs: raw ones [B, M, K] of the distinct members, in their order.
        """
        rows = len(outputs)
        expected = (rows, len(self._members), self._width)
        if outputs.shape != expected or outputs.dtype.kind != "f" or not np.isfinite(outputs).all():
            return None
        said = outputs.transpose(1, 0, 2)
        if not self._near(said):
            return None
        raw = said if len(self._places) == len(said) else said[self._places]
        if self._divisors is not None:
            raw = raw.astype(np.float64) / self._divisors
        scores = self._scores(self._root, scores_of(raw, self._task))
        return whole_prediction(self._tree, scores, dict(zip(self._members, said, strict=True)), self._task)

    def _near(self, said: Output) -> bool:
        """Whether no member is far outside of what it said where the tree was fitted."""
        if not self._records:
            return True
        least, largest = said.min(axis=(1, 2)).tolist(), said.max(axis=(1, 2)).tolist()
        return not any(quorum.far(least[place], largest[place], one) for place, one in self._records)

    def _scores(self, part: _Pool | int, of_leaves: Floats) -> Floats:
        if isinstance(part, int):
            return np.asarray(of_leaves[part])
        below = [self._scores(one, of_leaves) for one in part.below]
        scores = pooled(part.node, below, part.weights, self._task)
        scaling = part.node.calibration
        return scores if scaling is None else calibrated(scaling, scores, self._task)


def _divisors(found: Sequence[Member]) -> Floats | None:
    """The leaves' temperatures [leaves, 1, 1]; None where none has one."""
    given = [leaf.temperature for leaf in found]
    return (
        None if all(one is None for one in given) else np.array([one or 1.0 for one in given])[:, None, None]
    )


def _pool_of(node: Node, places: Mapping[Member, int]) -> _Pool | int:
    if isinstance(node, Member):
        return places[node]
    assert isinstance(node, PooledNode)
    return _Pool(node, given_weights(node), tuple(_pool_of(child, places) for child in node.members))
