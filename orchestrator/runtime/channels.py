"""Channel groups of a module (torch-pruning's dependency graph) and how they are cut."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch_pruning import DependencyGraph

from orchestrator.config.signature import Signature
from orchestrator.models.build import example_rows
from orchestrator.runtime.quiet import quiet


@contextmanager
def tracing(module: nn.Module) -> Iterator[None]:
    """Gradients on for all parameters: the dependency graph follows autograd, and ignores frozen ones."""
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad(), quiet():
            yield
    finally:
        # By name: cutting replaces the parameters.
        for name in frozen:
            module.get_parameter(name).requires_grad_(False)


def dependency_graph(module: nn.Module, signature: Signature) -> DependencyGraph:
    """Which layers' channels hang together (Fang et al. 2023, https://arxiv.org/abs/2301.12900)."""
    return DependencyGraph().build_dependency(module, example_inputs=example_rows(signature, 2))


def cut(graph: DependencyGraph, layer: nn.Module, outputs: bool, channels: Sequence[int]) -> None:
    """Remove channels of a layer and of all that hangs on them.

    Args:
        graph: of the module that holds `layer`.
        layer: where the channels are counted.
        outputs: whether they are its output or its input channels.
        channels: their numbers.
    """
    pruner = graph.get_pruner_of_module(layer)
    function = pruner.prune_out_channels if outputs else pruner.prune_in_channels
    graph.get_pruning_group(layer, function, list(channels)).prune(record_history=False)
