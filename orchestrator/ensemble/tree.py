"""The walk: what an ensemble asks of its members and how their answers become one. It knows no I/O.

`walk` is a generator. It yields a tuple of `Ask`s that may be answered at the same time, receives a
tuple of `Outcome`s in the same order, and returns a `Prediction`. `predict` drives it in process; a
server drives the same generator with awaited calls::

    steps = walk(tree, rows, task)
    asks = next(steps)
    try:
        while True:
            outcomes = await gather(asks)       # any driver: threads, RPC, a cache
            asks = steps.send(tuple(outcomes))
    except StopIteration as done:
        prediction = done.value
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import Expected
from orchestrator.config.ensemble import Cascade, Combined, Member, Node, children, leaves
from orchestrator.config.signature import Task

# Kinds of nodes are imported for their registration with `answer_uncalibrated`.
from orchestrator.ensemble import boost, cascade, chain, leaf, mix, parallel, quorum, stack  # noqa: F401
from orchestrator.ensemble.combine import Floats, scores_of
from orchestrator.ensemble.missing import expected_without
from orchestrator.ensemble.node import Answer, Ask, Output, Reply, answer, at_once, identity
from orchestrator.errors import EnsembleError, OrchestratorError, QuorumError
from orchestrator.measure.tasks import rules


@dataclass(frozen=True, eq=False)
class Outcome:
    """The answer to one `Ask`: raw outputs [len(rows), K] (logits or values), or why there is none."""

    output: Output | None = None
    failure: str | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """An ensemble's answer to N rows."""

    outputs: npt.NDArray[np.float32]
    """[N, K] log-probabilities (classification) or log-odds (multilabel), so that every metric takes them
    like logits; or values."""
    probs: npt.NDArray[np.float32] | None
    """[N, K] probabilities; None for regression."""
    scores: Floats
    """`outputs` before rounding to float32: what a threshold or a weight above this tree is fitted on."""
    members: dict[Member, npt.NDArray[np.bool_]]
    """For each distinct member a mask [N] of the rows that it answered."""
    stages: npt.NDArray[np.int64]
    """[N] stage of the root cascade that each row left at; 0 when the root is no cascade."""
    said: dict[Member, Output]
    """Raw outputs [N, K] of each distinct member that answered; zeros in rows that it did not."""
    missing: dict[Member, str]
    """Members that gave no sound answer although they were asked, and why."""
    degraded: npt.NDArray[np.bool_]
    """[N] rows answered without a member that was asked for them."""
    expected: Expected | None
    """The metric of this tree without the missing members, on the rows that it was fitted on; None where
    that is not known."""

    def __len__(self) -> int:
        return len(self.outputs)

    def __getitem__(self, rows: slice) -> Prediction:
        """The answer to some of the rows."""
        return replace(
            self,
            outputs=self.outputs[rows],
            probs=None if self.probs is None else self.probs[rows],
            scores=self.scores[rows],
            members={member: mask[rows] for member, mask in self.members.items()},
            stages=self.stages[rows],
            said={member: output[rows] for member, output in self.said.items()},
            degraded=self.degraded[rows],
        )


UNKNOWN = "no such predictor"
Walk = Generator[tuple[Ask, ...], tuple[Outcome, ...], Prediction]


def distinct(tree: Node) -> list[Member]:
    """The distinct members in file order: the first leaf of each identity."""
    found: dict[tuple[str, str], Member] = {}
    for member in leaves(tree):
        found.setdefault(identity(member), member)
    return list(found.values())


def asked_together(tree: Node) -> list[tuple[Member, ...]]:
    """The distinct members in groups, each asked for the same rows at the same time: one for all that answer
    every row, then one for each later stage of a cascade, and for each member that sees others."""
    left = {identity(member): member for member in distinct(tree)}
    groups = [
        tuple(left.pop(key) for key in dict.fromkeys(map(identity, group)) if key in left)
        for group in _groups(tree)
    ]
    return [group for group in groups if group]


def _groups(node: Node) -> list[list[Member]]:
    """As `asked_together`, with repetitions; the first group answers every row of the node."""
    if isinstance(node, Member):
        return [*_side_by_side(node.sees), [node]] if node.sees else [[node]]
    if isinstance(node, Cascade):
        return [group for stage in children(node) for group in _groups(stage)]
    return _side_by_side(children(node))


def _side_by_side(nodes: Sequence[Node]) -> list[list[Member]]:
    below = [_groups(node) for node in nodes]
    first = [member for groups in below for member in groups[0]]
    return [first, *(group for groups in below for group in groups[1:])]


