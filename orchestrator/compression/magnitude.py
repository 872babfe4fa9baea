"""Pruning of single weights by size: whole layers keep their shape."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import MagnitudePruning
from orchestrator.errors import CompressionError
from orchestrator.models.base import weights_of
from orchestrator.training.constraints import largest, largest_of_each


@apply_step.register
def prune_magnitude(step: MagnitudePruning, state: State, context: Context) -> State:  # noqa: ARG001
    """Set the smallest weights of convolutions and linears to zero.

    Han et al. 2015 (https://arxiv.org/abs/1506.02626); N of M: Mishra et al. 2021 (https://arxiv.org/abs/2104.08378).

    Raises:
        CompressionError: no weight, or every weight of a layer, would become zero, or no layer's input
            is a multiple of M.
    """
    module = copy_of(state.module)
    weights = weights_of(module)
    if not weights:
        raise CompressionError("the model has no convolution or linear to prune", type(module).__name__)
    sizes = {name: weight.detach().abs() for name, weight in weights.items()}
    masks = alive(sizes, step)
    with torch.no_grad():
        for name, weight in weights.items():
            if not masks[name].any():
                raise CompressionError("every weight of a layer would become zero", name, "prune less")
            weight.masked_fill_(~masks[name], 0.0)
    zeros = {name: int((~mask).sum()) for name, mask in masks.items()}
    if not any(zeros.values()):
        smallest = min(float(size.min()) for size in sizes.values())
        raise CompressionError(
            "no weight would become zero", step.threshold or step.amount, f"the smallest is {smallest:.3g}"
        )
    total = sum(weight.numel() for weight in weights.values())
    return state.after(step, module, {"zeros": sum(zeros.values()), "weights": total, "layers": zeros})


def alive(sizes: Mapping[str, Tensor], step: MagnitudePruning) -> dict[str, Tensor]:
    """True where a weight stays, by parameter name; `sizes` are absolute values. Ties fall by position."""
    if step.threshold is not None:
        return {name: size >= step.threshold for name, size in sizes.items()}
    if step.n_of_m is not None:
        n, m = step.n_of_m
        masks = largest_of_each(sizes, n, m)
        if all(bool(mask.all()) for mask in masks.values()):
            raise CompressionError(
                f"no layer's input is a multiple of {m}", f"{n} of {m}", "choose a smaller M"
            )
        return masks
    assert step.amount is not None
    return largest(sizes, step.amount, step.scope)
