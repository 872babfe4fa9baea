"""Bets against a mean that may be looked at after every value (Waudby-Smith and Ramdas 2024,
https://arxiv.org/abs/2010.09686).

A value is a ratio: what was seen over what is allowed. Capital grows by the factor 1 - f + f x ratio, which
on average is no gain while the mean ratio is at most 1. As capital never starts below 1 (a CUSUM), a sound
stream is accused wrongly at most once in so many values on average as the capital is asked to reach (Shin,
Ramdas, Rinaldo 2024, https://arxiv.org/abs/2203.03532).
"""

from __future__ import annotations

import math

import numpy as np

BETS = (0.1, 0.25, 0.5, 0.8)
"""Shares f of the capital that are bet: small ones find small faults, large ones large faults soon."""

Evidence = tuple[float, ...]
"""Logarithm of the capital of each of `BETS`."""

NOTHING: Evidence = (0.0,) * len(BETS)


def grown(evidence: Evidence, ratio: float) -> Evidence:
    """The evidence after one more value."""
    return tuple(
        max(log, 0.0) + math.log(1 - bet + bet * ratio) for log, bet in zip(evidence, BETS, strict=True)
    )


def log_capital(evidence: Evidence) -> float:
    """Logarithm of the mean capital."""
    return float(np.logaddexp.reduce(evidence)) - math.log(len(BETS))
