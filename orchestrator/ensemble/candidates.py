"""What the planner looks at: single models, ensembles and cascades over the models at hand.

Not every tree there is, but these over the members that can matter: means of subsets of the best, mixes that
greedy selection finds under several limits on latency, the other kinds (rules, class weights, a gate, a
stack, a calibration after mixing) over the few sets of members that did best so far, and cascades from fast
to slow. Cascades of variants of one model are among them whatever else is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, product

import numpy as np
import numpy.typing as npt

from orchestrator.config.calibration import AutoScaling
from orchestrator.config.ensemble import (
    TASK_METHODS,
    TASK_RULES,
    Cascade,
    Member,
    Method,
    Node,
    Parallel,
    Rule,
    Stacking,
    WeightedMix,
)
from orchestrator.ensemble.call_cost import CallTime
from orchestrator.ensemble.crossfit import Candidate, Evidence, Judged
from orchestrator.ensemble.tree import distinct

SUBSETS = {2: 12, 3: 10, 4: 6}
"""Size of a mean -> how many of the best models it is taken from."""
LARGEST_MIX = 6
"""Members of a mix."""
GREEDY_STEPS = 24
"""Picks of a greedy selection, with replacement."""
SPEEDS = (0.25, 0.5, 0.75, 1.0)
"""Greedy selections are made among the fastest so large shares of the models."""
TWO_STAGES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
"""Shares of the rows that leave at the first of two stages."""
THREE_STAGES = (0.5, 0.7, 0.9)
"""Shares that leave at the first and at the second of three stages."""
RULE_SETS = 3
"""Sets of members, the best ones, that are tried under the other rules; the best alone under what takes
longer to fit."""
RULES: tuple[Rule, ...] = ("logits", "vote", "median")
METHODS: tuple[Method, ...] = ("per_class", "gate")
MOST_STACKED = 100_000
"""Numbers, rows x members x outputs, up to which a stack is fitted: more take many seconds."""
MOST_MIXED = 4_000_000
"""The same for a mix of log-probabilities, which holds them several times."""
STARTS, ENDS = 6, 8
"""First and last stages that are tried."""
FASTER = 0.8
"""A stage must take less than this share of the next one's time."""


@dataclass(frozen=True)
class Available:
    """A model in one execution, and what was measured of it."""

    member: Member
    times: Mapping[int, CallTime]
    """By rows of a whole call, which its kernels are made for."""
    bytes: int
    macs: float
    """Operations a row."""
    family: str = ""
    """The model that it is a variant of, or its own name."""
    compressed: bool = False
    """Whether a plan made it."""

    @property
    def call_ms(self) -> float:
        """Of a whole call at the largest batch."""
        batch = max(self.times)
        return float(self.times[batch].ms(batch))


Pool = Sequence[Available]


def combined(pool: Pool, singles: Sequence[Judged], evidence: Evidence) -> list[Candidate]:
    """Means of the best models, and mixes of those that greedy selection picks.

    Args:
        pool: The models.
        singles: Each of them judged, in that order.
        evidence: What the selection looks at.
    """
    ranked = [pool[place] for place in sorted(range(len(pool)), key=lambda place: -singles[place].gain)]
    found: list[Node] = [Parallel(members=group) for group in _subsets([one.member for one in ranked])]
    plain = tuple(one.member for one in pool if not one.compressed and one.member.execution == "eager")
    if len(plain) >= 2:
        found.append(Parallel(members=plain))
    mixes: list[Node] = [WeightedMix(members=group) for group in _mixes(pool, evidence)]
    if 2 <= len(plain) <= LARGEST_MIX:
        mixes.append(WeightedMix(members=plain))
    return [Candidate(tree) for tree in dict.fromkeys([*found, *mixes])]


