"""Pruning of whole channels: score, select, cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch_pruning import DependencyGraph, importance

from orchestrator.compression.distill import fine_tune
from orchestrator.compression.fpgm import GeometricMedian
from orchestrator.compression.gradients import set_gradients
from orchestrator.compression.step import Context, State, after_epochs, apply_step, copy_of
from orchestrator.compression.targets import Target
from orchestrator.config.signature import Signature
from orchestrator.config.steps import ChannelPruning, Criterion
from orchestrator.errors import CompressionError
from orchestrator.models.base import fixed_width_layers
from orchestrator.runtime.channels import cut, dependency_graph, tracing
from orchestrator.runtime.heads import attentions

LARGEST_SHARE = 0.9
"""Of a layer's channels that may go, whatever is asked, in all rounds together: none is ever erased."""

_SCORERS: dict[Criterion, Any] = {
    "l1": lambda: importance.GroupMagnitudeImportance(
        p=1
    ),  # Li et al. 2017, https://arxiv.org/abs/1608.08710
    "l2": lambda: importance.GroupMagnitudeImportance(p=2),  # compared with l1 there
    "lamp": importance.LAMPImportance,  # Lee et al. 2021, https://arxiv.org/abs/2010.07611: of weights there
    "fpgm": GeometricMedian,
    "bn_scale": importance.BNScaleImportance,  # Liu et al. 2017, https://arxiv.org/abs/1708.06519
    # On gradients that `set_gradients` has put into the module.
    "taylor": importance.GroupTaylorImportance,
    "hessian": importance.GroupHessianImportance,
    "random": importance.RandomImportance,
}
_HALVINGS = 10
"""Of the amount, when it is searched: to a thousandth."""


@dataclass(frozen=True)
class Channels:
    """One set of channels that can only be cut together, over all layers that share them."""

    layer: str
    """Whose output channels are counted."""
    scores: Tensor
    """Float64 [width]: the smallest go first. `width` counts one channel of each block."""
    blocks: int
    """A channel stands for one in each of so many equal blocks (grouped convolutions and norms)."""
    structure: str = ""
    """Kinds of the layers that share the channels: equal for layers of the same place in repeated blocks."""
    members: tuple[str, ...] = ()
    """All layers that lose these channels among their outputs."""
    whole: int | None = None
    """Its width before an earlier round cut it."""


@apply_step.register
def prune_channels(step: ChannelPruning, state: State, context: Context) -> State:
    """Remove the channels with the smallest scores; the output layer and scaling stay whole.

    Fang et al. 2023 (https://arxiv.org/abs/2301.12900). The decision is the list of cuts, from which the
    form is rebuilt, with what a target of operations, parameters or latency was reached by. Of several rounds
    each goes an equal part of the way, to the amount or to the target.

    Raises:
        CompressionError: weights are tied, the layers cannot be traced, the scores say nothing, a criterion
            lacks its rows, the target cannot be reached, or nothing would be removed.
    """
    module = copy_of(state.module)
    refuse_unprunable(module)
    target = None if step.amount is not None else Target(step, state.module, state.signature)
    history: list[Cut] = []
    total = removed = epochs = 0
    left = 1.0
    whole: dict[str, int] = {}
    for number in range(1, step.rounds + 1):
        found = [
            replace(group, whole=whole.setdefault(group.layer, len(group.scores)))
            for group in scored(module, step, state, context)
        ]
        width = sum(len(group.scores) * group.blocks for group in found)
        total = total or width
        if target is None:
            share = _amount(step, number, total / width)
        else:
            if number == 1 < step.rounds:
                # What is out of reach is refused before anything is trained.
                _to_target(found, module, step, target, step.rounds, state.signature)
            share = _to_target(found, module, step, target, number, state.signature)
            left *= 1 - share
        cuts = cuts_of(select(found, step, share)) if share > 0 else []
        remove(module, cuts, state.signature)
        history += cuts
        removed += sum(len(channels) for _, _, channels in cuts)
        if step.recovery is not None and number < step.rounds:
            # A process that comes after one that died scores and cuts again, and takes the trained weights
            # of each round from its checkpoint.
            kept = context.checkpoint and context.checkpoint.of(f"round-{number}")
            later = after_epochs(context, epochs)
            epochs += fine_tune(module, step.recovery, state, later, checkpoint=kept)
            module.eval()
    facts: dict[str, Any] = {"channels": total, "removed": removed}
    if target is not None:
        # Measured anew: of noisy latencies the bisection took one that looked small.
        facts |= {"amount": 1 - left, "reached": {target.name: target.left_of(module)}}
    return _after(step, module, history, state, facts)


