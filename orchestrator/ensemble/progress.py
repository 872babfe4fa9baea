"""What the first stages of a cascade say while the later ones are still asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Member, Node
from orchestrator.config.signature import Task
from orchestrator.ensemble.node import Ask, Output, identity
from orchestrator.ensemble.tree import Outcome, Prediction, distinct, predict
from orchestrator.errors import MemberFailedError, QuorumError


class Progress:
    """Follows a walk; the answers of a tree that is no cascade have no parts.

    Args:
        tree: that is walked.
        rows: of the request.
        task: as for `walk`.
        told: called with the answer of all stages that are known, without the later ones.
    """

    def __init__(self, tree: Node, rows: int, task: Task, told: Callable[[Prediction], None]) -> None:
        self._tree, self._rows, self._task, self._told = tree, rows, task, told
        self._known: dict[tuple[str, str], tuple[npt.NDArray[np.bool_], Output | None]] = {}
        self._stages = 0

    def after(self, asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> None:
        """A round of asks is over and another one follows."""
        for ask, outcome in zip(asks, outcomes, strict=True):
            self._note(ask, outcome)
        if (stage := self._stage()) is not None:
            self._told(stage)

    def _note(self, ask: Ask, outcome: Outcome) -> None:
        mask, outputs = self._known.get(identity(ask.member), (np.zeros(self._rows, dtype=bool), None))
        mask[ask.rows] = True
        if outcome.output is not None:
            if outputs is None:
                outputs = np.zeros((self._rows, outcome.output.shape[1]), outcome.output.dtype)
            outputs[ask.rows] = outcome.output
        self._known[identity(ask.member)] = mask, outputs

    def _stage(self) -> Prediction | None:
        """The answer of the stages that are known by now; None when it was told already, or there is none."""
        found = None
        if isinstance(self._tree, Cascade):
            for stages in range(self._stages + 1, len(self._tree.stages)):
                try:
                    found = self._first(self._tree, stages)
                except (_UnknownError, QuorumError):
                    break
                self._stages = stages
        return found

    def _first(self, tree: Cascade, stages: int) -> Prediction:
        first = tree.model_copy(
            update={
                "stages": tree.stages[:stages],
                "thresholds": (tree.thresholds or ())[: stages - 1],
                "quorum": None if tree.quorum is None else 1,
                "certificate": None,
                "expected": None,
            }
        )
        members = {member: self._lookup(member) for member in distinct(first)}
        return predict(first, members, np.arange(self._rows), self._task)

    def _lookup(self, member: Member) -> Callable[[npt.NDArray[np.int64]], Output]:
        def call(rows: npt.NDArray[np.int64]) -> Output:
            mask, outputs = self._known.get(identity(member), (np.zeros(self._rows, dtype=bool), None))
            if not mask[rows].all():
                raise _UnknownError
            if outputs is None:
                raise MemberFailedError("no answer", member.name)
            return outputs[rows]

        return call


class _UnknownError(Exception):
    """A member has not been asked yet."""
