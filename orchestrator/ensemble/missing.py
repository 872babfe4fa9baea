"""Sets of missing members: all of few members, and a rule for many.

Of more than `MOST` members there are too many sets to fit each. What several cost together is then taken to
follow from what each costs alone: factor x the sum of the single effects, with the factor of least squared
error on a sample of sets. It is above 1 where members stand in for each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from itertools import combinations

import numpy as np

from orchestrator.config.calibration import Expectations, Expected, Trend

MOST = 8
"""Members up to which every set is fitted: 255 sets."""
SAMPLED = 32
"""Sets of two or more that a rule for many members is fitted on."""
DIGITS = 6

Missing = tuple[int, ...]


def rounded(value: float, scale: float = 1.0) -> float:
    """To six decimals, more where what it is measured by is below 0.1: errors of small targets are small."""
    more = -math.ceil(math.log10(abs(scale))) if 0 < abs(scale) < 0.1 else 0
    return round(value, DIGITS + more)


def sets_of(count: int) -> list[Missing]:
    """Every set of missing ones that leaves one of `count`, small ones first."""
    return [missing for size in range(1, count) for missing in combinations(range(count), size)]


def fit_trend(count: int, most: int, change: Callable[[Missing], float | None], scale: float = 1.0) -> Trend:
    """The rule for many members.

    Args:
        count: Of members.
        most: How many of them may be missing together.
        change: What a set of missing members changes; None where no answer is left.
        scale: Of what is changed; effects far below it are rounded away.
    """
    effects = [change((position,)) or 0.0 for position in range(count)]
    rng = np.random.default_rng(0)
    drawn = {
        tuple(sorted(rng.choice(count, size=int(rng.integers(2, most + 1)), replace=False).tolist()))
        for _ in range(SAMPLED if most > 1 else 0)
    }
    found = [(sum(effects[i] for i in missing), change(missing)) for missing in sorted(drawn)]
    pairs = np.array([(total, value) for total, value in found if value is not None]).reshape(-1, 2)
    totals, values = pairs.T
    factor = float(totals @ values / (totals @ totals)) if totals @ totals > 0 else 1.0
    spread = math.sqrt(np.square(values - factor * totals).mean()) if len(pairs) else 0.0
    return Trend(
        effects=tuple(rounded(effect, scale) for effect in effects),
        factor=rounded(factor),
        spread=rounded(spread, scale),
    )


def by_trend(trend: Trend, missing: Collection[int]) -> float:
    """What a set of missing members changes, by the rule."""
    return trend.factor * sum(trend.effects[position] for position in missing)


def expected_without(known: Expectations, missing: Missing) -> Expected | None:
    """What a tree's answer is worth without the distinct members at these positions; None: not known.

    A rule's interval is that of the complete tree, moved, and wider by twice the rule's own error.
    """
    complete = known.complete
    if not missing or complete is None:
        return complete
    if known.trend is None:
        return next((found for found in known.sets if found.without == missing), None)
    moved, slack = by_trend(known.trend, missing), 2 * known.trend.spread
    return Expected(
        value=complete.value + moved, low=complete.low + moved - slack, high=complete.high + moved + slack
    )
