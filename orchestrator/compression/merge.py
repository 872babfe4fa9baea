"""Merging: one model from the weights of several, checked against its parts on validation rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.compression.align import aligned
from orchestrator.compression.distill import fine_tune
from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.model import ImportedModel, ModelSettings, SideBySide
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Merge
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.errors import CompressionError
from orchestrator.models.build import build
from orchestrator.models.served import Served
from orchestrator.models.side_by_side import Joined
from orchestrator.training.losses import loss_settings, make_loss

_BATCH = 256
_NORMS = nn.modules.batchnorm._BatchNorm

Weights = dict[str, Tensor]


@apply_step.register
def merge(step: Merge, state: State, context: Context) -> State:
    """Merge the parent with other models into one of the same size.

    Uniform and greedy: model soups (Wortsman et al. 2022, https://arxiv.org/abs/2203.05482), for models
    fine-tuned from one start. Slerp: Shoemake 1985, a tensor at a time. Aligned: weight matching of Git
    Re-Basin (Ainsworth et al. 2022, https://arxiv.org/abs/2209.04836). Side by side: stacking (Wolpert 1992)
    in one graph. Batch statistics of merged weights are estimated anew (Jordan et al. 2022,
    https://arxiv.org/abs/2211.08403).

    Raises:
        CompressionError: architectures differ, rows are missing, greedy took no other model, or the merged
            model is worse than its parts by more than the allowed barrier.
    """
    if context.train is None or context.validation is None or len(context.validation.ids) == 0:
        raise CompressionError("merging needs train and validation rows", fix="give the data both parts")
    parent = copy_of(state.module)
    if len(set(step.others)) < len(step.others):
        raise CompressionError(
            "the same model is merged twice", ", ".join(step.others), "name each model of 'others' once"
        )
    parts = {"parent": parent} | {name: context.other(name).module().eval() for name in step.others}
    if step.method != "side_by_side":
        _check_alike(parts)
    _check_scaling(parts)
    loss = _loss_on(context.validation, state.signature)
    losses = {name: loss(part) for name, part in parts.items()}
    if step.method == "side_by_side":
        joined, settings = join(step, parts, state, context)
        return state.after(step, joined, _checked(step, loss(joined), losses), model=settings)
    if step.method == "aligned":
        parts = {
            name: part if name == "parent" else aligned(parent, copy_of(part), state.signature)
            for name, part in parts.items()
        }

    def with_weights(weights: Weights) -> nn.Module:
        module = copy_of(parent)
        module.load_state_dict(weights)
        reestimate(module, context.train, step.rows)  # type: ignore[arg-type]
        return module

    module, facts = _merged(step, parts, losses, loss, with_weights)
    return state.after(step, module, facts | _checked(step, loss(module), losses))


def join(
    step: Merge, parts: Mapping[str, nn.Module], state: State, context: Context
) -> tuple[nn.Module, ModelSettings | None]:
    """All parts in one graph, the head trained on train rows; and what builds it, where that is known.

    Raises:
        CompressionError: a part is not as its settings build it.
    """
    known = [state.model, *(context.other(name).model for name in step.others)]
    settings = _joint_settings(known, list(parts))
    for (name, part), one in zip(parts.items(), known, strict=True):
        if state.plan or (one is not None and not _is_plain(part, one, state.signature)):
            raise CompressionError(
                "models are put side by side as they were trained; this one was compressed",
                name,
                "compress the joint model instead",
            )
    bodies = [copy_of(part.get_submodule("body")) for part in parts.values()]
    joined = Joined(bodies, state.signature.outputs)
    module = Served(state.signature, joined)
    # Most of the head's weights begin as zeros, which are to be trained.
    dense = replace(state, sparse=False)
    trained = [parameter for parameter in joined.members.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    fine_tune(module, step.training, dense, context, checkpoint=context.checkpoint)
    for parameter in trained:  # by a later recovery
        parameter.requires_grad_(True)
    return module.eval(), settings


def _joint_settings(known: Sequence[ModelSettings | None], names: Sequence[str]) -> ModelSettings | None:
    if any(one is None for one in known):
        return None
    for name, one in zip(names, known, strict=True):
        if isinstance(one, ImportedModel | SideBySide):
            raise CompressionError("only built-in architectures can be put side by side", name, "distil them")
    members = [one.plain() for one in known if one is not None]
    return SideBySide.model_validate({"kwargs": {"members": members}})


def _is_plain(part: nn.Module, settings: ModelSettings, signature: Signature) -> bool:
    wanted = build(settings, signature, seed=0).state_dict()
    found = part.state_dict()
    return wanted.keys() == found.keys() and all(
        tensor.shape == found[name].shape for name, tensor in wanted.items()
    )


def _checked(step: Merge, found: float, losses: Mapping[str, float]) -> dict[str, Any]:
    """The figures for the decision; raises where the merged model's loss is too far above its parts'."""
    barrier = found - sum(losses.values()) / len(losses)
    if not barrier <= step.max_barrier:  # NaN is above, too
        raise CompressionError(
            "the merged model is worse than its parts: "
            f"loss barrier {barrier:.3f}, allowed {step.max_barrier:g} "
            f"(the parts have {', '.join(f'{value:.3f}' for value in losses.values())})",
            step.method,
            "models of different starts need method aligned, or distil the ensemble into one model",
        )
    return {"barrier": barrier, "losses": list(losses.values())}


def _merged(
    step: Merge,
    parts: Mapping[str, nn.Module],
    losses: Mapping[str, float],
    loss: Callable[[nn.Module], float],
    with_weights: Callable[[Weights], nn.Module],
) -> tuple[nn.Module, dict[str, Any]]:
    weights = {name: dict(part.state_dict()) for name, part in parts.items()}
    if step.method == "slerp":
        first, second = weights.values()
        return with_weights(slerp(first, second, step.share)), {}
    if step.method != "greedy":
        return with_weights(mean(list(weights.values()))), {}
    order = sorted(parts, key=lambda name: losses[name])
    taken, best, module = [order[0]], losses[order[0]], parts[order[0]]
    for name in order[1:]:
        tried = with_weights(mean([weights[other] for other in [*taken, name]]))
        if (found := loss(tried)) <= best:
            taken, best, module = [*taken, name], found, tried
    if len(taken) == 1:
        raise CompressionError(
            "no mean with another model is as good as the best one alone", taken[0], "keep that one"
        )
    return module, {"taken": taken}


def mean(weights: Sequence[Weights]) -> Weights:
    """The mean of each floating tensor; counters and flags are the first one's."""
    return {
        name: torch.stack([other[name].double() for other in weights]).mean(0).to(first.dtype)
        if first.is_floating_point()
        else first
        for name, first in weights[0].items()
    }


def slerp(first: Weights, second: Weights, share: float) -> Weights:
    """Each tensor on the arc from the first model's to the second's; on the line where they are parallel."""
    return {
        name: _arc(tensor.double(), second[name].double(), share).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def _arc(first: Tensor, second: Tensor, share: float) -> Tensor:
    lengths = first.norm() * second.norm()
    cosine = float((first * second).sum() / lengths) if lengths > 0 else 1.0
    if abs(cosine) > 1 - 1e-6:
        return torch.lerp(first, second, share)
    angle = torch.arccos(torch.tensor(cosine, dtype=torch.float64))
    one, two = torch.sin((1 - share) * angle), torch.sin(share * angle)
    return (one * first + two * second) / torch.sin(angle)


def reestimate(module: nn.Module, train: Part, rows: int) -> None:
    """Set the statistics of batch norms, in place, to the mean over batches of train rows."""
    norms = [part for part in module.modules() if isinstance(part, _NORMS) and part.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    try:
        with torch.no_grad():
            for batch in torch.tensor(train.inputs[:rows]).split(_BATCH):
                if len(batch) > 1:
                    module(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def _loss_on(part: Part, signature: Signature) -> Callable[[nn.Module], float]:
    """The task's own loss on a part's rows; a regression's in units of its targets' variance."""
    if set(signature.target_std) == {1.0}:  # rows that came as arrays, whose scale nobody looked at
        spread = np.asarray(part.targets, np.float64).reshape(len(part.targets), -1).std(axis=0)
        units = np.where(spread > 0, spread, 1.0)
        signature = signature.model_copy(update={"target_std": tuple(units.tolist())})
    function = make_loss(loss_settings(Training(), signature), signature)
    inputs, targets = torch.tensor(part.inputs), torch.as_tensor(part.targets)

    def loss(module: nn.Module) -> float:
        with torch.no_grad():
            outputs = torch.cat([module(rows) for rows in inputs.split(_BATCH)])
        return float(function(outputs, targets, None))

    return loss


def _check_scaling(parts: Mapping[str, nn.Module]) -> None:
    """Raise unless all scale rows and answers alike: the result has the parent's scaling, and no weight of
    another model was trained for it."""
    scales = {
        name: {
            key: tensor for key, tensor in part.named_buffers() if key.startswith(("preprocess.", "rescale."))
        }
        for name, part in parts.items()
    }
    first = scales["parent"]
    for name, found in scales.items():
        if found.keys() != first.keys() or not all(torch.equal(found[key], first[key]) for key in first):
            raise CompressionError(
                "models that scale their rows or answers otherwise have no common weights",
                name,
                "merge models that were trained on the same rows, or distil them into one",
            )


def _check_alike(parts: Mapping[str, nn.Module]) -> None:
    """Raise unless all have tensors of the same names and shapes."""
    shapes = {
        name: {key: tuple(tensor.shape) for key, tensor in part.state_dict().items()}
        for name, part in parts.items()
    }
    first = shapes["parent"]
    for name, found in shapes.items():
        for key in first.keys() | found.keys():
            mine, theirs = found.get(key, "missing"), first.get(key, "missing")
            if mine != theirs:
                raise CompressionError(
                    "models of different architectures have no common weights: "
                    f"'{key}' is {mine}, in the parent {theirs}",
                    name,
                    "merge models of equal settings, or distil them into one",
                )
