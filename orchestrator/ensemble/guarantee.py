"""A cascade's guarantee: Learn-then-Test over a path of thresholds (Angelopoulos et al. 2021,
https://arxiv.org/abs/2110.01052).

The path is fixed on other rows. From its careful end on, each step is tested on the calibration rows: "more
than `max_loss` of all rows lose the last stage's right answer by leaving early". The first step that is not
rejected ends it, and the one before is taken: fixed-sequence testing, so every step is tested at the full
level. A lost row is a 0/1 loss, so its p-value is the exact binomial tail, the most powerful there is; it
charges lost rows in full and gives nothing for won ones, so the net loss of accuracy is bounded as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import bdtr

from orchestrator.config.guarantee import Certificate, Guarantee
from orchestrator.ensemble.thresholds import Stages, Thresholds


def p_value(lost: int, rows: int, max_loss: float) -> float:
    """P(at most `lost` of `rows` are lost) if the share `max_loss` of all rows is: the binomial tail."""
    return float(bdtr(lost, rows, max_loss))


def least_rows(guarantee: Guarantee) -> int:
    """Rows without which not even a single lost one would leave room for any early exit."""
    return math.ceil(math.log(1 - guarantee.confidence) / math.log1p(-guarantee.max_loss) - 1e-9)


def certify(
    steps: Sequence[Thresholds], stages: Stages, guarantee: Guarantee
) -> tuple[Thresholds, Certificate]:
    """The last thresholds of the path that can be promised; the path's first, untested, if none can.

    Args:
        steps: The path, from the careful end; none of it may depend on the rows of `stages`.
        stages: On calibration rows, independent of all that was fitted.
        guarantee: What is to be promised.
    """
    rows, level = len(stages.targets), 1 - guarantee.confidence

    def tested(thresholds: Thresholds) -> Certificate:
        lost = stages.lost_rows(stages.left_at(thresholds))
        found = p_value(lost, rows, guarantee.max_loss)
        return Certificate(granted=found <= level, rows=rows, lost=lost, p_value=found)

    chosen, *others = steps
    certificate: Certificate | None = None
    for thresholds in others:
        found = tested(thresholds)
        if not found.granted:
            return chosen, certificate or found
        chosen, certificate = thresholds, found
    return chosen, certificate or tested(chosen)
