"""The planner: which combination, of which variants, at which batch and placement, for a goal.

Every candidate is judged by cross-fitting on validation rows and costed from what was measured of its
members; nothing is run. The winner of a thousand is still flattered by having won: `goals.honest` says what
that is worth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Member, Node, leaves
from orchestrator.config.goal import Costs, Goal
from orchestrator.config.serving import Placement
from orchestrator.ensemble.call_cost import Stage, call_cost
from orchestrator.ensemble.candidates import Available, Pool, cascades, combined, other_kinds
from orchestrator.ensemble.crossfit import Candidate, Evidence, Judged
from orchestrator.ensemble.node import identity
from orchestrator.ensemble.tree import distinct
from orchestrator.errors import EnsembleError

MS_AN_HOUR = 3.6e6
ABOUT = (0.7, 1.5)
"""Operations of a model of about the same cost, in those of the ensemble."""
BEST_SINGLE = "best single model"
UNCOMPRESSED = "uncompressed ensemble"
BIGGER = "one bigger model"
STUDENT = "merged student"
_MISSING = {
    BIGGER: "no uncompressed model here has about as many operations as that ensemble",
    STUDENT: "no model here was distilled from several or from an ensemble",
}

Students = Mapping[str, frozenset[str]]
"""Digest of a model that was distilled from several -> theirs."""


@dataclass(frozen=True, eq=False)
class Point:
    """A candidate at one batch in one placement."""

    judged: Judged
    batch: int
    placement: Placement
    latency_ms: float
    p99_ms: float
    cost_per_million: float
    """Of a million rows, in the currency of `Costs.core_hour`."""
    bytes: int
    macs: float
    """Expected operations a row."""
    models_per_answer: int

    @property
    def tree(self) -> Node:
        """The candidate's."""
        return self.judged.candidate.tree

    @property
    def single(self) -> bool:
        """Whether it is one model."""
        return isinstance(self.tree, Member)


@dataclass(frozen=True, eq=False)
class Survey:
    """All candidates, and those to look at."""

    points: tuple[Point, ...]
    reference: Judged
    """What drops are against."""
    front: tuple[Point, ...]
    """Best in metric, latency and bytes, of each batch; fastest first."""
    baselines: Mapping[str, Point]
    """By what they are: honest comparisons that stand beside the front whatever their figures."""
    students: Mapping[frozenset[str], Point]
    """Digests of several models -> the best model that was distilled from just these."""
    larger: bool
    """Direction of the metric."""
    notes: tuple[str, ...]
    """Baselines that there are none of, in a sentence each."""


def survey(
    pool: Pool, evidence: Evidence, goal: Goal, costs: Costs, *, walk_ms: float, students: Students
) -> Survey:
    """Enumerate and judge candidates, and find the front.

    Args:
        pool: The models; `evidence` holds the outputs of just these.
        evidence: Validation rows.
        goal: Names the reference.
        costs: Batches, placements and prices.
        walk_ms: The ensemble's own work for each member that is asked.
        students: Models that were distilled from several.

    Raises:
        EnsembleError: no model, or the reference is not among them.
    """
    if not pool:
        raise EnsembleError("there is no model to choose from")
    known = {identity(one.member): one for one in pool}
    pricing = Pricing(known, costs, walk_ms)
    singles = [evidence.judge(Candidate(one.member)) for one in pool]
    judged = singles + [evidence.judge(found) for found in combined(pool, singles, evidence)]
    judged += [evidence.judge(found) for found in other_kinds(judged, evidence)]
    if evidence.task != "regression":
        judged += [evidence.judge(found) for found in cascades(pool, judged, pricing.speed)]
    points = [point for found in judged for point in pricing.points(found)]
    reference, baselines, notes = _baselines(pool, judged, points, goal, students)
    taught = _taught(points, students)
    return Survey(
        tuple(points), reference, tuple(front_of(points)), baselines, taught, evidence.larger, notes
    )


class Pricing:
    """What candidates cost, from what was measured of their members."""

    def __init__(self, known: Mapping[tuple[str, str], Available], costs: Costs, walk_ms: float) -> None:
        """Look up members by identity."""
        self._known, self._costs, self._walk_ms = known, costs, walk_ms
        self._speeds: dict[Node, float] = {}

    def speed(self, node: Node) -> float:
        """Time of a fused call of the largest batch."""
        if node not in self._speeds:
            batch = max(self._costs.batches)
            stages = self._stages([1.0], [distinct(node)], batch)
            found = call_cost(stages, batch, "fused", walk_ms=self._walk_ms, hop_ms=0.0)
            self._speeds[node] = found.latency_ms
        return self._speeds[node]

    def points(self, judged: Judged) -> Iterator[Point]:
        """The candidate at every batch and, where that makes a difference, in every placement."""
        tree, costs = judged.candidate.tree, self._costs
        asked = stages_of(tree)
        macs = sum(
            reach * self._of(member).macs
            for reach, members in zip(judged.reach, asked, strict=True)
            for member in members
        )
        size = sum({one.member.digest: one.bytes for one in map(self._of, leaves(tree))}.values())
        placements: tuple[Placement, ...] = ("fused",) if isinstance(tree, Member) else costs.placements
        for batch in costs.batches:
            stages = self._stages(judged.reach, asked, batch)
            for placement in placements:
                found = call_cost(stages, batch, placement, walk_ms=self._walk_ms, hop_ms=costs.hop_ms)
                rows_an_hour = batch * MS_AN_HOUR / (found.core_ms * costs.threads)
                yield Point(
                    judged,
                    batch,
                    placement,
                    found.latency_ms,
                    found.p99_ms,
                    1e6 / rows_an_hour * costs.core_hour,
                    size,
                    macs,
                    models_per_answer(tree),
                )

    def _stages(self, reach: Sequence[float], asked: Sequence[Sequence[Member]], batch: int) -> list[Stage]:
        return [
            Stage(share, tuple(self._of(member).times[batch] for member in members))
            for share, members in zip(reach, asked, strict=True)
        ]

    def _of(self, member: Member) -> Available:
        return self._known[identity(member)]


