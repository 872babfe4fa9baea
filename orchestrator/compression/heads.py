"""Pruning of whole attention heads: score, select, cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from orchestrator.compression.gradients import row_gradients, set_gradients
from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import HeadPruning
from orchestrator.errors import CompressionError
from orchestrator.runtime.channels import tracing
from orchestrator.runtime.heads import Attention, attentions, keep_heads


@apply_step.register
def prune_heads(step: HeadPruning, state: State, context: Context) -> State:
    """Remove the attention heads that matter least; each layer keeps one at least.

    Raises:
        CompressionError: the model has no attention that can be cut, no head would be removed, or the
            criterion lacks its rows.
    """
    module = copy_of(state.module)
    found = attentions(module)
    if not found:
        raise CompressionError(
            "the model has no attention with a linear each for queries, keys and values",
            type(module).__name__,
            "one layer for all three is not cut, nor outputs by other names: use prune_channels or factorize",
        )
    gates: dict[str, Tensor] = {}
    with tracing(module):
        if step.criterion == "taylor":
            gates = _gates(found, row_gradients(module, step, state.signature, context))
        elif step.criterion == "hessian":
            set_gradients(module, step, state.signature, context)
    scores = {
        name: _relative(gates[name] if gates else _scores(attention, step, context.seed))
        for name, attention in found.items()
    }
    kept = _select(scores, step)
    before = {name: attention.heads for name, attention in found.items()}
    if all(len(heads) == before[name] for name, heads in kept.items()):
        raise CompressionError(
            f"no head would be removed: layers have {max(before.values())} at most, and keep one each",
            step.amount,
            "raise amount",
        )
    module.zero_grad(set_to_none=True)
    keep_heads(module, kept)
    return state.after(step, module, {"kept": kept, "heads": before})


def _scores(attention: Attention, step: HeadPruning, seed: int) -> Tensor:
    """Float64 [heads], by all criteria but `taylor`."""
    if step.criterion == "random":
        return torch.rand(attention.heads, generator=torch.Generator().manual_seed(seed)).double()
    inputs = [_terms(layer.weight, attention, step) for layer in attention.inputs]
    output = _terms(attention.output.weight, attention, step).T
    scores = torch.stack([_per_head(terms, attention) for terms in (*inputs, output)]).sum(0)
    return scores.sqrt() if step.criterion == "l2" else scores


def _relative(scores: Tensor) -> Tensor:
    """Layers are made comparable by their norm, as Michel et al. do."""
    relative: Tensor = scores / scores.norm().clamp_min(1e-30)
    return relative


def _terms(weight: Tensor, attention: Attention, step: HeadPruning) -> Tensor:
    """What each weight adds to its head's score, float64 in the weight's shape."""
    value = weight.detach().double()
    if step.criterion == "l1":
        return value.abs()
    if step.criterion == "l2":
        return value.square()
    # What the loss would rise by without the weight, but for a factor: LeCun et al. 1989.
    return value.square() * _gradient(weight, attention).double()


def _per_head(terms: Tensor, attention: Attention) -> Tensor:
    """Sums [heads] over [heads * width, ...]."""
    return terms.reshape(attention.heads, -1).sum(1)


def _gates(found: Mapping[str, Attention], rows: Iterable[int]) -> dict[str, Tensor]:
    """Mean over rows of the size of the loss's gradient by a gate on each head's output, float64 [heads].

    Michel et al. 2019 (https://arxiv.org/abs/1905.10650), equation 2. Sizes are taken row by row: at the end
    of a training the gradients of all rows together cancel, for every head.

    Args:
        found: attentions by name.
        rows: meanwhile the weights have one row's share of the mean loss's gradient.
    """
    sums = {name: torch.zeros(attention.heads, dtype=torch.float64) for name, attention in found.items()}
    for _ in rows:
        for name, attention in found.items():
            sums[name] += _gate_gradients(attention).abs().cpu()
    return sums


def _gate_gradients(attention: Attention) -> Tensor:
    """The loss's gradient by a gate on each head's output, float64 [heads].

    A gate scales the columns of the output layer that belong to its head, so its gradient is their inner
    product with the columns' gradient.
    """
    weight = attention.output.weight
    return _per_head((weight.detach() * _gradient(weight, attention)).double().T, attention)


def _gradient(weight: Tensor, attention: Attention) -> Tensor:
    if weight.grad is None:
        raise CompressionError("no gradient reaches the attention", attention.name, "choose criterion l2")
    return weight.grad


def _select(scores: dict[str, Tensor], step: HeadPruning) -> dict[str, list[int]]:
    """Numbers of the heads that stay, in order; ties stay by position."""
    if step.scope == "layer":
        counts = {
            name: max(len(layer) - round(step.amount * len(layer)), 1) for name, layer in scores.items()
        }
        return {name: _best(layer, counts[name]) for name, layer in scores.items()}
    everything = torch.cat(list(scores.values()))
    ranked = torch.zeros(len(everything), dtype=torch.long)
    ranked[everything.argsort(stable=True, descending=True)] = torch.arange(len(everything))
    stay = ranked < len(everything) - round(step.amount * len(everything))
    pieces = stay.split([len(layer) for layer in scores.values()])
    return {
        name: _best(layer, max(int(piece.sum()), 1))
        for (name, layer), piece in zip(scores.items(), pieces, strict=True)
    }


def _best(scores: Tensor, count: int) -> list[int]:
    chosen: list[int] = scores.argsort(stable=True, descending=True)[:count].sort().values.tolist()
    return chosen