def walk(tree: Node, rows: int, task: Task, *, guarded: bool = True) -> Walk:
    """Ask the members and combine their answers.

    A member that several nodes share is asked once for a row. All members that can be asked at the same
    time stand in one tuple; an `Ask` names the first of several equal leaves.

    Args:
        tree: A fitted tree.
        rows: Number of rows of the request, at least 1.
        task: Decides between log-probabilities and values.
        guarded: Whether values far outside of a member's record are no answer of it: of one request they are
            a broken member's, of a file or a part one outlying row would take the member from all others.

    Raises:
        EnsembleError: the tree is not fitted, or the driver broke the protocol.
        QuorumError: too few members gave a sound answer; those that did not are named.
    """
    if rows < 1:
        raise EnsembleError("an ensemble needs at least one row", rows)
    memory = _Memory(rows, distinct(tree), guarded)
    steps = answer(tree, np.arange(rows), task)
    replies: tuple[Reply, ...] | None = None
    while True:
        try:
            asks = next(steps) if replies is None else steps.send(replies)
        except StopIteration as done:
            return _prediction(tree, done.value, memory, task)
        except QuorumError:
            alone = _fallback(tree, memory, task)
            if alone is None:
                raise
            return alone
        unknown = memory.unknown(asks)
        if unknown:
            memory.keep(unknown, (yield unknown))
        replies = tuple(memory.reply(ask) for ask in asks)


def predict(
    tree: Node,
    members: Mapping[Member, Callable[[npt.NDArray[Any]], Output]],
    inputs: npt.NDArray[Any],
    task: Task,
    *,
    guarded: bool = True,
) -> Prediction:
    """Drive `walk` in this process, one member after the other.

    Args:
        tree: A fitted tree.
        members: For each distinct member a function from inputs [n, ...] to outputs [n, K].
        inputs: Rows [N, ...].
        task: As for `walk`.
        guarded: As for `walk`.

    Raises:
        QuorumError: too many members failed; they are named.
    """
    by_identity = {identity(member): call for member, call in members.items()}
    steps = walk(tree, len(inputs), task, guarded=guarded)
    return _driven(steps, lambda ask: _call(by_identity, ask, inputs))


def _driven(steps: Walk, answered: Callable[[Ask], Outcome]) -> Prediction:
    outcomes: tuple[Outcome, ...] | None = None
    while True:
        try:
            asks = next(steps) if outcomes is None else steps.send(outcomes)
        except StopIteration as done:
            prediction: Prediction = done.value
            return prediction
        outcomes = tuple(map(answered, asks))


def replay(tree: Node, outputs: Mapping[Member, Output], task: Task) -> Prediction:
    """The prediction that members with these outputs [N, K] on all rows would lead to; others are missing.
    Not `guarded`: these are rows of a whole part, or stand-ins for rows that nobody was asked for."""
    by_identity = {identity(member): output for member, output in outputs.items()}

    def known(ask: Ask) -> Outcome:
        output = by_identity.get(identity(ask.member))
        return Outcome(failure=UNKNOWN) if output is None else Outcome(output[ask.rows])

    rows = len(next(iter(outputs.values())))
    return _driven(walk(tree, rows, task, guarded=False), known)


def mean_cost(prediction: Prediction, macs: Mapping[Member, float]) -> float:
    """Expected multiply-accumulates a row over those of all distinct members together, in 0..1.

    Args:
        prediction: On rows of the kind that will be served.
        macs: Operations a row of each distinct member.
    """
    total = sum(macs[member] for member in prediction.members)
    spent = sum(macs[member] * float(mask.mean()) for member, mask in prediction.members.items())
    return spent / total if total else 0.0


def _call(
    members: Mapping[tuple[str, str], Callable[[npt.NDArray[Any]], Output]],
    ask: Ask,
    inputs: npt.NDArray[Any],
) -> Outcome:
    call = members.get(identity(ask.member))
    if call is None:
        return Outcome(failure=UNKNOWN)
    try:
        return Outcome(output=call(ask.of(inputs)))
    except OrchestratorError as error:
        return Outcome(failure=str(error))


def _prediction(tree: Node, found: Answer, memory: _Memory, task: Task) -> Prediction:
    keys = {member: identity(member) for member in memory.members}
    lost = {member: memory.lost[key] for member, key in keys.items() if key in memory.lost}
    positions = tuple(number for number, member in enumerate(memory.members) if member in lost)
    return Prediction(
        outputs=found.scores.astype(np.float32),
        probs=_probs(found.scores, task),
        scores=found.scores,
        members={member: memory.known[key] for member, key in keys.items()},
        stages=found.stages,
        said={member: memory.outputs[key] for member, key in keys.items() if key in memory.outputs},
        missing=lost,
        degraded=memory.degraded,
        expected=_expected_without(tree, positions),
    )