Cut = tuple[str, bool, list[int]]
"""A layer, whether its outputs are meant, and the numbers of the channels to remove."""


def remove(module: nn.Module, cuts: Sequence[Cut], signature: Signature) -> None:
    """Cut channels, in place, with all that hangs on them.

    Raises:
        CompressionError: a layer lost others than those: torch-pruning 1.6 takes the halves of a chunked
            layer for one, and may empty it.
    """
    with tracing(module):
        graph = dependency_graph(module, signature)
        for name, outputs, channels in cuts:
            layer = module.get_submodule(name)
            pruner = graph.get_pruner_of_module(layer)
            width = pruner.get_out_channels if outputs else pruner.get_in_channels
            before = width(layer)
            cut(graph, layer, outputs, channels)
            if (lost := before - width(layer)) != len(channels):
                raise CompressionError(
                    f"removing {len(channels)} of {before} channels took {lost}: the layer's outputs are "
                    "split into parts that hang together",
                    name,
                    "name the layer in fixed_width_layers()",
                )


def cuts_of(chosen: Mapping[str, list[int]]) -> list[Cut]:
    """The cuts that remove the chosen channels of each layer."""
    return [(layer, True, channels) for layer, channels in chosen.items() if channels]


def _after(
    step: ChannelPruning, module: nn.Module, history: list[Cut], state: State, facts: dict[str, Any]
) -> State:
    if not history:
        raise CompressionError(
            "no channel would be removed",
            f"amount {step.amount}, round_to {step.round_to}",
            "raise amount or lower round_to",
        )
    return state.after(step, module.eval(), {"history": [list(cut) for cut in history], **facts})


def scored(module: nn.Module, step: ChannelPruning, state: State, context: Context) -> list[Channels]:
    """All sets of channels that may be cut, with scores by the step's criterion.

    Raises:
        CompressionError: the model cannot be pruned or traced, or the criterion cannot rank its channels.
    """
    with tracing(module):
        try:
            graph = dependency_graph(module, state.signature)
            if step.criterion in ("taylor", "hessian"):
                set_gradients(module, step, state.signature, context)
            return score(graph, module, step.criterion)
        except (RuntimeError, AssertionError, IndexError, KeyError, ValueError, AttributeError) as error:
            raise CompressionError(
                f"the model's layers cannot be traced ({type(error).__name__}: {str(error)[:200]})",
                type(module).__name__,
            ) from error
        finally:
            module.zero_grad(set_to_none=True)


def _amount(step: ChannelPruning, number: int, shrunk: float) -> float:
    """Of what is left, the share that brings the whole to number / rounds of the amount.

    `shrunk`: how many times as many channels as now there were at first.
    """
    assert step.amount is not None
    return 1 - (1 - step.amount * number / step.rounds) * shrunk


def _to_target(
    found: list[Channels],
    module: nn.Module,
    step: ChannelPruning,
    target: Target,
    number: int,
    signature: Signature,
) -> float:
    """Of what is left, the smallest amount, by bisection, that goes number / rounds of the way to the target.

    Raises:
        CompressionError: no amount does.
    """
    wanted = target.share + (1 - target.share) * (step.rounds - number) / step.rounds
    low, high = 0.0, 1.0
    share = 1.0
    for _ in range(_HALVINGS):
        amount = (low + high) / 2
        smaller = copy_of(module)
        remove(smaller, cuts_of(select(found, step, amount)), signature)
        share = target.left_of(smaller)
        low, high = (low, amount) if share <= wanted else (amount, high)
    if high == 1:
        raise CompressionError(
            f"pruning cannot bring {target.name} that low: the least that was reached is {share:.3f}",
            target.share,
            f"raise {target.name}",
        )
    return high


