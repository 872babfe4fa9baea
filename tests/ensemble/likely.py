"""Members like trained networks: right about as often, sure of too much, and wrong on the same rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.config.ensemble import Member

CLASSES = 10
ABILITY = (2.6, 2.75, 2.9, 3.1, 2.7, 2.65, 2.8, 3.0, 2.85, 2.95)
"""Distance of the classes in units of a row's noise: test accuracy 0.76 to 0.83."""
OVERCONFIDENCE = (2.2, 1.8, 2.6, 2.0, 1.6, 2.4, 2.1, 1.9, 2.3, 1.7)
"""Factor by which the logits are too large; 1 is calibrated."""
SHARED = 0.5
"""Share of the noise that all members see."""


def likely(
    rows: int, seed: int, members: int = 4, ability: tuple[float, ...] = ABILITY
) -> tuple[dict[Member, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """Logits of members and the labels. Rows differ in how hard they are, and members know it: each gives
    the exact posterior of what it sees, made overconfident."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(CLASSES, size=rows)
    noise = 0.5 + rng.gamma(2.0, 0.35, size=(rows, 1))
    shared = rng.normal(size=(rows, CLASSES))
    found = {}
    for number in range(members):
        own = np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * rng.normal(size=(rows, CLASSES))
        seen = ability[number] * np.eye(CLASSES)[targets] + noise * own
        logits = OVERCONFIDENCE[number] * ability[number] * seen / noise**2
        found[Member(name=f"m{number}", digest=f"{number:064d}")] = logits.astype(np.float32)
    return found, targets
