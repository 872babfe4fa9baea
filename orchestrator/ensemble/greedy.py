"""Greedy selection of members with replacement: how often each was taken is its weight.

Caruana, Niculescu-Mizil, Crew, Ksikes 2004, Ensemble selection from libraries of models (ICML), with the
paper's three guards against overfitting: selection with replacement, sorted initialisation, bagged selection.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.objective import Loss
from orchestrator.ensemble.weights import Weights, finished

BAG_SHARE = 0.5
"""Share of the members in a bag, as in the paper; at least two of them, where there are two."""


def greedy_weights(parts: Floats, loss: Callable[[Floats], Loss], rounds: int, bags: int = 1) -> Weights:
    """Weights of a greedy selection.

    Args:
        parts: One array a member [M, ...], of which selected ones are averaged.
        loss: Of such a mean; smaller is better, compared from the left.
        rounds: Selections after the initial ones.
        bags: 1: one selection among all members. More: the mean of so many selections among random halves,
            drawn from a fixed seed.
    """
    members, generator = len(parts), np.random.default_rng(0)
    size = min(members, max(2, round(BAG_SHARE * members)))
    total = np.zeros(members)
    for _ in range(bags):
        bag = np.arange(members) if bags == 1 else np.sort(generator.choice(members, size, replace=False))
        counts = np.bincount(bag[selection(parts[bag], loss, rounds)], minlength=members)
        total += counts / counts.sum()
    return finished(total / bags)


def selection(parts: Floats, loss: Callable[[Floats], Loss], rounds: int) -> list[int]:
    """Positions of the selected members in order of selection, up to the round with the least loss.

    It starts with the best members alone: as many, in order of their loss, as have the least loss together.
    Each round then adds the member that leaves the least loss. Ties go to the member that comes first, and
    to the earlier round.
    """
    alone = [_told(loss(part)) for part in parts]
    ranked = sorted(range(len(parts)), key=lambda member: (alone[member], member))
    sums = np.cumsum(parts[ranked], axis=0)
    starts = [_told(loss(sums[count] / (count + 1))) for count in range(len(ranked))]
    best, first = min((found, count) for count, found in enumerate(starts))
    chosen, running = ranked[: first + 1], sums[first]
    length = len(chosen)
    for _ in range(rounds):
        count = len(chosen) + 1
        found, member = min(
            (_told(loss((running + part) / count)), place) for place, part in enumerate(parts)
        )
        chosen.append(member)
        running = running + parts[member]
        if found < best:
            best, length = found, count
    return chosen[:length]


def _told(loss: Loss) -> Loss:
    """Without the last digits, in which equal means differ by the order of their sums."""
    return tuple(round(value, 12) for value in loss)
