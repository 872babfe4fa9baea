"""What a model gets that sees others: its rows are the inputs beside what those said of them.

It is trained on such rows (`pipeline/chaining.py`), so to a server it is like any model of feature
rows. (Wolpert 1992; cascade generalization: Gama and Brazdil 2000, https://doi.org/10.1023/A:1007652114878.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task
from orchestrator.ensemble.combine import scores_of


def beside(inputs: npt.NDArray[Any], said: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows float32 [N, F + E] of inputs [N, ...], F numbers each, and of `told` [N, E]."""
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    return np.concatenate([flat, said], axis=1)


def told(outputs: Sequence[npt.NDArray[Any]], task: Task) -> npt.NDArray[np.float32]:
    """Probabilities or values float32 [N, M * K] of M models with raw outputs [N, K].

    Without their temperatures, which are fitted later.
    """
    found = [np.exp(scores_of(one, task)) if task == "classification" else one for one in outputs]
    return np.concatenate(found, axis=1).astype(np.float32)


def nothing_told(rows: int, models: int, outputs: int) -> npt.NDArray[np.float32]:
    """What models that know nothing would say: float32 [rows, models * outputs]."""
    return np.full((rows, models * outputs), 1 / outputs, dtype=np.float32)
