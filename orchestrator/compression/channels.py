"""Pruning of whole channels: score, select, cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph, importance

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import ChannelPruning, Criterion
from orchestrator.errors import CompressionError
from orchestrator.models.base import fixed_width_layers
from orchestrator.runtime.channels import cut, dependency_graph, tracing

LARGEST_SHARE = 0.9
"""Of a layer's channels that global ranking may remove: none is ever erased."""

_SCORERS: dict[Criterion, Any] = {
    "l1": lambda: importance.GroupMagnitudeImportance(p=1),
    "l2": lambda: importance.GroupMagnitudeImportance(p=2),
    "lamp": importance.LAMPImportance,
    "fpgm": importance.FPGMImportance,
    "bn_scale": importance.BNScaleImportance,
    "random": importance.RandomImportance,
}


@dataclass(frozen=True)
class Channels:
    """One set of channels that can only be cut together, over all layers that share them."""

    layer: str
    """Whose output channels are counted."""
    scores: Tensor
    """Float64 [width]: the smallest go first. `width` counts one channel of each block."""
    blocks: int
    """A channel stands for one in each of so many equal blocks (grouped convolutions and norms)."""


@apply_step.register
def prune_channels(step: ChannelPruning, state: State, context: Context) -> State:  # noqa: ARG001
    """Remove the channels with the smallest scores; the output layer and scaling stay whole.

    Fang et al. 2023 (https://arxiv.org/abs/2301.12900). The decision is the list of cuts, from which the
    form is rebuilt.

    Raises:
        CompressionError: weights are tied, the layers cannot be traced, the scores say nothing, or nothing
            would be removed.
    """
    module = copy_of(state.module)
    _refuse_unprunable(module)
    with tracing(module):
        try:
            graph = dependency_graph(module, state.signature)
            found = score(graph, module, step.criterion)
        except (RuntimeError, AssertionError, IndexError, KeyError, ValueError, AttributeError) as error:
            raise CompressionError(
                f"the model's layers cannot be traced ({type(error).__name__}: {str(error)[:200]})",
                type(module).__name__,
            ) from error
        chosen = select(found, step)
        history = []
        for group in found:
            removed = chosen[group.layer]
            if removed:
                cut(graph, module.get_submodule(group.layer), True, removed)
                history.append([group.layer, True, removed])
    if not history:
        raise CompressionError(
            "no channel would be removed",
            f"amount {step.amount}, round_to {step.round_to}",
            "raise amount or lower round_to",
        )
    decision = {
        "history": history,
        "channels": sum(len(group.scores) * group.blocks for group in found),
        "removed": sum(map(len, chosen.values())),
    }
    return state.after(step, module, decision)


def score(graph: DependencyGraph, module: nn.Module, criterion: Criterion) -> list[Channels]:
    """All sets of channels that may be cut, each with its scores.

    Raises:
        CompressionError: the criterion cannot rank this model's channels.
    """
    names = {id(part): name for name, part in module.named_modules()}
    kept = [
        *_output_layers(graph),
        *(part for layer in fixed_width_layers(module) for part in layer.modules()),
    ]
    scorer = _SCORERS[criterion]()
    found = []
    for group in graph.get_all_groups(
        ignored_layers=kept, root_module_types=[nn.modules.conv._ConvNd, nn.Linear]
    ):
        scores = scorer(group)
        if scores is None:
            continue
        blocks = _blocks(graph, group)
        # Grouped layers lose the same channel of every block.
        mean = scores.double().reshape(blocks, -1).mean(0)
        found.append(Channels(names[id(group[0].dep.target.module)], mean, blocks))
    if not found:
        reason = "it has no batch norm" if criterion == "bn_scale" else "no layer's width is free to change"
        raise CompressionError(f"no channels of this model can be ranked: {reason}", criterion)
    if all(bool((group.scores == group.scores[0]).all()) for group in found):
        raise CompressionError(
            "the criterion ranks all channels alike",
            criterion,
            "choose another one, or train the model first",
        )
    return found


def select(found: list[Channels], step: ChannelPruning) -> dict[str, list[int]]:
    """Channels to remove of each layer, ties by channel number; widths stay multiples of `round_to`."""
    if step.scope == "layer":
        keep = {group.layer: len(group.scores) * (1 - step.amount) for group in found}
    else:
        ranked = torch.cat([group.scores for group in found]).argsort(stable=True)
        gone = torch.zeros(len(ranked), dtype=torch.bool)
        gone[ranked[: round(step.amount * len(ranked))]] = True
        pieces = gone.split([len(group.scores) for group in found])
        keep = {group.layer: float((~piece).sum()) for group, piece in zip(found, pieces, strict=True)}
    return {group.layer: _smallest(group, keep[group.layer], step.round_to) for group in found}


def _smallest(group: Channels, keep: float, round_to: int) -> list[int]:
    """Numbers of the channels to remove so that about `keep` of each block stay."""
    width = len(group.scores)
    # The whole layer is `blocks` times as wide, so each block may be coarser by what they share.
    multiple = round_to // gcd(round_to, group.blocks)
    kept = max(int(keep / multiple + 0.5), 1) * multiple
    while kept < width * (1 - LARGEST_SHARE):
        kept += multiple
    if kept >= width:
        return []
    first = group.scores.argsort(stable=True)[: width - kept].sort().values
    return [int(channel) + block * width for block in range(group.blocks) for channel in first]


def _refuse_unprunable(module: nn.Module) -> None:
    """Raise for what torch-pruning 1.6 gets wrong without saying so, or cannot do."""
    owners: dict[int, set[int]] = {}
    names: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        if isinstance(part, nn.RNNBase):
            raise CompressionError("recurrent layers cannot lose channels", prefix, "use prune_magnitude")
        for name, parameter in part.named_parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(part))
            names.setdefault(id(parameter), []).append(f"{prefix}.{name}")
    for key, holders in owners.items():
        if len(holders) > 1:
            raise CompressionError(
                "layers share a weight, which pruning would untie",
                " = ".join(names[key]),
                "use prune_magnitude",
            )


def _output_layers(graph: DependencyGraph) -> Iterator[nn.Module]:
    """The layers whose channels are the model's outputs: from the graph's ends back to the first weights."""
    nodes = [node for node in graph.module2node.values() if not node.outputs]
    seen = set(map(id, nodes))
    while nodes:
        node = nodes.pop()
        if isinstance(node.module, nn.modules.conv._ConvNd | nn.Linear | nn.Embedding):
            yield node.module
            continue
        for before in node.inputs:
            if id(before) not in seen:
                seen.add(id(before))
                nodes.append(before)


def _blocks(graph: DependencyGraph, group: Any) -> int:
    """Into how many equal blocks grouped layers cut the channels of a group."""
    found = 1
    for dep, _ in group:
        layer, pruner = dep.target.module, graph.get_pruner_of_module(dep.target.module)
        if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == layer.out_channels:
            continue
        if graph.is_out_channel_pruning_fn(dep.handler):
            found = max(found, pruner.get_out_channel_groups(layer))
        else:
            found = max(found, pruner.get_in_channel_groups(layer))
    return found
