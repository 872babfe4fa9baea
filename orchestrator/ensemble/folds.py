"""Cross-validation: what is said to each row by a fit that did not see it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from orchestrator.data.split import fold_of
from orchestrator.ensemble.combine import Floats, Rows
from orchestrator.errors import EnsembleError

FOLDS = 5


def cross_validated(count: int, held_out: Callable[[Rows, Rows], Floats]) -> Floats:
    """Scores [N, K] of all rows, each from a fit without its fold; folds depend on the number of rows alone.

    Args:
        count: Rows, at least 2.
        held_out: (rows to fit on, other rows) -> scores [n, K] of the other rows.

    Raises:
        EnsembleError: there is one row, and so none to fit on.
    """
    if count < 2:
        raise EnsembleError("cross-validation needs two rows at least", count, "use more rows")
    fold = fold_of(count, min(FOLDS, count))
    parts = [
        (others, held_out(np.flatnonzero(fold != number), others))
        for number in range(fold.max() + 1)
        for others in [np.flatnonzero(fold == number)]
    ]
    found = np.zeros((count, parts[0][1].shape[1]))
    for others, scores in parts:
        found[others] = scores
    return found
