"""Putting a model's channels in the order of another's, without changing what it computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch_pruning import DependencyGraph

from orchestrator.compression.channels import coupled, refuse_unprunable
from orchestrator.config.signature import Signature
from orchestrator.errors import CompressionError
from orchestrator.runtime.channels import dependency_graph, tracing

_SWEEPS = 20
"""At most, over all groups of channels; usually a few suffice."""


@dataclass(frozen=True)
class _Place:
    """One dimension of one tensor that a group's channels run along."""

    tensor: str
    dimension: int
    positions: Tensor
    """Int64 [width, copies]: where each channel lies."""


def aligned(reference: nn.Module, module: nn.Module, signature: Signature) -> nn.Module:
    """Permute a model's hidden channels, in place, so that its weights resemble the reference's most.

    Weight matching of Ainsworth et al. 2022 (https://arxiv.org/abs/2209.04836), algorithm 1: each group of
    coupled channels in turn is assigned anew, until none changes. The groups are those of pruning;
    channels of grouped layers keep their order.

    Raises:
        CompressionError: the layers cannot be traced, or share weights.
    """
    refuse_unprunable(module)
    groups = _groups(module, signature)
    wanted = {name: tensor.double() for name, tensor in reference.state_dict().items()}
    state = dict(module.state_dict())
    for _ in range(_SWEEPS):
        changed = False
        for places in groups:
            order = _best_order(places, state, wanted)
            if not torch.equal(order, torch.arange(len(order))):
                changed = True
                for place in places:
                    state[place.tensor] = _reordered(state[place.tensor], place, order)
        if not changed:
            break
    module.load_state_dict(state)
    return module


def _best_order(places: list[_Place], state: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """Int64 [width]: which channel should come where, by the largest sum of products with the reference."""
    width = len(places[0].positions)
    likeness = torch.zeros(width, width, dtype=torch.float64)
    for place in places:
        mine, theirs = (_rows(tensors[place.tensor].double(), place) for tensors in (state, wanted))
        likeness += theirs @ mine.T
    # A tiny bonus for staying: equal channels must not swap for ever.
    likeness += torch.eye(width, dtype=torch.float64) * 1e-9 * likeness.abs().max()
    _, order = linear_sum_assignment(likeness.numpy(), maximize=True)
    return torch.from_numpy(order)


def _rows(tensor: Tensor, place: _Place) -> Tensor:
    """A tensor's numbers by channel [width, rest]."""
    moved = tensor.movedim(place.dimension, 0).flatten(1) if tensor.ndim > 1 else tensor[:, None]
    return moved[place.positions].flatten(1)


def _reordered(tensor: Tensor, place: _Place, order: Tensor) -> Tensor:
    result = tensor.clone()
    source, target = place.positions[order].flatten(), place.positions.flatten()
    result.index_copy_(place.dimension, target, tensor.index_select(place.dimension, source))
    return result


def _groups(module: nn.Module, signature: Signature) -> list[list[_Place]]:
    names = {id(part): name for name, part in module.named_modules()}
    with tracing(module):
        try:
            graph = dependency_graph(module, signature)
            return [_places(graph, group, names) for group, blocks in coupled(graph, module) if blocks == 1]
        except (RuntimeError, AssertionError, IndexError, KeyError, ValueError, AttributeError) as error:
            raise CompressionError(
                f"the model's layers cannot be traced ({type(error).__name__}: {str(error)[:200]})",
                type(module).__name__,
            ) from error


def _places(graph: DependencyGraph, group: Any, names: dict[int, str]) -> list[_Place]:
    """Every tensor dimension that must be permuted together."""
    found: dict[tuple[str, int], _Place] = {}
    for number, (dep, positions) in enumerate(group):
        layer = dep.target.module
        if isinstance(layer, nn.Parameter):
            raise CompressionError(
                "a parameter outside any layer runs along the channels, which alignment cannot follow",
                f"shape {list(layer.shape)}",
                "merge models of one start (method uniform)",
            )
        tensors = layer.state_dict()
        if not tensors:
            continue
        roots = torch.tensor(group[number].root_idxs)
        by_channel = torch.tensor(positions)[roots.argsort(stable=True)].reshape(int(roots.max()) + 1, -1)
        outputs = graph.is_out_channel_pruning_fn(dep.handler)
        if isinstance(layer, nn.Embedding):
            dimension = 1  # [numbers, features]: its outputs lie where inputs lie elsewhere
        else:
            dimension = int(outputs == bool(getattr(layer, "transposed", False)))
        for key, tensor in tensors.items():
            name = f"{names[id(layer)]}.{key}"
            if tensor.ndim == 1 and outputs:
                found[name, 0] = _Place(name, 0, by_channel)
            elif tensor.ndim > 1:
                found[name, dimension] = _Place(name, dimension, by_channel)
    return list(found.values())