def _probs(scores: Floats, task: Task) -> npt.NDArray[np.float32] | None:
    found = rules(task).probabilities(scores)
    return None if found is None else found.astype(np.float32)


def _expected_without(tree: Node, positions: tuple[int, ...]) -> Expected | None:
    known = tree.expected if isinstance(tree, Combined) else None
    return None if known is None else expected_without(known, positions)


def whole_prediction(tree: Node, scores: Floats, said: dict[Member, Output], task: Task) -> Prediction:
    """The prediction with these scores [N, K] of a tree without stages whose members all answered all rows.

    Args:
        tree: a fitted tree.
        scores: its own.
        said: raw outputs [N, K] of each distinct member.
        task: as for `walk`.
    """
    rows = len(scores)
    everyone = np.ones(rows, dtype=bool)
    return Prediction(
        outputs=scores.astype(np.float32),
        probs=_probs(scores, task),
        scores=scores,
        members=dict.fromkeys(said, everyone),
        stages=np.zeros(rows, dtype=np.int64),
        said=said,
        missing={},
        degraded=np.zeros(rows, dtype=bool),
        expected=_expected_without(tree, ()),
    )


def _fallback(tree: Node, memory: _Memory, task: Task) -> Prediction | None:
    """The answer of the best member that answered every row; None if there is none, or it is not wanted."""
    known = tree.expected if isinstance(tree, Combined) and tree.fallback else None
    for expected in known.alone if known else ():
        (position,) = set(range(len(memory.members))) - set(expected.without)
        member = memory.members[position]
        key = identity(member)
        if not memory.known[key].all():
            continue
        memory.degraded[:] = True
        scores = scores_of(memory.outputs[key], task, member.temperature)
        found = _prediction(tree, at_once(scores), memory, task)
        used = {one: mask & (one == member) for one, mask in found.members.items()}
        return replace(found, members=used, expected=expected)
    return None


@dataclass(eq=False)
class _Memory:
    """What members already answered in this walk, or why they did not."""

    rows: int
    members: list[Member]
    guarded: bool
    outputs: dict[tuple[str, str], Output] = field(default_factory=dict)
    known: dict[tuple[str, str], npt.NDArray[np.bool_]] = field(default_factory=dict)
    lost: dict[tuple[str, str], str] = field(default_factory=dict)
    seen: dict[tuple[str, str], npt.NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {identity(member): np.zeros(self.rows, dtype=bool) for member in self.members}
        self.degraded = np.zeros(self.rows, dtype=bool)
        self.width = next((member.record.outputs for member in self.members if member.record), None)

    def unknown(self, asks: Sequence[Ask]) -> tuple[Ask, ...]:
        """One ask for each member with rows that it has not answered yet; a lost one is not asked again."""
        wanted: dict[tuple[str, str], npt.NDArray[np.bool_]] = {}
        for ask in asks:
            mask = wanted.setdefault(identity(ask.member), np.zeros(self.rows, dtype=bool))
            mask[ask.rows] = True
            if ask.seen is not None:
                blank = np.zeros((self.rows, ask.seen.shape[1]), np.float32)
                self.seen.setdefault(identity(ask.member), blank)[ask.rows] = ask.seen
        first = {identity(member): member for member in self.members}
        gaps = {
            key: np.flatnonzero(mask & ~self.known[key])
            for key, mask in wanted.items()
            if key not in self.lost
        }
        return tuple(
            Ask(first[key], rows, self.seen[key][rows] if key in self.seen else None)
            for key, rows in gaps.items()
            if len(rows)
        )

    def keep(self, asks: Sequence[Ask], outcomes: Sequence[Outcome]) -> None:
        """Store the answers to `asks`."""
        if len(outcomes) != len(asks):
            raise EnsembleError("the walk needs one outcome for each ask", f"{len(outcomes)} for {len(asks)}")
        for ask, outcome in zip(asks, outcomes, strict=True):
            key, output = identity(ask.member), outcome.output
            record = ask.member.record if self.guarded else None
            problem = outcome.failure or quorum.problem(output, len(ask.rows), self.width, record)
            if problem is not None or output is None:
                self.lost[key] = problem or "no output"
                continue
            self.width = output.shape[1]
            if key not in self.outputs:
                self.outputs[key] = np.zeros((self.rows, self.width), dtype=output.dtype)
            self.outputs[key][ask.rows] = output
            self.known[key][ask.rows] = True

    def reply(self, ask: Ask) -> Reply:
        """What is known for an ask."""
        key = identity(ask.member)
        if self.known[key][ask.rows].all():
            return self.outputs[key][ask.rows]
        self.degraded[ask.rows] = True
        return quorum.failed(f"{ask.member.name} ({self.lost[key]})")