def other_kinds(judged: Sequence[Judged], evidence: Evidence) -> list[Candidate]:
    """The best sets of members so far, combined in other ways than by a mean or plain weights.

    Args:
        judged: Means and mixes, and whatever else; single models do not count.
        evidence: What strengths and kinds of calibration are chosen on.
    """
    teams: dict[frozenset[Member], tuple[Member, ...]] = {}
    for found in sorted(judged, key=lambda found: -found.gain):
        if not isinstance(found.candidate.tree, Member):
            members = tuple(distinct(found.candidate.tree))
            teams.setdefault(frozenset(members), members)
    task = evidence.task
    rules = [rule for rule in RULES if rule in TASK_RULES[task]]
    pooled = [
        Parallel(members=team, rule=rule)
        for team, rule in product(list(teams.values())[:RULE_SETS], rules)
        if len(team) >= 3 or rule == "logits"  # of two, a vote is a tie and the median the mean
    ]
    fitted: list[Node] = []
    for team in [team for team in teams.values() if len(team) <= LARGEST_MIX][:1]:
        methods = [method for method in METHODS if method in TASK_METHODS[task]]
        fitted += [WeightedMix(members=team, method=method) for method in methods]
        size = len(team) * evidence.size
        if task != "regression" and size <= MOST_MIXED:
            fitted.append(WeightedMix(members=team, rule="logits", calibration=AutoScaling()))
        if task != "regression":
            fitted += [kind(members=team, calibration=AutoScaling()) for kind in (Parallel, WeightedMix)]
        if task != "multilabel" and size <= MOST_STACKED:
            fitted.append(Stacking(policy="stacking", members=team))
    return [Candidate(tree) for tree in (*pooled, *map(evidence.with_choices, fitted))]


def cascades(pool: Pool, judged: Sequence[Judged], speed: Callable[[Node], float]) -> list[Candidate]:
    """Cascades of two and three stages, from fast to slow; the last stage may be an ensemble.

    Args:
        pool: The models.
        judged: Models, means and mixes.
        speed: Time of a call of any of them.
    """
    gains = {found.candidate.tree: found.gain for found in judged}
    singles: list[Node] = [one.member for one in pool]
    starts = _leading(singles, gains, speed)[:STARTS]
    ends = _leading(list(gains), gains, speed)[-ENDS:]
    chains = [*product(starts, ends), *product(starts, starts, ends)]
    for family in dict.fromkeys(one.family for one in pool):
        variants = [one.member for one in pool if one.family == family]
        line = _leading(variants, gains, speed)
        chains += [*combinations(line, 2), *combinations(line, 3)]
    found: list[Candidate] = []
    for chain in dict.fromkeys(chains):
        times = [speed(stage) for stage in chain]
        if all(fast < FASTER * slow for fast, slow in pairwise(times)):
            grid = [(share,) for share in TWO_STAGES] if len(chain) == 2 else product(THREE_STAGES, repeat=2)
            found += [Candidate(Cascade(stages=chain), tuple(shares)) for shares in grid]
    return found


def _subsets(ranked: Sequence[Member]) -> Iterator[tuple[Member, ...]]:
    for size, among in SUBSETS.items():
        yield from combinations(ranked[:among], size)


def _leading(
    nodes: Sequence[Node], gains: Mapping[Node, float], speed: Callable[[Node], float]
) -> list[Node]:
    """Those that are better than all faster ones, the fastest first."""
    found: list[Node] = []
    for node in sorted(nodes, key=lambda node: (speed(node), -gains[node])):
        if not found or gains[node] > gains[found[-1]]:
            found.append(node)
    return found


def _mixes(pool: Pool, evidence: Evidence) -> list[tuple[Member, ...]]:
    """Members of every size that greedy selections among the fastest models go through."""
    order = sorted(pool, key=lambda one: one.call_ms)
    found: list[tuple[Member, ...]] = []
    for share in SPEEDS:
        members = [one.member for one in order[: round(share * len(order))]]
        if len(members) >= 2:
            found += [tuple(members[place] for place in group) for group in _greedy(members, evidence)]
    return list(dict.fromkeys(found))


def _greedy(members: Sequence[Member], evidence: Evidence) -> list[tuple[int, ...]]:
    """Sets of two and more members in the order that greedy selection with replacement reaches them.

    Caruana et al. 2004, "Ensemble selection from libraries of models". The selection says who is in a mix;
    the weights are then fitted to the optimum.
    """
    counts = np.zeros(len(members))
    best: float | None = None
    found: list[tuple[int, ...]] = []
    for _ in range(GREEDY_STEPS):
        losses: npt.NDArray[np.float64] = evidence.mixed_loss(members, counts + np.eye(len(members)))
        pick = int(losses.argmin())
        if best is not None and losses[pick] >= best:
            break
        best = float(losses[pick])
        counts[pick] += 1
        group = tuple(np.flatnonzero(counts).tolist())
        if len(group) > LARGEST_MIX:
            break
        if len(group) >= 2 and group not in found:
            found.append(group)
    return found