def score(graph: DependencyGraph, module: nn.Module, criterion: Criterion) -> list[Channels]:
    """All sets of channels that may be cut, each with its scores.

    Raises:
        CompressionError: the criterion cannot rank this model's channels.
    """
    names = {id(part): name for name, part in module.named_modules()}
    scorer = _SCORERS[criterion]()
    found = []
    for group, blocks in coupled(graph, module):
        scores = scorer(group)
        if scores is None:
            continue
        # Grouped layers lose the same channel of every block.
        # A group of zeros has a mean of zero, by which torch-pruning divides: nothing is less worth.
        mean = scores.double().nan_to_num(0.0).reshape(blocks, -1).mean(0)
        layer = names[id(group[0].dep.target.module)]
        members = tuple(
            names[id(dep.target.module)]
            for dep, _ in group
            if graph.is_out_channel_pruning_fn(dep.handler) and id(dep.target.module) in names
        )
        found.append(Channels(layer, mean, blocks, _structure(group), members))
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


def coupled(graph: DependencyGraph, module: nn.Module) -> Iterator[tuple[Any, int]]:
    """Groups of torch-pruning whose channels are free to change, each with its number of equal blocks."""
    kept = [
        *_output_layers(graph),
        *(part for layer in fixed_width_layers(module) for part in layer.modules()),
        *(layer for attention in attentions(module).values() for layer in attention.inputs),
    ]
    kinds = [nn.modules.conv._ConvNd, nn.Linear]
    for group in graph.get_all_groups(ignored_layers=kept, root_module_types=kinds):
        yield group, _blocks(graph, group)


def select(found: list[Channels], step: ChannelPruning, amount: float) -> dict[str, list[int]]:
    """Channels to remove of each layer, ties by channel number; cut widths are multiples of `round_to`."""
    if step.scope == "layer":
        _check_patterns(found, step)
        keep = {group.layer: len(group.scores) * (1 - _share(group, step, amount)) for group in found}
    else:
        keep = {}
        for ranked_together in _rankings(found, step.scope):
            keep |= _kept_of_ranking(ranked_together, amount)
    return {group.layer: _smallest(group, keep[group.layer], step.round_to) for group in found}


def _share(group: Channels, step: ChannelPruning, amount: float) -> float:
    """Of the channels to remove: that of the first pattern that names a layer of the group, or the amount."""
    named = (share for pattern, share in step.shares.items() if _matches(group, pattern))
    return next(named, amount)


def _matches(group: Channels, pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in (group.layer, *group.members))


def _check_patterns(found: list[Channels], step: ChannelPruning) -> None:
    for pattern in step.shares:
        if not any(_matches(group, pattern) for group in found):
            names = [group.layer for group in found]
            raise CompressionError(
                "no layer that can lose channels matches",
                pattern,
                f"there are {', '.join(names)}, and others",
            )


def _rankings(found: list[Channels], scope: str) -> list[list[Channels]]:
    """Groups whose channels compete with each other."""
    if scope == "global":
        return [found]
    alike: dict[str, list[Channels]] = {}
    for group in found:
        alike.setdefault(group.structure, []).append(group)
    return list(alike.values())


def _kept_of_ranking(found: list[Channels], amount: float) -> dict[str, float]:
    ranked = torch.cat([group.scores for group in found]).argsort(stable=True)
    gone = torch.zeros(len(ranked), dtype=torch.bool)
    gone[ranked[: round(amount * len(ranked))]] = True
    pieces = gone.split([len(group.scores) for group in found])
    return {group.layer: float((~piece).sum()) for group, piece in zip(found, pieces, strict=True)}


def _smallest(group: Channels, keep: float, round_to: int) -> list[int]:
    """Numbers of the channels to remove so that about `keep` of each block stay."""
    width = len(group.scores)
    if keep >= width:
        return []
    # The whole layer is `blocks` times as wide, so each block may be coarser by what they share.
    multiple = round_to // gcd(round_to, group.blocks)
    kept = max(int(keep / multiple + 0.5), 1) * multiple
    while kept < (group.whole or width) * (1 - LARGEST_SHARE):
        kept += multiple
    if kept >= width:
        return []
    first = group.scores.argsort(stable=True)[: width - kept].sort().values
    return [int(channel) + block * width for block in range(group.blocks) for channel in first]


def refuse_unprunable(module: nn.Module) -> None:
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


def _structure(group: Any) -> str:
    """Fang et al. 2024 (https://arxiv.org/abs/2407.04616) rank only such groups against each other."""
    return " ".join(f"{type(dep.target.module).__name__}.{dep.handler.__name__}" for dep, _ in group)


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
