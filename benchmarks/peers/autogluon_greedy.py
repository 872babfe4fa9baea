"""AutoGluon's greedy weighted ensemble on members' probabilities, in a process and environment of its own.

`python -m benchmarks.peers.autogluon_greedy FOLDER` reads `validation.npy` and `test.npy`, probabilities
[M, N, K], and `targets.npy`, labels [N] of the validation rows; it writes the test rows' `answer.npy` [N, K].
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from autogluon.core.metrics import log_loss
from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

ROUNDS = 100
"""What its `WeightedEnsemble` takes by default."""


def answer(folder: Path) -> None:
    """Select by the log loss on validation rows and answer the test rows."""
    selection = EnsembleSelection(ensemble_size=ROUNDS, problem_type="multiclass", metric=log_loss)
    selection.fit(list(np.load(folder / "validation.npy")), np.load(folder / "targets.npy"))
    test = np.load(folder / "test.npy")
    np.save(folder / "answer.npy", np.tensordot(np.asarray(selection.weights_), test, axes=1))


if __name__ == "__main__":
    answer(Path(sys.argv[1]))
