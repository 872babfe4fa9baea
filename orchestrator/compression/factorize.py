"""Low-rank factorization: a layer's matrix becomes the product of two thin ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import Factorization
from orchestrator.errors import CompressionError
from orchestrator.models.build import example_rows
from orchestrator.runtime.lowrank import split

_Layer = nn.Linear | nn.modules.conv._ConvNd | nn.Embedding


@apply_step.register
def factorize(step: Factorization, state: State, context: Context) -> State:  # noqa: ARG001
    """Truncated SVD of linears, of convolutions as matrices [out, in * k * k] and of embeddings [tokens,
    features].

    Denton et al. 2014 (https://arxiv.org/abs/1404.0736); the convolution's form is that of Zhang et al. 2015
    (https://arxiv.org/abs/1505.06798), the embedding's that of Lan et al. 2019 (https://arxiv.org/abs/1909.11942),
    who train it so. The product is the best of its rank in squared error (Eckart and
    Young). Layers whose two factors would have as many weights, or of which the forward reads more than the
    answer, stay whole: they are listed with the reason.

    Raises:
        CompressionError: no layer would become smaller.
    """
    module, rows = copy_of(state.module), example_rows(state.signature, 2)
    shared = _shared(module)
    ranks, left, factors = {}, {}, {}
    for name, layer in list(module.named_modules()):
        if not isinstance(layer, _Layer):
            continue
        reason = _unfit(layer, shared)
        if reason is None:
            matrix = layer.weight.detach().flatten(1).double()
            left_part, values, right_part = torch.linalg.svd(matrix, full_matrices=False)
            rank = kept_rank(values, step)
            if rank * sum(matrix.shape) >= matrix.numel():
                reason = f"rank {rank} of {len(values)} saves nothing"
            elif not _runs_without(module, name, rows):
                reason = "its owner reads more of it than its answer"
            else:
                ranks[name] = rank
                root = values[:rank].sqrt()
                pair = (left_part[:, :rank] * root, root[:, None] * right_part[:rank])
                factors[name] = (*pair, layer)
        if reason is not None:
            left[name] = reason
    if not ranks:
        raise CompressionError(
            "no layer would become smaller",
            f"energy {step.energy}" if step.energy is not None else f"rank {step.rank}",
            "; ".join(f"{name}: {reason}" for name, reason in left.items())[:300] or "it has no such layer",
        )
    split(module, ranks)
    with torch.no_grad():
        for name, (out, into, layer) in factors.items():
            _fill(module.get_submodule(name), out, into, layer)
    return state.after(step, module.eval(), {"ranks": ranks, "left": left})


def kept_rank(values: Tensor, step: Factorization) -> int:
    """How many of the singular values [R], largest first, a layer keeps: at least one."""
    if step.rank is not None:
        return max(round(step.rank * len(values)), 1)
    energy = values.square().cumsum(0)
    assert step.energy is not None
    return int((energy < step.energy * energy[-1]).sum()) + 1


def _fill(product: nn.Module, out: Tensor, into: Tensor, layer: _Layer) -> None:
    first, second = product.get_submodule("0"), product.get_submodule("1")
    assert isinstance(first.weight, Tensor) and isinstance(second.weight, Tensor)  # noqa: PT018
    if isinstance(layer, nn.Embedding):
        first.weight.copy_(out)
        second.weight.copy_(into.T)
        return
    first.weight.copy_(into.reshape(first.weight.shape))
    second.weight.copy_(out.reshape(second.weight.shape))
    if layer.bias is not None:
        assert isinstance(second.bias, Tensor)
        second.bias.copy_(layer.bias)


def _unfit(layer: _Layer, shared: set[int]) -> str | None:
    """Why a layer has no product form here; None when it has one."""
    if not isinstance(layer, nn.Linear | nn.Conv2d | nn.Embedding):
        return f"there is no product form of {type(layer).__name__}"
    if type(layer) not in (nn.Linear, nn.Conv2d, nn.Embedding):
        return f"a {type(layer).__name__} may be read by its owner in another way"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "it limits its vectors' length"
    if id(layer.weight) in shared:
        return "its weight is shared with another layer"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"it has {layer.groups} groups"
    return None


def _runs_without(module: nn.Module, name: str, rows: Tensor) -> bool:
    """Whether the model runs with a product in the layer's place; vision models of `transformers` ask the
    first layer for the type of its weight.
    """
    owner, _, leaf = name.rpartition(".")
    layer = module.get_submodule(name)
    split(module, {name: 1})
    try:
        with torch.no_grad():
            module(rows)
    except Exception:  # the forward may be of other people's code, which raises anything
        return False
    finally:
        setattr(module.get_submodule(owner), leaf, layer)
    return True


def _shared(module: nn.Module) -> set[int]:
    """Weights that more than one layer holds, or one under several names."""
    seen: dict[int, int] = {}
    for _, part in module.named_modules(remove_duplicate=False):
        for parameter in part.parameters(recurse=False):
            seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}