def stages_of(tree: Node) -> list[list[Member]]:
    """By stage, the members that no earlier one has asked; everything but a cascade is one stage."""
    asked: set[tuple[str, str]] = set()
    found = []
    for stage in tree.stages if isinstance(tree, Cascade) else (tree,):
        found.append([member for member in distinct(stage) if identity(member) not in asked])
        asked |= {identity(member) for member in found[-1]}
    return found


def models_per_answer(tree: Node) -> int:
    """Most members that one answer is made of: of a cascade those of the stage that answers."""
    if isinstance(tree, Cascade):
        return max(models_per_answer(stage) for stage in tree.stages)
    return len(distinct(tree))


def front_of(points: Sequence[Point]) -> list[Point]:
    """The points that none of their batch beats in metric, latency and bytes at once, fastest first."""
    found: list[Point] = []
    for batch in dict.fromkeys(point.batch for point in points):
        mine = sorted(
            (point for point in points if point.batch == batch),
            key=lambda point: (point.latency_ms, -point.judged.gain, point.bytes),
        )
        kept: list[Point] = []
        # Sorted by latency, a later point is on the front unless an earlier one is as good and as small.
        seen: npt.NDArray[np.float64] = np.zeros((0, 2))
        for point in mine:
            if not ((seen[:, 0] >= point.judged.gain) & (seen[:, 1] <= point.bytes)).any():
                kept.append(point)
                seen = np.vstack([seen, [point.judged.gain, point.bytes]])
        found += kept
    return found


def _baselines(
    pool: Pool, judged: Sequence[Judged], points: Sequence[Point], goal: Goal, students: Students
) -> tuple[Judged, dict[str, Point], tuple[str, ...]]:
    """The reference, the honest comparisons, and why some are missing."""
    plain = {identity(one.member) for one in pool if not one.compressed and one.member.execution == "eager"}
    singles = {found.candidate.tree: found for found in judged[: len(pool)]}
    groups = [found for found in judged if _together(found.candidate.tree, plain)]
    best = max(singles.values(), key=lambda found: found.gain)
    found = {BEST_SINGLE: best}
    notes = []
    if groups:
        found[UNCOMPRESSED] = max(groups, key=lambda group: group.gain)
        team = distinct(found[UNCOMPRESSED].candidate.tree)
        found |= _rivals(pool, singles, team, students)
    else:
        notes.append(f"{UNCOMPRESSED}: fewer than two uncompressed models are here")
    notes += [f"{name}: none in this run, {why}" for name, why in _MISSING.items() if name not in found]
    reference = found.get(UNCOMPRESSED, best)
    if goal.reference is not None:
        named = [found for member, found in singles.items() if _named(member, goal.reference)]
        if not named:
            known = ", ".join(dict.fromkeys(one.member.name for one in pool))
            raise EnsembleError("the reference is no model here", goal.reference, f"models: {known}")
        reference = named[0]
    first = {point.judged: point for point in reversed(points)}
    return reference, {name: first[one] for name, one in found.items()}, tuple(notes)


def _taught(points: Sequence[Point], students: Students) -> dict[frozenset[str], Point]:
    found: dict[frozenset[str], Point] = {}
    for point in points:
        if isinstance(point.tree, Member) and point.tree.digest in students:
            teachers = students[point.tree.digest]
            if teachers not in found or point.judged.gain > found[teachers].judged.gain:
                found[teachers] = point
    return found


def _named(member: Node, name: str) -> bool:
    return isinstance(member, Member) and member.name == name


def _together(tree: Node, plain: set[tuple[str, str]]) -> bool:
    """Whether several uncompressed models answer every row together."""
    members = {identity(member) for member in leaves(tree)}
    return not isinstance(tree, Cascade | Member) and members <= plain


def _rivals(
    pool: Pool, singles: Mapping[Node, Judged], team: Sequence[Member], students: Students
) -> dict[str, Judged]:
    """The best model that costs about what a team costs, and the best that was distilled from it."""
    members = {identity(member) for member in team}
    macs = [one.macs for one in pool if identity(one.member) in members]
    low, high = (factor * sum(macs) for factor in ABOUT)
    digests = frozenset(member.digest for member in team)
    wanted = {
        BIGGER: [
            one for one in pool if max(macs) < one.macs and low <= one.macs <= high and not one.compressed
        ],
        STUDENT: [one for one in pool if students.get(one.member.digest) == digests]
        or [one for one in pool if one.member.digest in students],
    }
    return {
        name: max((singles[one.member] for one in found), key=lambda judged: judged.gain)
        for name, found in wanted.items()
        if found
    }
