"""Members brought to one scale of confidence before their probabilities are mixed.

Members trained with other losses (label smoothing, distillation) are sure to different degrees. Their mean
then follows whoever is surest, and weights of least negative log-likelihood prefer a worse but better
calibrated member.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.measure.metrics import log_softmax

RANGE = (0.1, 10.0)
"""Temperatures that are considered."""
DECIMALS = 6
_GOLDEN = (math.sqrt(5) - 1) / 2
_STEPS = 40


def fit_temperature(logits: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.int64]) -> float:
    """The temperature T of least negative log-likelihood of softmax(logits / T).

    Guo et al. 2017 (https://arxiv.org/abs/1706.04599), section 4.2. A prior worth about one row keeps T
    finite where every row is right: log(T)^2 / N is added to the mean. Found by golden-section search over
    log T, so it depends on the inputs alone.

    Args:
        logits: [N, K].
        targets: Labels [N].
    """
    rows = np.arange(len(targets))

    def loss(log_temperature: float) -> float:
        likelihood = log_softmax(logits / math.exp(log_temperature))[rows, targets].mean()
        return float(log_temperature**2 / len(targets) - likelihood)

    low, high = (math.log(end) for end in RANGE)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return round(math.exp((low + high) / 2), DECIMALS)
