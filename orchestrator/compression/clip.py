"""Clipping: outlying weights are cut to a limit, so that rounding to few bits costs the others less."""

from __future__ import annotations

import torch

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import Clipping
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.training.limits import limits


@apply_step.register
def clip(step: Clipping, state: State, context: Context) -> State:  # noqa: ARG001
    """Cut the weights of convolutions and linears to a limit.

    Raises:
        CompressionError: the model has no such weight, or all are within the limit already.
    """
    module = copy_of(state.module)
    weights = weights_of(module)
    if not weights:
        raise CompressionError("the model has no convolution or linear to clip", type(module).__name__)
    clipped, total = {}, 0
    with torch.no_grad():
        for name, weight in weights.items():
            limit = limits(weight, step)
            clipped[name] = int((weight.abs() > limit).sum())
            total += weight.numel()
            weight.copy_(weight.clamp(-limit, limit))
    if not any(clipped.values()):
        raise CompressionError("no weight lies beyond its limit", step.threshold or step.method, "clip lower")
    return state.after(step, module, {"clipped": sum(clipped.values()), "weights": total, "layers": clipped})
