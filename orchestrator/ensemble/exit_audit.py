"""An audit of early exits: does a cascade still keep what it was certified for?

Of some rows that left early the whole cascade is asked as well. Labels are not known, but how often the whole
cascade is right where the two differ is: its own probability, which is calibrated. A row's loss is therefore
the whole cascade's top probability where its class is another, and 0 elsewhere and for rows that did not
leave early; its mean is the share of rows that lose the right answer. Each row is a bet against "on average
at most `max_loss`" (`betting`): while that is true, early exits are accused at most once in `every` audited
rows on average, and for a loss above it evidence grows without end. Plain data and pure functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Cascade, Node
from orchestrator.config.guarantee import Guarantee
from orchestrator.ensemble.betting import NOTHING, Evidence, grown, log_capital
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.thresholds import NONE_LEAVES

EVERY = 100_000.0
"""Audited rows between wrong accusations, on average at least."""


@dataclass(frozen=True)
class ExitAudit:
    """What the audited rows say so far."""

    evidence: Evidence = NOTHING
    rows: int = 0
    """So many were looked at."""
    loss: float = 0.0
    """The sum of their losses."""
    broken: bool = False
    """The promise is broken; that stays so."""


def promise(tree: Node) -> Guarantee | None:
    """What the root promises about early exits, if calibration rows granted it."""
    granted = isinstance(tree, Cascade) and tree.certificate is not None and tree.certificate.granted
    return tree.guarantee if isinstance(tree, Cascade) and granted else None


def whole(tree: Cascade) -> Cascade:
    """The same cascade without early exits."""
    return tree.model_copy(update={"thresholds": (NONE_LEAVES,) * (len(tree.stages) - 1)})


def losses(early: npt.NDArray[np.floating], complete: npt.NDArray[np.floating]) -> Floats:
    """Loss [n] of rows with these probabilities [n, K], by the early exit and by the whole cascade."""
    differs = early.argmax(axis=1) != complete.argmax(axis=1)
    return np.where(differs, complete.max(axis=1).astype(np.float64), 0.0)


def observed(
    audit: ExitAudit, found: Iterable[float], promised: Guarantee, every: float = EVERY
) -> ExitAudit:
    """The audit after rows with these losses."""
    evidence, rows, loss, broken = audit.evidence, audit.rows, audit.loss, audit.broken
    for value in found:
        evidence, rows, loss = grown(evidence, value / promised.max_loss), rows + 1, loss + value
        broken = broken or log_capital(evidence) >= math.log(every)
    return ExitAudit(evidence, rows, loss, broken)
