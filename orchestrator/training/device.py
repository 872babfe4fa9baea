"""Where this process trains."""

from __future__ import annotations

import torch


def device_of(gpus: float) -> str:
    """The device for a training that was given this many GPUs: "cuda", or "cpu" where there is none.

    Ray lets a process see the cards that it was given and no others.
    """
    return "cuda" if gpus > 0 and torch.cuda.is_available() else "cpu"
