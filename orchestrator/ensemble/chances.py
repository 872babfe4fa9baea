"""Probabilities in float32, as cross-fitting holds thousands of them: half the time and half the memory.

Of classes [..., N, K], of sum 1 in each row; of several labels [..., N, K], each by itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.config.signature import Task

Chances = npt.NDArray[np.float32]
TINY = float(np.finfo(np.float32).tiny)


def chances_of(logits: Chances, task: Task) -> Chances:
    """Probabilities [N, K] of logits."""
    if task == "multilabel":
        # The smaller of the two never overflows.
        small = np.exp(-np.abs(logits))
        return np.asarray(np.where(logits < 0, small, 1) / (1 + small), dtype=np.float32)
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(chances / chances.sum(axis=1, keepdims=True))


def of_truth(chances: Chances, targets: npt.NDArray[Any], task: Task) -> Chances:
    """What members [M, N, K] give to the truth [M, N], of labels [M, N * K]."""
    if task == "multilabel":
        return np.where(targets == 1, chances, 1 - chances).reshape(len(chances), -1)
    return np.asarray(chances[:, np.arange(len(targets)), targets])


def surest(chances: Chances, task: Task) -> Chances:
    """Confidence [N]: the top probability, of labels that of the least sure one."""
    if task == "multilabel":
        return np.asarray(np.maximum(chances, 1 - chances).min(axis=1))
    return np.asarray(chances.max(axis=1))


def in_logs(chances: Chances, task: Task) -> npt.NDArray[np.floating[Any]]:
    """Log-probabilities, of labels log-odds, as metrics take them."""
    logs = np.log(np.maximum(chances, TINY))
    if task == "multilabel":
        return np.asarray(logs - np.log(np.maximum(1 - chances, TINY)))
    return np.asarray(logs)
